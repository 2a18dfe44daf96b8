"""Reports: rows on the same targets, misses, paired differences, controls, files."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import examples, model, processor

from llamarec_lkg.evaluation.metrics import MISS
from llamarec_lkg.evaluation.report import Report, verdict
from llamarec_lkg.ranking.ablations import CONTROLS, control_scores, other_users
from llamarec_lkg.ranking.scoring import ranker_scores, reranked
from llamarec_lkg.retrieval.base import retriever_ranks
from llamarec_lkg.retrieval.popularity import PopularityRetriever
from llamarec_lkg.utils.errors import LKGError


@pytest.fixture
def proc(film_dataset):
    return processor(film_dataset).fit(examples(film_dataset))


def test_scores_equal_the_models_and_missed_targets_are_not_run(proc, film_dataset):
    lists = examples(film_dataset, count=5)
    lists[2] = replace(lists[2], label=-1)
    lists[3] = replace(lists[3], candidates=lists[3].candidates[:3], retrieval_scores=np.zeros(3, np.float32), label=0)
    ranker = model(proc)
    scores = ranker_scores(ranker, proc, lists, batch_size=2, progress=False)
    assert np.isnan(scores[2]).all()
    assert np.isneginf(scores[3, 3:]).all()
    with torch.no_grad():
        alone = ranker(**proc([lists[4]])).logits[0].numpy()
    np.testing.assert_allclose(scores[4], alone, rtol=1e-4, atol=1e-4)
    ranks = reranked(scores, lists)
    assert ranks[2] == MISS and 1 <= ranks[3] <= 3


def test_popularity_ranks_by_hand(make_dataset):
    rows = [("a", 1, 0), ("a", 2, 1), ("a", 3, 2), ("a", 4, 3), ("b", 2, 0), ("b", 5, 1), ("b", 6, 2), ("b", 4, 3)]
    dataset = make_dataset(rows)
    # trained on: 1, 2 by a; 2, 5 by b. a's target 4 stands, by id, behind 5 and beside 6; 1, 2, 3 are its history
    ranks = retriever_ranks(dataset, PopularityRetriever.from_dataset(dataset), "test")
    assert ranks.tolist() == [2, 3]


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


@pytest.mark.parametrize("name", CONTROLS)
def test_each_control_takes_its_thing_away_and_gives_it_back(proc, film_dataset, name):
    ranker, lists = model(proc), examples(film_dataset)
    torch.manual_seed(0)
    with torch.no_grad():
        ranker.preference.user_embedding.weight.normal_()
    before = ranker_scores(ranker, proc, lists, progress=False)
    seen = []
    hook = ranker.register_forward_hook(
        lambda module, args, kwargs, output: seen.append((kwargs, output)), with_kwargs=True
    )
    inside = control_scores(name, ranker, proc, lists, progress=False)
    hook.remove()
    assert not np.allclose(before, inside)
    batch, output = seen[0]
    if name == "no-kg":
        assert not batch["evidence"].any() and not batch["path_attention_mask"].any()
    if name == "uniform-preferences":
        torch.testing.assert_close(output.preferences, torch.full_like(output.preferences, 1 / len(proc.relations)))
    if name == "other-user-preferences":
        assert (batch["user_ids"] != torch.tensor([example.user for example in lists])).all()
    np.testing.assert_array_equal(ranker_scores(ranker, proc, lists, progress=False), before)


def test_other_users_are_others_whatever_the_batches(film_dataset):
    lists = examples(film_dataset, count=12)
    others = other_users(lists, seed=1)
    assert all(example.user != other.user for example, other in zip(lists, others, strict=True))
    assert sorted(id(other) for other in others) == sorted(id(example) for example in lists)


def test_scores_that_are_not_numbers_are_an_error_not_the_retrievers_order(proc, film_dataset):
    ranker = model(proc)
    with torch.no_grad():
        ranker.fusion.letter_scale.fill_(torch.nan)
    with pytest.raises(ValueError, match="not finite"):
        ranker_scores(ranker, proc, examples(film_dataset), progress=False)


def test_an_unknown_control_is_refused(proc):
    with pytest.raises(LKGError, match="no control 'nothing'"):
        control_scores("nothing", model(proc), proc, [])
