"""Reports: rows on the same targets, misses, paired differences, files."""

import json
import subprocess
import sys

import numpy as np
import pytest

from llamarec_lkg.evaluation.metrics import MISS
from llamarec_lkg.evaluation.report import Report, verdict
from llamarec_lkg.utils.errors import LKGError


def report():
    ranks = {
        "popularity": np.array([MISS, 30, MISS, 12]),
        "retriever": np.array([2, 1, 40, 10]),
        "ranker": np.array([1, 1, MISS, 3]),
    }
    found = np.array([True, True, False, True])
    return Report.from_ranks(ranks, found, {"dataset": "tiny", "split": "test"}, resamples=200)


def test_report_rows_metrics_and_differences_by_hand():
    rows = {row["name"]: row for row in report().rows}
    assert list(rows) == ["popularity", "retriever", "ranker", "ceiling"]
    assert rows["ranker"]["metrics"]["recall@10"] == pytest.approx(3 / 4)
    assert rows["ranker"]["metrics"]["mrr@10"] == pytest.approx((1 + 1 + 1 / 3) / 4)
    ndcg = {"ranker": (1 + 1 + 0.5) / 4, "retriever": (1 / np.log2(3) + 1 + 1 / np.log2(11)) / 4}
    for name, value in ndcg.items():
        assert rows[name]["metrics"]["ndcg@10"] == pytest.approx(value)
    assert rows["ranker"]["difference_to_retriever"]["ndcg@10"] == pytest.approx(ndcg["ranker"] - ndcg["retriever"])
    assert rows["retriever"]["difference_ci95"]["ndcg@10"] == (0.0, 0.0)
    assert rows["ceiling"]["metrics"]["recall@1"] == pytest.approx(3 / 4)
    low, high = rows["ranker"]["ci95"]["ndcg@10"]
    assert low < ndcg["ranker"] < high


def test_reranked_subset_is_shown_apart():
    rows = {row["name"]: row for row in report().reranked_rows}
    assert rows["ranker"]["metrics"]["recall@10"] == 1.0
    assert rows["retriever"]["metrics"]["recall@10"] == 1.0
    assert report().protocol["retrieved"] == 3


def test_report_files_and_their_form(tmp_path):
    report().save(tmp_path)
    content = json.loads((tmp_path / "report.json").read_text())
    assert {"protocol", "rows"} <= set(content)
    assert {"name", "metrics", "ci95", "difference_to_retriever"} <= set(content["rows"][0])
    assert Report(**content).row("ranker")["metrics"] == report().row("ranker")["metrics"]
    text = (tmp_path / "report.md").read_text()
    assert "| ranker |" in text and "Re-ranked targets only" in text
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("interval", "words"),
    [((0.1, 0.2), "beats its retriever"), ((-0.2, -0.1), "is worse"), ((-0.1, 0.1), "cannot be told")],
)
def test_verdict_calls_a_ranker_what_it_is(interval, words):
    row = {"name": "x", "difference_to_retriever": {"ndcg@10": 0.0}, "difference_ci95": {"ndcg@10": interval}}
    assert words in verdict(row)


def test_rows_about_different_targets_are_refused():
    with pytest.raises(LKGError, match="same targets"):
        Report.from_ranks({"retriever": np.array([1, 2]), "ranker": np.array([1])}, np.array([True, True]), {})
    with pytest.raises(LKGError, match="'retriever' row"):
        Report.from_ranks({"ranker": np.array([1])}, np.array([True]), {})


def test_evaluation_needs_no_model_library():
    code = (
        "import sys, llamarec_lkg.evaluation.report; print([n for n in ('torch', 'transformers') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr
