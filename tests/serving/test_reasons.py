"""Reasons: their shares add up to the score, name what spoke, and come as records, sentences and pictures."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import backbone, examples, processor, tokenizer

from llamarec_lkg import LlamaRecLKGForRanking, LlamaRecLKGProcessor, Recommender
from llamarec_lkg.data.schema import CO_RATED, Triples
from llamarec_lkg.graph.co_ratings import co_ratings
from llamarec_lkg.graph.knowledge_graph import KnowledgeGraph
from llamarec_lkg.serving.drawings import draw_preferences, draw_reasons
from llamarec_lkg.serving.questions import Ranking
from llamarec_lkg.serving.reasons import (
    OTHER_PATHS,
    PATH,
    WINDOW,
    Reason,
    Recommendation,
    Shown,
    evidence_terms,
    reasons_for,
    strongest_paths,
)


PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def recommender(film_dataset):
    proc = processor(film_dataset, item_counts=10 * film_dataset.training_counts()[1:])
    proc = proc.with_knowledge_graph(proc.knowledge_graph.with_co_ratings(co_ratings(film_dataset, min_people=2)))
    proc.fit(examples(film_dataset))
    weights = {"evidence_weight": 1.7, "lm_scale": 0.8, "retrieval_weight": 0.6}
    config = proc.model_config(use_user_embedding=True, **weights)
    torch.manual_seed(0)
    ranker = LlamaRecLKGForRanking.from_backbone(backbone(), config)
    torch.nn.init.normal_(ranker.preference.user_embedding.weight)
    with torch.no_grad():
        ranker.fusion.popularity_weight.fill_(0.4)
        ranker.fusion.recent_weight.copy_(torch.tensor([0.3, -0.2, 0.1]))
        for weight in ranker.readout.parameters():
            weight.add_(0.3 * torch.randn_like(weight))
    return Recommender(ranker, proc)


CANDIDATES = ["2", "3", "5", "6"]


@pytest.mark.parametrize("count", [0, 1, 3, 100])
@pytest.mark.parametrize("user", [None, "2"])
def test_shares_add_up_to_the_score_however_many_paths_are_named(recommender, count, user):
    items = recommender.recommend(["4", "1"], user=user, candidates=CANDIDATES, k=4, num_reasons=count)
    for item in items:
        assert sum(reason.share for reason in item.reasons) == pytest.approx(item.score, abs=1e-5)
        named = [reason for reason in item.reasons if reason.kind == PATH]
        assert len(named) <= count and item.paths == [reason.text for reason in named]
        for relation, part in item.relations.items():
            shares = [reason.share for reason in item.reasons if reason.relation == relation]
            assert sum(shares) == pytest.approx(part, abs=1e-5)
        printed = [float(line.split()[0]) for line in str(item).splitlines()[1:]]
        assert len(printed) <= 5 and sum(printed) == pytest.approx(item.score, abs=4e-3), "with what is not named"


def test_the_score_is_the_models(recommender):
    items = recommender.recommend(["4", "1"], user="2", candidates=CANDIDATES, k=4)
    example = recommender.processor.example(["4", "1"], CANDIDATES, user="2")
    with torch.no_grad():
        logits = recommender.model(**recommender.processor([example])).logits[0]
    wanted = dict(zip(CANDIDATES, logits.tolist(), strict=True))
    assert {item.item_id: item.score for item in items} == pytest.approx(wanted, abs=1e-5)


def test_language_model_retriever_and_popularity_say_what_sets_an_item_apart_from_the_list(recommender):
    (ranking,) = recommender.rank([recommender.processor.example(["4"], CANDIDATES, retrieval_scores=[9, 7, 4, 2])])
    assert ranking.parts[:, :3].std(0).min() > 1e-3
    assert ranking.parts[:, :3].mean(0) == pytest.approx([0.0, 0.0, 0.0], abs=1e-5)


def test_preferences_are_computed_once_a_request(recommender, monkeypatch):
    calls, forward = [], recommender.model.preference.forward
    monkeypatch.setattr(recommender.model.preference, "forward", lambda *inputs: calls.append(1) or forward(*inputs))
    best = recommender.recommend(["4", "1"], user="2", candidates=CANDIDATES)[0]
    assert len(calls) == 1
    named = next(reason for reason in best.reasons if reason.relation)
    assert named.preference == pytest.approx(recommender.preferences(["4", "1"], user="2")[named.relation])


@pytest.mark.parametrize("longest", [5, 2])
def test_long_lists_have_the_parts_of_the_window_that_scored_them(recommender, monkeypatch, longest):
    """Scores fall along the ranks; what a window was lowered by for that is a reason of its own."""
    monkeypatch.setattr(recommender.processor, "longest_list", longest)
    lowered = 0
    for candidates in ("123456", "654321", "361425"):
        everything = recommender.recommend(["1"], candidates=list(candidates), k=6)
        assert len(everything) == 6, "six candidates, some at a time"
        scores = [item.score for item in everything]
        assert scores == sorted(scores, reverse=True)
        for item in everything:
            assert sum(reason.share for reason in item.reasons) == pytest.approx(item.score, abs=1e-5)
            for reason in item.reasons:
                if reason.kind == WINDOW:
                    lowered += 1
                    assert reason.share < 0 and item.rank > longest
                    assert "for coming after others of a long list" in item.sentence(9)
    assert lowered


def test_a_relation_may_be_called_like_another_part_of_the_score(make_dataset):
    """Its paths and shares are its own."""
    dataset = make_dataset([(user, item, item) for user in range(1, 5) for item in range(1, 5)])
    names = ["popularity", "retriever", "language model", "path", "window"]
    facts = pd.DataFrame([(str(item), name, "x") for item in range(1, 5) for name in names],
                         columns=["head", "relation", "tail"])  # fmt: skip
    graph = KnowledgeGraph.from_dataset(dataset, Triples.by_item_ids(facts, dataset.items.ids))
    counts = np.array([1, 10, 100, 1000])
    proc = LlamaRecLKGProcessor(tokenizer(), graph, dataset.items.ids, dataset.items.titles, item_counts=counts)
    ranker = LlamaRecLKGForRanking(proc.model_config(use_language_model=False, evidence_weight=2.0))
    with torch.no_grad():
        ranker.fusion.popularity_weight.fill_(0.4)
    items = Recommender(ranker, proc).recommend(["1"], candidates=["2", "3", "4"], num_reasons=9)
    for item in items:
        assert set(names) == set(item.relations)
        assert sum(reason.share for reason in item.reasons) == pytest.approx(item.score, abs=1e-5)
        own = [reason.share for reason in item.reasons if reason.kind == "popularity" and reason.relation is None]
        along = [reason.share for reason in item.reasons if reason.relation == "popularity"]
        assert sum(along) == pytest.approx(item.relations["popularity"]) and len(own) <= 1


def test_with_all_paths_named_nothing_is_left_of_any_relation(recommender):
    """A path's share is weight x preference x its part of the evidence, and another weight x its part of the recent
    evidence. Co-ratings are paths, too."""
    items = recommender.recommend(["4", "1"], user="2", candidates=CANDIDATES, k=4, num_reasons=100)
    assert not [reason for item in items for reason in item.reasons if reason.kind == OTHER_PATHS]
    assert any(reason.relation == CO_RATED for item in items for reason in item.reasons)
    insider = next(item for item in items if item.item_id == "2")
    (path,) = [reason for reason in insider.reasons if reason.relation == "DIRECTED_BY"]
    preferences = recommender.preferences(["4", "1"], user="2")
    proc, dense = recommender.processor, recommender.processor.dense_items
    asked, relation = ([dense(["4", "1"])], [dense(["2"])]), proc.relations.index("DIRECTED_BY")
    evidence, recent = (
        float(index.evidence(*asked)[0, 0, relation]) for index in (proc.evidence_index, proc.recent_index)
    )
    assert path.nodes == ["Heat (1995)", "Mann", "Insider, The (1999)"]
    assert path.preference == pytest.approx(preferences["DIRECTED_BY"])
    assert path.share == pytest.approx(1.7 * path.preference * evidence - 0.2 * recent, rel=1e-5)
    assert evidence == pytest.approx(recent) and evidence > 0, "Heat is the last item, which has not faded"


def test_co_ratings_are_told_as_what_people_did():
    assert Reason(OTHER_PATHS, 0.5, CO_RATED).text == "people who rated the same items"
    assert Reason(PATH, 0.5, CO_RATED, 0.3, ["Heat", "Up"]).text == "Heat -> rated by the same people -> Up"
    assert Reason(OTHER_PATHS, 0.5, "GENRE_IS").text == "other paths along GENRE_IS"
    assert Reason("popularity", 0.5).text == "how many people chose it"


def test_a_sentence_by_hand():
    reasons = [
        Reason(PATH, 1.25, "DIRECTED_BY", 0.4, ["Heat", "Mann", "Insider"]),
        Reason(OTHER_PATHS, 0.5, CO_RATED, 0.3),
        Reason(OTHER_PATHS, 0.25, "DIRECTED_BY", 0.4),
        Reason("retriever", -0.75),
        Reason("language model", 0.1),
    ]
    item = Recommendation(1, "2", "Insider", 1.35, 0.0, reasons=reasons)
    assert item.sentence() == (
        "Insider scores +1.35: +1.50 along DIRECTED_BY (Mann, as in Heat; preference 40%), -0.75 for the order of the "
        "history (retriever), +0.50 along CO_RATED (preference 30%) and +0.10 for 1 smaller reason."
    )
    assert item.sentence(count=4).endswith("and +0.10 for what the language model reads.")
    assert "was not compared" in Recommendation(1, "2", "Insider", 0.0, 0.0).sentence()
    assert str(reasons[0]) == "+1.250  Heat -> DIRECTED_BY Mann -> Insider  (preference 40%)"
    unnamed = Recommendation(1, "2", "Insider", 0.25, 0.0, reasons=reasons[2:3])
    assert unnamed.sentence() == "Insider scores +0.25: +0.25 along DIRECTED_BY (preference 40%)."


def test_paths_are_all_there_beside_a_direct_edge_and_told_once_a_film(make_dataset):
    """A sequel by the same director: both paths speak. A film that stands twice in the history is one path."""
    rows = [("a", item, item) for item in (1, 2, 3, 4)]
    items = pd.DataFrame({"item_id": [1, 2, 3, 4], "title": list("ABCD"), "directed_by": ["m", "m", "n", "o"]})
    dataset = make_dataset(rows, items)
    facts = pd.DataFrame([("1", "SEQUEL", "2")], columns=["head", "relation", "tail"])
    graph = KnowledgeGraph.from_dataset(dataset, Triples.from_frame(facts, {raw: raw for raw in "1234"}))
    items = dataset.items
    proc = LlamaRecLKGProcessor(tokenizer(), graph, items.ids, items.titles, dataset.user_ids, num_candidates=5)
    example = proc.example(["1", "3", "1"], ["2", "4"])
    index = proc.evidence_index
    which, *terms = evidence_terms(proc, [example.history], [example.candidates[:1]])
    assert not which.any()
    relations = [graph.relations[relation] for relation in index.column_relation[terms[1]]]
    told = list(zip((items.titles[item - 1] for item in terms[0]), relations, strict=True))
    assert sorted(told) == [("A", "DIRECTED_BY"), ("A", "SEQUEL")]
    asked = [example.history], [example.candidates]
    parts = [one.evidence(*asked)[0, 0] for one in (index, proc.recent_index)]
    for (_, relation), *weights in zip(told, *terms[2:], strict=True):
        assert weights == pytest.approx([part[graph.relations.index(relation)] for part in parts], rel=1e-5)
    fusion = SimpleNamespace(evidence_weight=torch.ones(1), recent_weight=torch.ones(len(graph.relations)))
    along = dict.fromkeys(graph.relations, 1.0)
    parts, scores = np.ones((2, 3 + len(graph.relations))), np.zeros(2)
    ranking = Ranking(example, np.array([1, 0]), parts, scores, np.ones(len(graph.relations)))
    ((none, named),) = strongest_paths(proc, [Shown(ranking, ranking.order, 5)], fusion)
    assert not none and sorted(reason.nodes for reason in named) == [["A", "B"], ["A", "m", "B"]]
    assert [reason.kind for reason in reasons_for(named, {}, along, along)].count(PATH) == 2


@pytest.mark.parametrize(("most", "together"), [(1, [1, 2, 1, 1]), (13, [3, 1, 1]), (2**14, [5])])
def test_lists_are_described_together_as_each_alone(recommender, monkeypatch, most, together):
    sizes, module = [], "llamarec_lkg.serving.reasons"
    monkeypatch.setattr(f"{module}.PAIRS_AT_ONCE", most)
    monkeypatch.setattr(
        f"{module}.strongest_paths", lambda *args: sizes.append(len(args[1])) or strongest_paths(*args)
    )
    asked = [
        (["1", "4", "1"], CANDIDATES),
        (["2"], ["3"]),
        ([], CANDIDATES),
        (["4", "1"], CANDIDATES),
        (["1", "4"], CANDIDATES),
    ]
    requests = [recommender.request(history, candidates=candidates) for history, candidates in asked]
    rankings = recommender.rank(recommender.retrieve(requests))
    liked = np.random.default_rng(0).dirichlet(np.ones(len(recommender.processor.relations)), len(asked))
    rankings = [
        one if one.preferences is None else replace(one, preferences=own)
        for one, own in zip(rankings, liked, strict=True)
    ]
    how = {"k": [4, 1, 2, 3, 9], "num_reasons": [1, 3, 2, 0, 100]}
    found = recommender.describe_all(rankings, **how)
    assert sizes == together
    alone = [
        recommender.describe(ranking, k=k, num_reasons=count)
        for ranking, k, count in zip(rankings, *how.values(), strict=True)
    ]
    assert found == alone and recommender.describe_all([], k=[], num_reasons=[]) == []
    named = [sum(reason.kind == PATH for item in items for reason in item.reasons) for items in found]
    assert 0 < named[0] <= 4 and named[4] > named[0] and not any(named[1:4]), (
        "a list of one, no history, none asked for"
    )


def test_what_the_history_says_alone_is_what_it_says_of_anybody(recommender):
    alone = recommender.preferences(["4", "1"], user="2", use_id=False)
    assert alone == recommender.preferences(["4", "1"], user="nobody")
    assert alone != pytest.approx(recommender.preferences(["4", "1"], user="2"))


def test_titles_may_look_like_formulas_and_repeat(tmp_path):
    reasons = [Reason(PATH, 0.5, "MADE_BY", 0.5, ["$a_$", "Li$e_ of_$", "Twice"])]
    items = [Recommendation(rank, str(rank), "Twice", 0.5, 0.0, reasons=reasons) for rank in (1, 2)]
    draw_reasons(items, tmp_path / "why.png")
    draw_preferences({"$A_$": 1.0}, tmp_path / "p.png", "$_$")
    one = draw_reasons(items[:1], tmp_path / "one.png")
    assert one is None and picture(tmp_path / "why.png").shape[0] > picture(tmp_path / "one.png").shape[0]


def test_paths_through_different_entities_are_named_first(make_dataset):
    """Two films of the history share the director with the candidate, strongly; one shares a genre, weakly."""
    rows = [("a", item, item) for item in (1, 2, 3, 4, 5)]
    items = pd.DataFrame({"item_id": [1, 2, 3, 4, 5], "title": list("ABCDE"), "genre_is": ["g", "h", "x", "g", "y"]})
    items["directed_by"] = ["m", "m", "n", "m", "o"]
    proc = processor(make_dataset(rows, items))
    recommender = Recommender(LlamaRecLKGForRanking(proc.model_config(use_language_model=False)), proc)
    best = recommender.recommend(["1", "2"], candidates=["4", "5"], num_reasons=2)[0]
    assert best.title == "D"
    assert {reason.nodes[1] for reason in best.reasons if reason.kind == PATH} == {"m", "g"}


def picture(path):
    from matplotlib import image

    content = path.read_bytes()
    assert content.startswith(PNG)
    return image.imread(path)


def test_paths_are_drawn(recommender, tmp_path):
    items = recommender.recommend(["4", "1"], user="2", candidates=CANDIDATES, k=3, num_reasons=5)
    draw_reasons(items, tmp_path / "reasons.png")
    pixels = picture(tmp_path / "reasons.png")
    colored = np.ptp(pixels[..., :3], axis=2) > 0.2
    assert colored.any(), "paths have colours"
    draw_reasons(recommender.recommend(["4"], candidates=["2"]), tmp_path / "alone.png")
    assert not (np.ptp(picture(tmp_path / "alone.png")[..., :3], axis=2) > 0.2).any(), "one item has no paths"


def test_preferences_are_drawn_as_long_as_they_are(tmp_path):
    draw_preferences({"A": 0.75, "B": 0.25}, tmp_path / "bars.png", "somebody")
    pixels = picture(tmp_path / "bars.png")
    blue = (pixels[..., 2] - pixels[..., 0] > 0.5).sum(axis=1)
    top, bottom = blue[: len(blue) // 2].max(), blue[len(blue) // 2 :].max()
    assert top / bottom == pytest.approx(3, rel=0.1)
