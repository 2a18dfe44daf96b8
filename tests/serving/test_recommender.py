"""Recommending for one user: raw ids in, titles, scores and paths out; lists of any length."""

import copy
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import backbone, examples, processor, tokenizer

from llamarec_lkg import LKGError, LlamaRecLKGForRanking, Recommender
from llamarec_lkg.data.schema import RankingExample
from llamarec_lkg.retrieval.fused import CandidateWeights, FusedRetriever
from llamarec_lkg.retrieval.item_features import item_features
from llamarec_lkg.retrieval.modeling_lrurec import LRURecConfig, LRURecForRetrieval
from llamarec_lkg.retrieval.sequential import NeuralRetriever
from llamarec_lkg.retrieval.training import RetrieverTrainingArguments, train_retriever
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


def test_threads_share_a_recommender_whatever_mode_its_parts_came_in(saved):
    """Else one thread would put the retriever back in train mode, with dropout, while another scores with it."""
    parts = Recommender.from_pretrained(saved)
    parts.model.train(), parts.retriever.model.train()
    recommender = Recommender(parts.model, parts.processor, parts.retriever)
    assert not any(part.training for model in (parts.model, parts.retriever.model) for part in model.modules())
    histories = [["1"], ["2", "3"], [], ["4", "5", "1"]] * 10
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(recommender.recommend, histories))
    assert found == list(map(recommender.recommend, histories))


def test_candidate_weights_are_asked_where_candidates_are_to_be_found(film_dataset, saved, monkeypatch):
    weights = CandidateWeights(1.0, [0.0, 0.5, 0.5], [0.0, 0.1, 0.0], 0.2)
    proc = processor(film_dataset, candidate_weights=weights).fit(examples(film_dataset))
    recommender = Recommender.from_pretrained(saved)
    given = {"history": ["1"], "candidates": ["2", "3", "4"]}
    alone = Recommender(recommender.model, proc)
    assert [item.retrieval_score for item in alone.recommend(**given)] == [0, 0, 0]
    with pytest.raises(LKGError, match="no retriever to find candidates"):
        alone.recommend(["1"])

    joined, join = [], FusedRetriever.join
    monkeypatch.setattr(
        FusedRetriever, "join", lambda self, *parts: joined.append(len(parts[0])) or join(self, *parts)
    )
    both = Recommender(recommender.model, proc, recommender.retriever)
    wanted = both.recommend(**given)
    assert not joined
    requests = [both.request(**given), both.request(["1"]), both.request(["5", "6"])]
    lists = both.retrieve(requests)
    assert joined == [2] and lists[0].candidates.tolist() == [2, 3, 4]
    assert sorted(lists[1].candidates) == [2, 3, 4, 5, 6] and sorted(lists[2].candidates) == [1, 2, 3, 4]
    again = both.describe(both.rank(lists[:1])[0])
    assert [item.score for item in again] == pytest.approx([item.score for item in wanted], rel=1e-5)
    fused = [proc.fused_retriever(recommender.retriever) for _ in range(2)]
    tables = {id(index._candidates_by_column) for one in fused for index in (one.index, one.recent_index)}
    assert len(tables) == 1, "the catalogue is not turned round for each request"


# -- items that come later --------------------------------------------------------------------------------------------


NEW_FILMS = pd.DataFrame(
    {
        "item_id": ["7", "8"],
        "title": ["Ali (2001)", "Arlo"],
        "directed_by": ["Mann", "Sohn"],
        "genre_is": ["Drama", None],
    }
)


