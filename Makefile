# Two commands: `make quickstart` and `make test`. Each makes its own virtual environment on first use.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
CONFIG ?= examples/configs/quickstart.yaml
# set = value pairs for the run, for example ARGS="data.dataset=path/to/folder backbone.model_name_or_path=owner/model"
ARGS ?=
# benchmarks, or pictures of costs, to run, all by default
BENCH ?=
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: help quickstart data test test-slow bench bench-growth campaign check clean

help:
	@echo "make quickstart   train, evaluate and explain a ranker on MovieLens-100K, into outputs/quickstart"
	@echo "make data         fetch what the quickstart needs, MovieLens-100K and SmolLM2-135M, into the cache"
	@echo "make test         run the tests; some are skipped without \`make data\`"
	@echo "make test-slow    run the long ones as well"
	@echo "make bench        measure time and memory beside peers, into outputs/benchmarks; BENCH=scale for one"
	@echo "make bench-growth draw costs as graph, history, list and catalogue grow, into examples/results; BENCH=list for one"
	@echo "make campaign     kills, damaged files, odd inputs, forged texts, full disks: a table of what survived"
	@echo "make check        ruff"

# torch comes first and from its own pin: a CPU machine needs no CUDA packages
$(VENV)/installed: setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --progress-bar on -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --progress-bar on -c constraints.txt -e ".[test,quantization,ray,serve]"
	touch $@

quickstart: $(VENV)/installed
	$(BIN)/python examples/quickstart.py --config $(CONFIG) $(ARGS)

data: $(VENV)/installed
	$(BIN)/python -c 'from llamarec_lkg.data.sources import load_dataset_bundle; from llamarec_lkg.ranking.backbones import resolve_backbone; load_dataset_bundle("ml-100k"); resolve_backbone("smollm2-135m-instruct-q4_1")'

# two processes of one thread each: threads of the two would wait for each other
test: export OMP_NUM_THREADS = 1
test: $(VENV)/installed
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile --cov --cov-report=term --cov-fail-under=90

test-slow: $(VENV)/installed
	$(BIN)/python -m pytest

bench bench-growth: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --progress-bar on -c constraints.txt -e ".[bench]"
	$(BIN)/python -m tests.benchmarks$(if $(filter %growth,$@),.growth) $(BENCH)

campaign: export OMP_NUM_THREADS = 1
campaign: $(VENV)/installed
	$(BIN)/python -m pytest -m slow -s -q --tb=short tests/campaign

check: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf $(VENV) build dist *.egg-info .coverage .pytest_cache .ruff_cache
