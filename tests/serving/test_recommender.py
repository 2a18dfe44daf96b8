"""Recommending for one user: raw ids in, titles, scores and paths out; lists of any length."""

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import backbone, examples, processor

from llamarec_lkg import LKGError, LlamaRecLKGForRanking, Recommender
from llamarec_lkg.data.schema import RankingExample
from llamarec_lkg.retrieval.modeling_lrurec import LRURecConfig, LRURecForRetrieval
from llamarec_lkg.serving.sliding_windows import rank_windows


@pytest.fixture
def saved(film_dataset, tmp_path):
    folder = tmp_path / "run"
    backbone().save_pretrained(tmp_path / "backbone")
    proc = processor(film_dataset).fit(examples(film_dataset))
    ranker = LlamaRecLKGForRanking.from_backbone(str(tmp_path / "backbone"), proc.model_config(evidence_weight=2.0))
    ranker.save_pretrained(folder, include_backbone=False)
    proc.save_pretrained(folder)
    torch.manual_seed(0)
    LRURecForRetrieval(LRURecConfig(num_items=6, hidden_size=8)).save_pretrained(folder / "retriever")
    return folder


def test_recommendations_name_items_scores_and_the_paths_that_spoke(saved):
    recommender = Recommender.from_pretrained(saved)
    items = recommender.recommend(["1"], user="2", k=3)
    assert [item.rank for item in items] == [1, 2, 3]
    assert all(item.item_id != "1" for item in items), "the history is not recommended again"
    assert items[0].score >= items[1].score >= items[2].score
    everything = recommender.recommend(["1"], user="2", k=5)
    insider = next(item for item in everything if item.title == "Insider, The (1999)")
    assert "Heat (1995) -> DIRECTED_BY Mann -> Insider, The (1999)" in insider.paths
    assert insider.relations["DIRECTED_BY"] > 0
    assert "Insider" in str(insider) and "->" in str(insider)


def test_given_candidates_a_single_one_and_an_unknown_user(saved):
    recommender = Recommender.from_pretrained(saved)
    chosen = recommender.recommend(["1"], candidates=["2", "3", "4"])
    assert {item.item_id for item in chosen} == {"2", "3", "4"}
    again = recommender.recommend(["1"], candidates=["1", "2"])
    assert all(np.isfinite(item.retrieval_score) for item in again), "also what the history holds is ranked"
    assert recommender.recommend(["1"], candidates=["2"])[0].item_id == "2"
    unknown = recommender.recommend(["1"], user="nobody", candidates=["2", "3", "4"])
    assert [item.score for item in unknown] == [item.score for item in chosen]
    assert len(recommender.recommend([], k=2)) == 2, "an empty history is ranked by retriever and titles"


@pytest.mark.parametrize("value", ["50", 50, 5.0, b"5", {"50": 1}, {"1", "2"}, np.array("5"), None])
def test_a_single_id_is_no_list_whoever_is_asked(saved, value):
    """A string would be read letter by letter, a set in any order."""
    recommender = Recommender.from_pretrained(saved)
    processor = recommender.processor
    asked = {
        "history": [recommender.recommend, recommender.preferences, lambda ids: processor.example(ids, ["1", "2"])],
        "candidates": [lambda ids: processor.example(["1"], ids)],
    }
    if value is not None:  # which asks the retriever
        asked["candidates"].append(lambda ids: recommender.recommend(["1"], candidates=ids))
    single = r"Give \['50?'\] for a single one" if value in ("50", 50) else ""
    for name, ways in asked.items():
        for ask in ways:
            with pytest.raises(LKGError, match=f"'{name}' is .*a list of item ids, .*it may be empty.*{single}"):
                ask(value)


def test_any_list_of_ids_will_do_and_a_number_is_its_digits(saved):
    recommender = Recommender.from_pretrained(saved)
    wanted = recommender.recommend(["3", "1"], candidates=["2", "4"])
    lists = (
        ("3", "1"),
        [3, 1],
        np.array([3, 1]),
        np.array(["3", "1"]),
        pd.Series([3, 1]),
        (raw for raw in ["3", "1"]),
    )
    for history in lists:
        assert recommender.recommend(history, candidates=(raw for raw in [2, 4])) == wanted
    with pytest.raises(LKGError, match="the first is 3.5"):
        recommender.recommend([3.5])


def test_model_and_retriever_are_on_one_device(saved):
    """The device without memory stands for a GPU."""
    recommender = Recommender.from_pretrained(saved, device="meta")
    assert {part.device.type for part in (recommender.model, recommender.retriever.model)} == {"meta"}
    recommender = Recommender.from_pretrained(saved)
    assert {part.device.type for part in (recommender.model, recommender.retriever.model)} == {"cpu"}
    recommender = Recommender(recommender.model.to("meta"), recommender.processor, recommender.retriever)
    assert recommender.retriever.model.device.type == "meta", "the retriever follows"


def long_list(count):
    return RankingExample(0, np.array([1]), np.ones(1), np.arange(1, count + 1), np.linspace(1, 0, count), -1)


@pytest.mark.parametrize("count", [3, 8, 9, 20, 57])
def test_windows_bring_the_best_item_to_the_top_from_anywhere(count):
    """All lists in the same passes; a list's score is the sum of its parts."""
    sizes, passes = [], []

    def score(rows, windows):
        sizes.extend(len(window.candidates) for window in windows)
        passes.append(rows)
        return [
            np.stack([np.where(window.candidates == row + 1, 10.0, 0.0), -window.candidates / 100], axis=1)
            for row, window in zip(rows, windows, strict=True)
        ]

    ranked = rank_windows(score, [long_list(count)] * count, window=8)
    for best, (order, parts) in enumerate(ranked):
        assert sorted(order.tolist()) == list(range(count))
        assert order[0] == best and parts[best].tolist() == pytest.approx([10.0, -(best + 1) / 100])
    assert max(sizes) <= 8 and all(rows == list(range(count)) for rows in passes)
