"""MRR, NDCG and Recall for `evaluate`: cases worked by hand, the library's own numbers, Spaces that stand alone."""

import json
import math
import os
import subprocess
import sys
import textwrap
import types
from pathlib import Path

import evaluate
import numpy as np
import pytest
import torch
from huggingface_hub import SpaceCard

from llamarec_lkg import LKGError
from llamarec_lkg.cli import main
from llamarec_lkg.evaluation.evaluate_metrics import METRICS, MRR, NDCG, Recall
from llamarec_lkg.evaluation.metric_spaces import export_metric_spaces, metric_source
from llamarec_lkg.evaluation.metrics import mean_metrics, target_ranks


pytestmark = pytest.mark.hub
NAMES = ["mrr", "ndcg", "recall"]
# ranks 1, 3, missed, and 2: the tie goes to the earlier candidate
SCORES = [[0.9, 0.1], [0.5, 0.6, 0.4], [0.3, 0.2, 0.1], [7.0, 7.0]]
TARGETS = [0, 2, -1, 1]


def compute(metric, predictions, references, config=None, **options):
    return metric(config, keep_in_memory=True).compute(predictions=predictions, references=references, **options)


def test_by_hand():
    assert compute(MRR, SCORES, TARGETS, k=10) == {"mrr@10": pytest.approx((1 + 1 / 3 + 0 + 1 / 2) / 4)}
    ndcg = (1 + 1 / math.log2(4) + 0 + 1 / math.log2(3)) / 4
    assert compute(NDCG, SCORES, TARGETS) == {"ndcg@10": pytest.approx(ndcg)}
    assert compute(Recall, SCORES, TARGETS, k=[1, 2, 3]) == {"recall@1": 0.25, "recall@2": 0.5, "recall@3": 0.75}
    assert compute(MRR, SCORES, TARGETS, k=2) == {"mrr@2": pytest.approx((1 + 1 / 2) / 4)}
    assert compute(MRR, SCORES, TARGETS, k=[None, 1]) == {"mrr": pytest.approx((1 + 1 / 3 + 1 / 2) / 4), "mrr@1": 0.25}


def test_ranked_item_ids_say_the_same_as_scores():
    ranked = [["a", "b"], ["b", "a", "c"], ["a", "b", "c"], ["x", "y"]]
    for metric in METRICS:
        wanted = compute(metric, SCORES, TARGETS, k=[1, 2, 10])
        assert compute(metric, ranked, ["a", "c", "z", "y"], "items", k=[1, 2, 10]) == wanted
        assert compute(metric, ranked, ["a", "c", None, "y"], "items", k=[1, 2, 10]) == wanted
    for items in ([[50, 181]], np.array([[50, 181]]), torch.tensor([[50, 181]]), [["50", "181"]]):
        for target in ([181], np.array([181]), torch.tensor([181]), ["181"]):
            assert compute(MRR, items, target, "items") == {"mrr@10": 0.5}, "7 and '7' are one id"


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("metric", METRICS)
def test_equal_to_the_library_on_random_lists_with_ties_misses_and_padding(metric, seed):
    generator = np.random.default_rng(seed)
    scores = generator.integers(0, 6, size=(200, 20)).astype(float)  # many ties
    lengths = generator.integers(2, 21, size=200)
    mask = np.arange(20) < lengths[:, None]
    labels = generator.integers(-1, lengths)
    ranks = target_ranks(scores, labels, mask)
    assert (labels < 0).any() and len(np.unique(ranks)) > 10
    wanted = {name: value for name, value in mean_metrics(ranks, (1, 5, 10)).items() if metric.metric in name}
    ragged = [row[:length].tolist() for row, length in zip(scores, lengths, strict=True)]
    padded = np.where(mask, scores, -np.inf)
    for predictions in (ragged, padded, torch.from_numpy(padded)):
        assert compute(metric, predictions, labels, k=[1, 5, 10]) == wanted
    assert compute(metric, ragged, [None if label < 0 else int(label) for label in labels], k=[1, 5, 10]) == wanted


def test_a_target_that_is_padding_is_a_miss_as_masked_targets_are():
    assert compute(Recall, [[0.1, -np.inf]], [1]) == {"recall@10": 0.0}
    assert compute(Recall, [[], [0.5]], [-1, 0]) == {"recall@10": 0.5}


