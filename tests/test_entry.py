"""Importing the package is light, and makes it known to transformers in whatever order the two are imported."""

import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import processor

import llamarec_lkg


ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("torch", "transformers", "peft", "datasets", "matplotlib")


def run_python(code: str, *arguments: str) -> str:
    """What a new process prints."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_the_package_its_data_room_and_its_utilities_need_no_model_library():
    rooms = [ROOT / "llamarec_lkg" / "data", ROOT / "llamarec_lkg" / "utils"]
    files = [path for room in rooms for path in room.rglob("*.py") if path.name not in ("__init__.py", "precision.py")]
    names = sorted(".".join(path.relative_to(ROOT).with_suffix("").parts) for path in files)
    assert "llamarec_lkg.data.formats.amazon" in names
    code = f"import sys, importlib, llamarec_lkg\nfor name in {names}: importlib.import_module(name)\n"
    assert run_python(f"{code}print([name for name in {HEAVY} if name in sys.modules])") == "[]\n"


@pytest.fixture(scope="module")
def folder(film_dataset, tmp_path_factory) -> Path:
    """A ranker without language model and its processor, saved."""
    target = tmp_path_factory.mktemp("saved")
    proc = processor(film_dataset)
    ranker = llamarec_lkg.LlamaRecLKGForRanking(proc.model_config(use_language_model=False))
    ranker.save_pretrained(target)
    proc.save_pretrained(target)
    return target


LOADED = {
    "AutoConfig.from_pretrained(folder)": "LlamaRecLKGConfig",
    "AutoModel.from_pretrained(folder)": "LlamaRecLKGForRanking",
    "AutoProcessor.from_pretrained(folder)": "LlamaRecLKGProcessor",
    "pipeline('recommendation', model=folder)": "RecommendationPipeline",
}
NAMES = "from transformers import AutoConfig, AutoModel, AutoProcessor, pipeline\n"


@pytest.mark.parametrize("load", LOADED)
def test_transformers_knows_what_the_package_registers_each_by_itself(folder, load):
    name = re.match(r"\w+", load)[0]
    code = f"import sys, llamarec_lkg\nfrom transformers import {name}\nfolder = sys.argv[1]\n"
    said = run_python(f"{code}print(type({load}).__name__)", str(folder))
    assert said.splitlines()[-1] == LOADED[load]


def test_transformers_may_be_imported_first(folder):
    loads = "".join(f"print(type({load}).__name__)\n" for load in LOADED)
    said = run_python(f"{NAMES}import sys, llamarec_lkg\nfolder = sys.argv[1]\n{loads}", str(folder))
    assert [line for line in said.splitlines() if line in LOADED.values()] == list(LOADED.values())


@pytest.mark.parametrize(
    "module",
    [
        "ranking.configuration_llamarec_lkg",
        "ranking.modeling_llamarec_lkg",
        "ranking.processing_llamarec_lkg",
        "retrieval.modeling_lrurec",
        "serving.pipeline",
    ],
)
def test_each_module_that_registers_itself_may_be_the_first_to_be_imported(module):
    code = f"""
import llamarec_lkg.{module}
from transformers import CONFIG_MAPPING, MODEL_MAPPING
from transformers.pipelines import PIPELINE_REGISTRY
for name in ("llamarec_lkg", "lrurec"):
    assert CONFIG_MAPPING[name] in MODEL_MAPPING, name
assert "recommendation" in PIPELINE_REGISTRY.get_supported_tasks()
"""
    run_python(code)


def test_a_process_that_only_unpickles_gets_a_config_and_a_processor(film_dataset, tmp_path):
    proc = processor(film_dataset)
    (tmp_path / "pickled").write_bytes(pickle.dumps((proc.model_config(), proc)))
    code = (
        "import pickle, sys\nparts = pickle.load(open(sys.argv[1], 'rb'))\n"
        "print([type(part).__name__ for part in parts], len(parts[1].item_ids))"
    )
    said = run_python(code, str(tmp_path / "pickled")).splitlines()[-1]
    assert said == f"['LlamaRecLKGConfig', 'LlamaRecLKGProcessor'] {film_dataset.num_items}"


def test_every_public_name_is_there_and_listed():
    names = {}
    exec("from llamarec_lkg import *", names)
    assert set(llamarec_lkg.__all__) <= set(names) and set(llamarec_lkg.__all__) <= set(dir(llamarec_lkg))
    assert names["LKGDataError"] is names["LKGError"] and names["KnowledgeGraph"].__name__ == "KnowledgeGraph"
    with pytest.raises(AttributeError, match="module 'llamarec_lkg' has no attribute 'Recomender'"):
        llamarec_lkg.Recomender  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'Recomender'"):
        from llamarec_lkg import Recomender  # noqa: F401
