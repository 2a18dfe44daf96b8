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
    [((0.1, 0.2), "beats the row `retriever`"), ((-0.2, -0.1), "is worse"), ((-0.1, 0.1), "cannot be told")],
)
def test_verdict_calls_a_ranker_what_it_is(interval, words):
    row = {"name": "x", "difference_to_retriever": {"ndcg@10": 0.0}, "difference_ci95": {"ndcg@10": interval}}
    assert words in verdict(row)


def test_rows_about_different_targets_are_refused():
    with pytest.raises(LKGError, match="same targets"):
        Report.from_ranks({"retriever": np.array([1, 2]), "ranker": np.array([1])}, np.array([True, True]), {})
    with pytest.raises(LKGError, match="'retriever' row"):
        Report.from_ranks({"ranker": np.array([1])}, np.array([True]), {})


@pytest.mark.parametrize("extra", [{"users": np.array([1])}, {"slices": {"length": np.array(["short"])}}])
def test_users_and_labels_are_those_of_the_targets(extra):
    with pytest.raises(LKGError, match="same targets .*: 2, .*: 1}"):
        Report.from_ranks({"retriever": np.array([1, 2])}, np.array([True, True]), {}, **extra)


# -- users, seeds, pairs, slices --------------------------------------------------------------------------------------


def test_intervals_are_over_users_where_targets_are_theirs():
    ranks = {"retriever": np.full(80, 2), "ranker": np.repeat(np.random.default_rng(0).integers(1, 9, size=10), 8)}
    found, users = np.ones(80, dtype=bool), np.repeat(np.arange(10), 8)
    plain, clustered = (Report.from_ranks(ranks, found, {}, resamples=500, users=who) for who in (None, users))
    assert (plain.protocol["resampled"], clustered.protocol["resampled"]) == ("80 targets", "10 users")
    for rows in ("rows", "reranked_rows"):
        narrow, wide = (
            next(row for row in getattr(report, rows) if row["name"] == "ranker") for report in (plain, clustered)
        )
        assert narrow["metrics"] == wide["metrics"]
        for interval in ("ci95", "difference_ci95"):
            widths = [float(np.diff(row[interval]["mrr@10"])[0]) for row in (narrow, wide)]
            assert widths[1] > 2 * widths[0]


def seeded(**extra):
    """Three targets of two users; the retriever and what it found once, the ranker with two seeds."""
    ranks = {"retriever": np.array([2, 4, MISS]), "ranker": np.array([[1, 4, MISS], [2, 1, MISS]])}
    return Report.from_ranks(ranks, np.array([True, True, False]), {}, resamples=100, **extra)


def test_a_metric_of_a_target_is_its_mean_over_seeds():
    row = seeded().row("ranker")
    assert row["metrics"]["mrr@10"] == pytest.approx(((1 + 1 / 2) / 2 + (1 / 4 + 1) / 2) / 3)
    assert row["seeds"]["mrr@10"] == pytest.approx([(1 + 1 / 4) / 3, (1 / 2 + 1) / 3])
    assert row["difference_to_retriever"]["mrr@10"] == pytest.approx(row["metrics"]["mrr@10"] - (1 / 2 + 1 / 4) / 3)
    assert set(row["seeds"]) == {"ndcg@10", "mrr@10", "recall@10"} and "seeds" not in seeded().row("retriever")
    assert "| ranker | 0." in seeded().to_markdown().split("## Seeds")[1]


def test_seeds_may_find_other_targets():
    """A target counts among the retrieved as often as it was found, with the ranks of those seeds alone."""
    ranks = {"retriever": np.array([[1, 2, MISS], [MISS, 4, MISS]]), "once": np.array([1, 1, 1])}
    found = np.array([[True, True, False], [False, True, False]])
    report = Report.from_ranks(ranks, found, {}, resamples=50)
    assert report.protocol["retrieved"] == 2  # 1.5, to the even number
    assert report.row("ceiling")["metrics"]["recall@1"] == pytest.approx(3 / 6)
    reranked = {row["name"]: row["metrics"]["mrr@10"] for row in report.reranked_rows}
    assert reranked == pytest.approx({"retriever": (1 + 1 / 2 + 1 / 4) / 3, "once": 1.0, "ceiling": 1.0})