@pytest.fixture(params=["text+entities", "entities"])
def content_recommender(film_dataset, tmp_path, request):
    """Ranker and retriever that know items by more than their ids, with candidates by all parts together."""
    backbone().save_pretrained(tmp_path / "backbone")
    tokenizer().save_pretrained(tmp_path / "backbone")
    place = str(tmp_path / "backbone")
    weights = CandidateWeights(1.0, [0.0, 0.5, 0.5], [0.0, 0.1, 0.0], 0.2)
    proc = processor(film_dataset, candidate_weights=weights, item_counts=10 * film_dataset.training_counts()[1:])
    proc.fit(examples(film_dataset))
    ranker = LlamaRecLKGForRanking.from_backbone(place, proc.model_config(evidence_weight=2.0))
    with torch.no_grad():
        torch.manual_seed(1)
        ranker.fusion.popularity_weight.fill_(0.3)
        ranker.fusion.recent_weight.fill_(0.2)
        for weight in ranker.readout.parameters():
            weight.add_(0.3 * torch.randn_like(weight))
    reads = {"backbone": place, "backbone_name": place, "layers": 1, "size": 4, "graph": proc.knowledge_graph}
    features = item_features(request.param, film_dataset.items, **reads, progress=False)
    args = RetrieverTrainingArguments(hidden_size=8, max_steps=2, eval_steps=2, item_vectors=request.param)
    retriever, _ = train_retriever(film_dataset, args, features=features, progress=False)
    return Recommender(ranker, proc, NeuralRetriever(retriever))


def test_an_item_that_comes_later_is_recommended_with_reasons_and_saved(content_recommender, tmp_path):
    recommender = content_recommender
    before = {item.item_id for item in recommender.recommend(["1"], k=10)}
    if recommender.retriever.model.config.text_size:
        with pytest.raises(LKGError, match="was a folder, and has no name .* Give it as `text_backbone`"):
            recommender.add_items(NEW_FILMS)
    recommender.add_items(NEW_FILMS, text_backbone=tmp_path / "backbone")
    items = recommender.recommend(["1"], k=10, num_reasons=10)
    assert {item.item_id for item in items} == before | {"7", "8"}
    new = next(item for item in items if item.item_id == "7")
    assert new.title == "Ali (2001)" and "Heat (1995) -> DIRECTED_BY Mann -> Ali (2001)" in new.paths
    for item in items:
        assert sum(reason.share for reason in item.reasons) == pytest.approx(item.score, abs=1e-4)
    assert {"retriever", "language model", "popularity"} <= {reason.kind for reason in new.reasons}
    assert next(reason for reason in new.reasons if reason.kind == "popularity").share < 0, "nobody chose it yet"
    assert recommender.recommend(["7", "8"], k=3), "and it can be in a history"
    recommender.save_pretrained(tmp_path / "grown")
    again = Recommender.from_pretrained(tmp_path / "grown").recommend(["1"], k=10, num_reasons=10)
    assert [item.item_id for item in again] == [item.item_id for item in items]
    assert [item.score for item in again] == pytest.approx([item.score for item in items], rel=1e-4, abs=1e-4)


def test_the_retriever_finds_a_new_item_by_what_it_shares(content_recommender, tmp_path):
    """The same film under another id is found as the first one is, but for what its own id adds."""
    recommender = content_recommender
    twin = {"item_id": ["h"], "title": ["Heat (1995)"], "directed_by": ["Mann"], "genre_is": ["Action|Crime"]}
    recommender.add_items(pd.DataFrame(twin), text_backbone=tmp_path / "backbone")
    content = recommender.retriever.model.item_content()
    torch.testing.assert_close(content[7], content[1], rtol=1e-4, atol=1e-4)
    assert content[1].abs().max() > 1e-3


@pytest.mark.parametrize("saved_between", [False, True])
def test_items_added_in_two_steps_are_found_as_in_one(content_recommender, tmp_path, saved_between):
    """The first step makes an entity of one trained item one of two: the retriever still counts those it knows."""
    first = pd.DataFrame(
        {"item_id": ["a", "b"], "title": ["A", "B"], "directed_by": ["Kelly", None], "genre_is": ["Crime", "Horror"]}
    )
    second = pd.DataFrame({"item_id": ["c"], "title": ["C"], "directed_by": ["Mann"], "genre_is": ["Comedy|Family"]})
    recommender, place = content_recommender, {"text_backbone": tmp_path / "backbone"}
    at_once = Recommender(copy.deepcopy(recommender.model), recommender.processor, recommender.retriever)
    at_once.add_items(pd.concat([first, second], ignore_index=True), **place)
    recommender.add_items(first, **place)
    if saved_between:
        recommender.save_pretrained(tmp_path / "grown")
        recommender = Recommender.from_pretrained(tmp_path / "grown")
    recommender.add_items(second, **place)
    assert recommender.retriever.model.config.num_trained_items == 6
    found, wanted = (one.retriever.model.item_content for one in (recommender, at_once))
    assert torch.equal(found.entity_offsets, wanted.entity_offsets)
    for row in range(7, 10):
        links = [part.entity_indices[slice(*part.entity_offsets[row : row + 2])] for part in (found, wanted)]
        assert sorted(links[0].tolist()) == sorted(links[1].tolist())
    assert len(links[0]) == 3, "Mann, Comedy and Family"
    scores = [one.retriever.score([np.array([1, 9])]) for one in (recommender, at_once)]
    assert scores[0] == pytest.approx(scores[1], rel=1e-4, abs=1e-4)


def test_nothing_changes_where_an_item_cannot_be_added(content_recommender, saved):
    by_ids = Recommender.from_pretrained(saved)
    for recommender, table, message in (
        (content_recommender, NEW_FILMS.assign(item_id=["7", "1"]), r"the items \['1'\]"),
        (content_recommender, NEW_FILMS.assign(studio="A24"), r"the relations \['STUDIO'\]"),
        (by_ids, NEW_FILMS, "knows items by their ids alone.*retriever.item_vectors=text"),
    ):
        catalogue = recommender.model.config.catalogue
        with pytest.raises(LKGError, match=message):
            recommender.add_items(table)
        assert len(recommender.item_ids) == 6 and recommender.model.config.catalogue == catalogue
        assert recommender.retriever.num_items == 6 and recommender.recommend(["1"], k=2)


def test_without_a_retriever_new_items_are_ranked_where_they_are_given(saved):
    recommender = Recommender.from_pretrained(saved)
    alone = Recommender(recommender.model, recommender.processor)
    alone.add_items(NEW_FILMS)
    best = alone.recommend(["1"], candidates=["8", "7", "3"], k=3)
    assert {item.item_id for item in best} == {"3", "7", "8"}
    assert next(item for item in best if item.item_id == "7").relations["DIRECTED_BY"] > 0


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
    for best, (order, parts, scores) in enumerate(ranked):
        assert sorted(order.tolist()) == list(range(count))
        assert scores[best] == pytest.approx(parts[best].sum()) and (np.diff(scores[order]) < 0).all()
        assert order[0] == best and parts[best].tolist() == pytest.approx([10.0, -(best + 1) / 100])
    assert max(sizes) <= 8 and all(rows == list(range(count)) for rows in passes)


@pytest.mark.parametrize("count, window", [(40, 20), (41, 20), (9, 8), (57, 8), (7, 2), (5, 1)])
def test_scores_fall_along_the_order_whatever_company_changes(count, window):
    """A model that likes each candidate better or worse in each window. Whoever sorts by score, from whatever order,
    finds the ranking; inside a window the differences stay."""
    for seed in range(20):
        generator, last = np.random.default_rng(seed), {}

        def score(rows, windows, generator=generator, last=last):
            found = [generator.normal(generator.normal(0, 3), 1, (len(one.candidates), 4)) for one in windows]
            last.update({int(item): found[0] for item in windows[0].candidates})
            return [parts.astype(np.float32) for parts in found]

        ((order, parts, scores),) = rank_windows(score, [long_list(count)], window=window)
        shuffled = generator.permutation(count)
        assert shuffled[np.argsort(-scores[shuffled])].tolist() == order.tolist()
        lowered = parts.sum(1) - scores
        assert (lowered > -1e-9).all() and lowered[order[:window]].max() == 0, "the best window says what it said"
        company = [id(last[item + 1]) for item in range(count)]
        for one in set(company):
            same = lowered[[item for item in range(count) if company[item] == one]]
            assert np.ptp(same) < 1e-9