def test_adding_bit_by_bit_and_combining():
    combined = evaluate.combine([metric(keep_in_memory=True) for metric in METRICS])
    whole = combined.compute(predictions=SCORES, references=TARGETS, k=5)
    assert sorted(whole) == ["mrr@5", "ndcg@5", "recall@5"]
    for scores, target in zip(SCORES, TARGETS, strict=True):
        combined.add(prediction=scores, reference=target)
    assert combined.compute(k=5) == whole
    metric = NDCG(keep_in_memory=True)
    metric.add_batch(predictions=SCORES[:3], references=TARGETS[:3])
    metric.add(prediction=SCORES[3], reference=TARGETS[3])
    assert metric.compute(k=5) == {"ndcg@5": whole["ndcg@5"]}
    assert [one.name for one in combined.evaluation_modules] == NAMES


@pytest.mark.parametrize(
    ("predictions", "references", "config", "options", "message"),
    [
        ([[1, 2]], [2], None, {}, "List 0 has 2 scores, but its reference is 2"),
        ([[1, 2], []], [0, 0], None, {}, "List 1 has 0 scores, but its reference is 0"),
        ([["a", "b"]], ["b"], None, {}, "List 0 is .* with the reference 'b'. Needed are .* configuration 'items'"),
        ([[1, 2]], [0.5], None, {}, "with the reference 0.5"),
        ([[1, None]], [0], None, {}, "List 0 is .1, None."),
        ([[1, float("nan")]], [0], None, {}, "1 of 2 scores are not finite"),
        ([[1, 2]], [0, 1], None, {}, "Each list of predictions needs a reference"),
        ([[1, 2]], None, None, {}, "Each list of predictions needs a reference"),
        (["ab"], ["a"], "items", {}, "List 0 is 'ab'"),
        ([["a", "b", "a"]], ["a"], "items", {}, "List 0 names item 'a' more than once"),
        ([[1, 2]], [0], None, {"k": 0}, "k is 0; it is a whole number"),
        ([[1, 2]], [0], None, {"k": []}, r"k is \[\]"),
        ([[1, 2]], [0], None, {"k": [5, 1.5]}, r"k is \[5, 1.5\]"),
        ([[1, 2]], [0], "ids", {}, "no configuration 'ids'. It is 'scores' .* or 'items'"),
    ],
)
def test_bad_input_is_named(predictions, references, config, options, message):
    with pytest.raises(ValueError, match=message):
        compute(MRR, predictions, references, config, **options)


def test_errors_are_those_of_the_library():
    with pytest.raises(LKGError, match="There are no lists"):
        compute(MRR, [], [])


@pytest.fixture(scope="module")
def spaces(tmp_path_factory):
    folder = tmp_path_factory.mktemp("spaces")
    export_metric_spaces(folder, owner="me")
    return folder


def test_a_space_has_its_files_and_a_card_the_hub_can_read(spaces):
    for metric in METRICS:
        folder = spaces / metric.metric
        assert sorted(path.name for path in folder.iterdir()) == sorted(
            [f"{metric.metric}.py", "app.py", "requirements.txt", "README.md"]
        )
        data = SpaceCard.load(folder / "README.md").data
        assert (data.sdk, data.app_file, data.license) == ("gradio", "app.py", "apache-2.0")
        assert set(data.tags) >= {"evaluate", "metric"} and data.title.startswith(metric.__name__)
        assert data.sdk_version.count(".") == 2 and data.get("colorFrom") and data.get("emoji")
        for name in ("app.py", f"{metric.metric}.py"):
            text = (folder / name).read_text(encoding="utf-8")
            compile(text, name, "exec")
            assert "llamarec_lkg import" not in text and "import llamarec" not in text
            assert max(map(len, text.splitlines())) <= 119
        assert "{{" not in (folder / "README.md").read_text(encoding="utf-8")
    assert set((spaces / "mrr" / "requirements.txt").read_text().split()) == {
        "datasets>=4.0",
        "evaluate>=0.4.6",
        "numpy>=1.26",
    }


def test_exporting_again_keeps_what_else_is_there(tmp_path):
    (tmp_path / "mrr" / ".git").mkdir(parents=True)
    (tmp_path / "mrr" / "mrr.py").write_text("old")
    assert main(["export-metrics", str(tmp_path), "--owner", "you"]) == 0
    assert (tmp_path / "mrr" / ".git").is_dir()
    assert (tmp_path / "mrr" / "mrr.py").read_text(encoding="utf-8") == metric_source("MRR")
    assert 'evaluate.load("you/ndcg")' in (tmp_path / "ndcg" / "README.md").read_text(encoding="utf-8")


def test_spaces_stand_alone_offline_and_equal_the_library(spaces, tmp_path):
    """A new process that cannot import this package nor reach the Hub loads the folders, and runs the cards' lines."""
    generator = np.random.default_rng(7)
    scores = generator.integers(0, 4, size=(50, 12)).astype(float)
    labels = generator.integers(-1, 12, size=50)
    (tmp_path / "lists.json").write_text(json.dumps([scores.tolist(), labels.tolist()]))
    code = """
        import contextlib, io, json, re, sys
        sys.modules["llamarec_lkg"] = None
        import evaluate
        scores, labels = json.load(open("lists.json"))
        names = ["mrr", "ndcg", "recall"]
        loaded = [evaluate.load(f"{folder}/{name}") for name in names]
        result = {"combined": evaluate.combine(loaded).compute(predictions=scores, references=labels, k=[1, 5, 10])}
        for name in names:
            text = open(f"{folder}/{name}/README.md", encoding="utf-8").read().replace("me/", f"{folder}/")
            said = io.StringIO()
            with contextlib.redirect_stdout(said):
                exec("".join(re.findall("```python(.*?)```", text, re.DOTALL)))
            result[name] = said.getvalue().splitlines()
        print(json.dumps(result))
    """
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "HF_EVALUATE_OFFLINE": "1"}
    code = f"folder = {str(spaces)!r}\n" + textwrap.dedent(code)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=120
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    wanted = mean_metrics(target_ranks(scores, labels), (1, 5, 10))
    assert result["combined"] == pytest.approx(wanted, abs=1e-15)
    # the cards: a target on rank 2 and a miss; then one on rank 3 and a miss
    assert result["mrr"] == ["{'mrr@10': 0.25}", f"{{'mrr@1': 0.0, 'mrr@10': {1 / 6}}}"]
    assert result["ndcg"] == [f"{{'ndcg@10': {1 / math.log2(3) / 2}}}", "{'ndcg@1': 0.0, 'ndcg@10': 0.25}"]
    assert result["recall"] == ["{'recall@10': 0.5}", "{'recall@1': 0.0, 'recall@10': 0.5}"]


class Recorder:
    """Stands where gradio is not installed: keeps what an app hands it."""

    class Error(Exception):
        pass

    def __init__(self):
        self.interfaces = []

    def __getattr__(self, name):
        return lambda *args, **kwargs: (args, kwargs)

    def Interface(self, **settings):  # noqa: N802
        self.interfaces.append(settings)


@pytest.mark.parametrize("metric", METRICS)
def test_the_app_of_a_space_answers_its_own_examples(spaces, metric, monkeypatch):
    gradio = Recorder()
    monkeypatch.setitem(sys.modules, "gradio", gradio)
    monkeypatch.syspath_prepend(str(spaces / metric.metric))
    monkeypatch.delitem(sys.modules, metric.metric, raising=False)
    app = types.ModuleType("app")
    exec(Path(spaces / metric.metric / "app.py").read_text(encoding="utf-8"), app.__dict__)
    sys.modules.pop(metric.metric)
    (settings,) = gradio.interfaces
    assert settings["description"] == metric.text
    for example in settings["examples"]:
        assert list(settings["fn"](*example)) == [f"{metric.metric}@10"]
    assert list(settings["fn"]("[[1, 2]]", "[0]", "1, 5", "scores")) == [f"{metric.metric}@1", f"{metric.metric}@5"]
    for bad in ("[[1, 2", "[[1, null]]"):
        with pytest.raises(Recorder.Error):
            settings["fn"](bad, "[0]", "10", "scores")