def test_a_row_of_fewer_seeds_stands_beside_the_retriever_of_these_seeds():
    """The variant has the first of two seeds, which found the first target alone."""
    ranks = {
        "retriever": np.array([[2, MISS, 4], [1, 1, 4]]),
        "ranker": np.array([[2, MISS, MISS], [2, 2, MISS]]),
        "variant": np.array([[1, MISS, MISS]]),
    }
    found = np.array([[True, False, False], [True, True, False]])
    slices = {"user": np.array(["new", "known", "known"])}
    report = Report.from_ranks(ranks, found, {}, resamples=50, slices=slices)
    variant = report.row("variant")
    assert variant["metrics"]["mrr@10"] == pytest.approx(1 / 3)
    assert variant["difference_to_retriever"]["mrr@10"] == pytest.approx(1 / 3 - (1 / 2 + 1 / 4) / 3)
    reranked = {row["name"]: row for row in report.reranked_rows}
    assert list(reranked) == ["retriever", "ranker", "variant", "ceiling"]
    assert reranked["variant"]["metrics"]["mrr@10"] == pytest.approx(1.0)
    assert reranked["variant"]["difference_to_retriever"]["mrr@10"] == pytest.approx(1 - 1 / 2)
    # three found in two seeds: ranks 2, 1 and 1 of the retriever
    assert reranked["retriever"]["metrics"]["mrr@10"] == pytest.approx((1 / 2 + 1 + 1) / 3)
    assert reranked["ranker"]["difference_to_retriever"]["mrr@10"] == pytest.approx((3 / 2 - 5 / 2) / 3)
    for part in report.slices:
        assert [row["name"] for row in part["rows"]] == ["retriever", "ranker", "ceiling"], "means over the same seeds"


def test_what_one_seed_found_says_nothing_of_the_targets_of_another():
    """The only seed of the variant found nothing: it has no row among the re-ranked."""
    ranks = {"retriever": np.array([[MISS, 30], [1, 2]]), "variant": np.array([[MISS, MISS]])}
    found = np.array([[False, False], [True, True]])
    report = Report.from_ranks(ranks, found, {}, resamples=20)
    assert [row["name"] for row in report.reranked_rows] == ["retriever", "ceiling"]
    assert report.row("variant")["metrics"]["ndcg@10"] == 0.0


def test_numbers_of_seeds_that_do_not_go_together_are_refused():
    ranks = {"retriever": np.ones((2, 4)), "ranker": np.ones((3, 4))}
    with pytest.raises(LKGError, match="one seed or all the same number .*'ranker': 3"):
        Report.from_ranks(ranks, np.ones(4, dtype=bool), {})


def test_rows_are_compared_in_pairs_where_both_are_there():
    report = seeded(comparisons=[("ranker", "retriever"), ("ranker", "stacker"), ("ranker", "ceiling")])
    assert {(one["row"], one["minus"]) for one in report.comparisons} == {
        ("ranker", "retriever"),
        ("ranker", "ceiling"),
    }
    assert [one["metric"] for one in report.comparisons[:3]] == ["ndcg@10", "mrr@10", "recall@10"]
    row = report.row("ranker")
    for one in report.comparisons[:3]:
        assert one["difference"] == pytest.approx(row["difference_to_retriever"][one["metric"]])
        assert one["ci95"] == pytest.approx(row["difference_ci95"][one["metric"]])
    text = report.to_markdown()
    assert "| row | minus | ndcg@10 | mrr@10 | recall@10 |" in text and "| ranker | ceiling | -0." in text
    assert "minus | ndcg" not in seeded().to_markdown()


def test_slices_are_the_rows_of_a_part_of_the_targets():
    labels = {"history length": np.array(["10 and more", "2 to 9", "10 and more"]), "user": np.array(["a"] * 3)}
    report = seeded(slices=labels, users=np.array([1, 1, 2]))
    assert [(part["slice"], part["value"], part["targets"]) for part in report.slices] == [
        ("history length", "2 to 9", 1), ("history length", "10 and more", 2), ("user", "a", 3)
    ]  # fmt: skip
    (one, more, everyone) = ({row["name"]: row for row in part["rows"]} for part in report.slices)
    assert set(one["ranker"]) == {"name", "metrics", "difference_to_retriever", "difference_ci95"}
    assert set(one["ranker"]["metrics"]) == {"ndcg@10", "recall@10"}
    assert one["retriever"]["metrics"]["ndcg@10"] == pytest.approx(1 / np.log2(5))
    assert one["ranker"]["metrics"]["ndcg@10"] == pytest.approx((1 / np.log2(5) + 1) / 2)
    assert more["ranker"]["difference_to_retriever"]["ndcg@10"] == pytest.approx((1 - 1 / np.log2(3)) / 4)
    for name, row in everyone.items():
        whole = report.row(name)
        assert row["metrics"]["ndcg@10"] == pytest.approx(whole["metrics"]["ndcg@10"])
        assert row["difference_ci95"]["ndcg@10"] == pytest.approx(whole["difference_ci95"]["ndcg@10"])
    text = report.to_markdown()
    assert "| by history length, ndcg@10 | 2 to 9 (1 targets) | 10 and more (2 targets) |" in text
    assert "| ceiling | 1.0000 +" in text.split("## Parts of the targets")[1]
    compared = seeded(slices=labels, comparisons=[("ranker", "retriever")]).to_markdown()
    assert "| ceiling |" not in compared.split("## Parts of the targets")[1]


def test_rows_say_how_much_of_the_catalogue_they_recommend_and_how_popular_it_is():
    counts = np.array([0, 10, 6, 0, 2, 0])
    recommended = {
        "retriever": np.array([[1, 2, 0], [1, 0, 0]]),
        "ranker": np.array([[[1, 2], [3, 4]], [[1, 1], [1, 1]]]),
    }
    report = seeded(recommended=recommended, training_counts=counts)
    facts = {row["name"]: (row.get("coverage@10"), row.get("popularity@10")) for row in report.rows}
    assert facts["retriever"] == pytest.approx((2 / 5, 26 / 3))
    assert facts["ranker"] == pytest.approx(((4 / 5 + 1 / 5) / 2, (18 / 4 + 10) / 2))
    assert facts["ceiling"] == (None, None)
    assert "| retriever | 40.0% | 8.7 |" in report.to_markdown()
    with pytest.raises(LKGError, match="without training_counts"):
        seeded(recommended=recommended)


def test_a_report_with_everything_comes_back_from_its_file_and_an_older_one_too(tmp_path):
    report = seeded(
        users=np.array([1, 1, 2]),
        slices={"user": np.array(["new", "new", "known"])},
        recommended={"ranker": np.array([[1, 2]])},
        training_counts=np.array([0, 3, 1]),
        comparisons=[("ranker", "retriever")],
    )
    report.save(tmp_path)
    content = json.loads((tmp_path / "report.json").read_text())
    assert list(content) == ["protocol", "rows", "reranked_rows", "slices", "comparisons"]
    assert Report(**content).to_markdown() == report.to_markdown() == (tmp_path / "report.md").read_text()
    older = Report(**{name: content[name] for name in ("protocol", "rows", "reranked_rows")})
    assert older.slices == older.comparisons == [] and "## All targets" in older.to_markdown()


def test_evaluation_needs_no_model_library():
    code = (
        "import sys, llamarec_lkg.evaluation.report; print([n for n in ('torch', 'transformers') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr
