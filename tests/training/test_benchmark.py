"""A table of several seeds: every row, comparisons with the names that others look for, and stages that are reused."""

import json
from pathlib import Path

import numpy as np
import pytest
import tiny
from tiny_run import settings, write_world

from llamarec_lkg import LKGError
from llamarec_lkg.evaluation.metrics import MISS
from llamarec_lkg.training import benchmark, first_stages, report_rows, stacker, workflow
from llamarec_lkg.training.benchmark import run_benchmark
from llamarec_lkg.training.evaluated import EVALUATED_FILE, Evaluated
from llamarec_lkg.training.run_config import RunConfig


@pytest.fixture(scope="module", autouse=True)
def few_networks():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stacker, "NETWORKS", 1)
        patch.setattr(stacker, "EPOCHS", 20)
        yield


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("benchmark")
    write_world(folder / "world")
    tiny.backbone().save_pretrained(folder / "backbone")
    tiny.tokenizer().save_pretrained(folder / "backbone")
    mapping = settings(folder)
    mapping["evaluation"] |= {"controls": ["permuted-titles"], "resamples": 50, "last": 2}
    mapping["retriever"] |= {"max_steps": 10, "eval_steps": 10}
    mapping["benchmark"] = {
        "seeds": [1, 2],
        "retrievers": {
            "retriever": {},
            "retriever-sasrec": {"model_type": "sasrec"},
            "text-retriever": {"item_vectors": "text"},
        },
        "variants": {"ranker-random-backbone": {"backbone.random_weights": True}},
        "hidden_items": 0.2,
    }
    return RunConfig.from_mapping(mapping)


def test_hidden_items_that_cannot_be_are_refused_before_anything_runs(config):
    with pytest.raises(LKGError, match="hidden_items is 1.5"):
        config.changed({"benchmark.hidden_items": 1.5})
    with pytest.raises(LKGError, match="hidden_items asks for test targets"):
        run_benchmark(config.changed({"evaluation.split": "validation"}))


@pytest.fixture(scope="module")
def report(config, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLAMAREC_LKG_CACHE", str(tmp_path_factory.mktemp("cache")))
        return run_benchmark(config, progress=False)


ROWS = {"retriever", "retriever-sasrec", "retrievers-together", "text-retriever", "candidates", "ranker",
        "ranker-no-lm", "stacker", "second-seed", "ranker-random-backbone", "ranker-permuted-titles"}  # fmt: skip


def test_every_row_is_there_once_as_a_mean_over_seeds(report):
    names = [row["name"] for row in report.rows]
    assert len(names) == len(set(names)) and set(names) >= ROWS
    for row in report.rows:
        if row["name"] == "ranker-random-backbone":
            assert "seeds" not in row, "trained for one seed"
        else:
            assert row["metrics"]["ndcg@10"] == pytest.approx(np.mean(row["seeds"]["ndcg@10"]))
    assert report.protocol["training_seed"] == [1, 2] and report.protocol["seeds_of_variants"] == 1
    assert report.protocol["targets"] > 40 == report.protocol["users"], "the last two of each user"
    assert 0 < report.row("ranker")["coverage@10"] <= 1 and report.row("candidates")["popularity@10"] > 0


def test_the_ranker_is_compared_with_all_that_it_must_beat(report):
    pairs = {(one["row"], one["minus"], one["metric"]) for one in report.comparisons}
    others = {"retriever", "retriever-sasrec", "text-retriever", "candidates", "ranker-no-lm", "stacker",
              "second-seed", "ranker-random-backbone"}  # fmt: skip
    assert pairs >= {("ranker", other, "ndcg@10") for other in others}
    silent = {("ranker-no-lm", other, "ndcg@10") for other in ("retriever", "ranker-no-lm-no-kg")}
    assert pairs >= silent, "what the graph adds without a language model"


def test_the_report_lies_beside_the_runs(report, config):
    folder = Path(config.output_dir)
    saved = json.loads((folder / "report.json").read_text())
    assert {row["name"] for row in saved["rows"]} >= ROWS and saved["comparisons"] and saved["slices"]
    assert (folder / "report.md").exists() and (folder / "report.png").exists()
    for seed in (1, 2):
        assert (folder / f"seed-{seed}" / EVALUATED_FILE).exists()
    variants = [path.parent.name for path in folder.glob("seed-*/ranker-random-backbone")]
    assert variants == ["seed-1"]
    assert not list(folder.glob("seed-1/ranker-random-backbone/retriever*")), "a variant has the run's retrievers"


def test_items_hidden_from_training_have_a_report_of_their_own(report, config):
    hidden = json.loads((Path(config.output_dir) / "hidden-items" / "report.json").read_text())
    names = {row["name"] for row in hidden["rows"]}
    assert names >= {"popularity", "evidence", "retriever", "retriever-sasrec", "text-retriever"}
    assert 0 < hidden["protocol"]["targets"] < report.protocol["targets"]
    assert "graph" in hidden["protocol"] and "weights" not in hidden["protocol"]
    assert hidden["protocol"]["targets_are"].startswith("those among 6 items")
    popularity = next(row for row in hidden["rows"] if row["name"] == "popularity")
    assert popularity["metrics"]["ndcg@10"] == 0, "nobody took them, so they come last"
    pairs = {(one["row"], one["minus"]) for one in hidden["comparisons"]}
    assert {("text-retriever", "popularity"), ("text-retriever", "evidence"), ("evidence", "popularity")} <= pairs


def test_a_second_call_trains_nothing_and_says_the_same(report, config, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("this stage was done already")

    for place, names in (
        (first_stages, ("train_retriever", "item_features")),
        (workflow, ("make_lists", "evaluate_rows", "LlamaRecLKGTrainer")),
        (report_rows, ("control_scores", "ranker_scores")),
    ):
        for name in names:
            monkeypatch.setattr(place, name, refuse)
    assert run_benchmark(config, progress=False).rows == report.rows


def rounded(value):
    """Means over resamples are products of matrices, whose last bits depend on how many rows there are."""
    if isinstance(value, dict):
        return {name: rounded(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(one) for one in value]
    return round(value, 9) if isinstance(value, float) else value


def test_a_benchmark_that_was_cut_off_goes_on_where_it_was(report, config, monkeypatch):
    """Another variant is trained for; all else is there."""
    letters = {"ranker-letters": {"prompt.readout": "letters"}}
    more = config.changed({"benchmark.variants": {**config.benchmark.variants, **letters}})
    monkeypatch.setattr(first_stages, "train_retriever", lambda *args, **kwargs: pytest.fail("was done already"))
    again = run_benchmark(more, progress=False)
    assert rounded([row for row in again.rows if row["name"] != "ranker-letters"]) == rounded(report.rows)
    assert again.row("ranker-letters")["metrics"]["recall@10"] >= 0


def test_the_retriever_of_the_table_is_needed_and_the_runs_own_is_named_after_what_it_is(config):
    with pytest.raises(LKGError, match="it needs 'retriever'"):
        run_benchmark(config.changed({"benchmark.retrievers": {"retriever-sasrec": {"model_type": "sasrec"}}}))
    for changes, name in (
        ({}, "retriever"),
        ({"retriever.model_type": "sasrec"}, "retriever-sasrec"),
        ({"retriever.item_vectors": "text"}, "text-retriever"),
        ({"retriever.item_vectors": "text+entities", "retriever.model_type": "sasrec"},
         "text+entities-retriever-sasrec"),
    ):  # fmt: skip
        assert benchmark._retriever_name(config.changed(changes).retriever) == name


# -- what an evaluation found -----------------------------------------------------------------------------------------


def test_what_was_found_comes_back_under_its_key_alone(tmp_path):
    ranks = {"retriever": np.array([1, MISS, 12]), "candidates": np.array([2, MISS, 1])}
    found = Evaluated(ranks, np.array([True, False, True]), {"candidates": np.arange(30).reshape(3, 10)})
    assert Evaluated.load(tmp_path, "key") is None
    found.save(tmp_path, "key")
    assert Evaluated.load(tmp_path, "another") is None
    again = Evaluated.load(tmp_path, "key")
    assert list(again.ranks) == list(ranks) and again.found.dtype == bool, "in their order"
    np.testing.assert_array_equal(again.found, found.found)
    for one, other in ((again.ranks, ranks), (again.recommended, found.recommended)):
        assert all(np.array_equal(one[name], other[name]) for name in other)
    assert [path.name for path in (tmp_path / "private").iterdir()] == ["evaluated.safetensors"]
    assert "private/" in (tmp_path / ".gitignore").read_text().splitlines()


def test_the_row_that_all_are_compared_with_is_not_the_runs_own_retriever(config, tmp_path, monkeypatch):
    """Where the run's own retriever reads text, `retriever` is one by ids alone, and neither takes the other's place,
    also when the benchmark goes on after it was cut off."""
    monkeypatch.setenv("LLAMAREC_LKG_CACHE", str(tmp_path / "cache"))
    changed = config.changed({"retriever.item_vectors": "text", "output_dir": str(tmp_path / "run")})
    changed.benchmark.retrievers = {"retriever": {"item_vectors": "ids"}, "text-retriever": {}}
    (name,) = asked = benchmark._retrievers(changed)
    assert name == "retriever" and benchmark._retriever_name(changed.retriever) == "text-retriever"

    def both():
        run = workflow.Workflow(changed, progress=False)
        dataset = run.prepare().dataset
        own, other = run.train_retriever(), run.retriever(f"benchmark-{name}", dataset, name, asked[name])
        return [one.model.config.text_size > 0 for one in (own, other)]

    assert both() == [True, False]
    monkeypatch.setattr(first_stages, "train_retriever", lambda *args, **how: 1 / 0)
    assert both() == [True, False], "reused"


def test_a_variant_reads_the_runs_retrievers_and_never_writes_them(config, tmp_path, monkeypatch):
    monkeypatch.setenv("LLAMAREC_LKG_CACHE", str(tmp_path / "cache"))
    run = workflow.Workflow(config.changed({"output_dir": str(tmp_path / "run")}), progress=False)
    run.train_retriever()
    weights = (tmp_path / "run" / "retriever" / "model.safetensors").read_bytes()
    other = config.changed({"output_dir": str(tmp_path / "run" / "other"), "retriever.hidden_size": 8})
    variant = workflow.Workflow(other, progress=False, retrievers=tmp_path / "run")
    assert variant.train_retriever().model.config.hidden_size == 8
    assert (tmp_path / "run" / "retriever" / "model.safetensors").read_bytes() == weights
    same = config.changed({"output_dir": str(tmp_path / "run" / "same")})
    monkeypatch.setattr(first_stages, "train_retriever", lambda *args, **how: 1 / 0)
    workflow.Workflow(same, progress=False, retrievers=tmp_path / "run").train_retriever()


def test_what_is_wrong_in_a_benchmark_is_said_before_anything_is_trained(config):
    wrong = config.changed({})
    wrong.benchmark.retrievers = {"retriever": {}, "fast": {"lerning_rate": 1}}
    with pytest.raises(LKGError, match="benchmark.retrievers.fast has .'lerning_rate'"):
        run_benchmark(wrong, progress=False)
    wrong.benchmark.retrievers = {"retriever": {"hidden_size": 8}}
    with pytest.raises(LKGError, match="called like the run's own retriever"):
        run_benchmark(wrong, progress=False)
    wrong.benchmark.retrievers, wrong.benchmark.variants = {"retriever": {}}, {"x": {"model.readut": 1}}
    with pytest.raises(LKGError, match="'model.readut'"):
        run_benchmark(wrong, progress=False)
