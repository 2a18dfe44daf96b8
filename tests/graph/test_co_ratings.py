"""Co-ratings: the evidence that strangers would have from all people, without the people."""

from dataclasses import replace

import networkx as nx
import numpy as np
import pytest
from same_graph import assert_same
from tiny import examples, processor

from llamarec_lkg import LKGError
from llamarec_lkg.data.schema import RATED, UNKNOWN_USER
from llamarec_lkg.graph.co_ratings import with_co_ratings
from llamarec_lkg.graph.evidence import EvidenceIndex
from llamarec_lkg.graph.knowledge_graph import UNDATED, KnowledgeGraph
from llamarec_lkg.serving.reasons import evidence_paths


@pytest.fixture(scope="module")
def graph(film_dataset) -> KnowledgeGraph:
    return KnowledgeGraph.from_dataset(film_dataset)


@pytest.fixture(scope="module")
def movielens(movielens_dataset) -> KnowledgeGraph:
    return KnowledgeGraph.from_dataset(movielens_dataset)


def rated_pairs(graph) -> dict[tuple[int, int], float]:
    """Co-ratings as dense items, the smaller first."""
    if graph.weights is None:
        return {}
    items, rated = graph.item_of_node(), np.asarray(graph.edge_relations) == 2 * graph.relations.index(RATED)
    ends = items[graph.edge_sources()[rated]], items[np.asarray(graph.targets)[rated]]
    return {(int(a), int(b)): float(w) for a, b, w in zip(*ends, np.asarray(graph.weights)[rated], strict=True)}


def test_a_stranger_has_the_evidence_that_the_people_gave(graph, film_dataset):
    whole = EvidenceIndex.from_graph(graph, film_dataset.user_ids)
    public = EvidenceIndex.from_graph(with_co_ratings(graph, min_people=1, per_item=99), [])
    rated = graph.relations.index(RATED)
    for history in ([1], [2, 5], [6, 3, 1, 4]):
        candidates = np.setdiff1d(np.arange(1, 7), history)
        wanted = whole.evidence(np.array(history), candidates)
        found = public.evidence(np.array(history), candidates)
        assert found == pytest.approx(wanted, abs=6e-4), "weights are rounded to a thousandth"
        assert found[:, rated].any() and not np.array_equal(found[:, rated], wanted[:, rated])
        others = np.arange(len(graph.relations)) != rated
        assert np.array_equal(found[:, others], wanted[:, others])


def test_weights_by_hand(make_dataset):
    """Two people rated 1 and 2, one of them 3 as well: all in training but each one's last two."""
    rows = [(u, i, t) for u, items in ((1, [1, 2, 3, 8, 9]), (2, [1, 2, 7, 9])) for t, i in enumerate(items)]
    graph = KnowledgeGraph.from_dataset(make_dataset(rows))
    dense = {raw: row + 1 for row, raw in enumerate(make_dataset(rows).items.ids)}
    found = rated_pairs(with_co_ratings(graph, min_people=1))
    num_items = graph.num_items
    one, two = np.log1p(num_items / 3), np.log1p(num_items / 2)  # person 1 rated three items, person 2 two
    row = np.array([one, two]) / np.hypot(one, two)  # of items 1 and 2; item 3 has person 1 alone
    assert found == pytest.approx(
        {
            (dense["1"], dense["2"]): 1.0,
            (dense["1"], dense["3"]): row[0],
            (dense["2"], dense["3"]): row[0],
        },
        abs=5e-4,
    )
    assert rated_pairs(with_co_ratings(graph, min_people=2)) == {(dense["1"], dense["2"]): 1.0}
    assert with_co_ratings(graph, min_people=3).weights is None


def test_nothing_of_a_person_is_left(movielens, movielens_dataset, tmp_path):
    public = with_co_ratings(movielens, min_people=5, per_item=20)
    assert not public.people(movielens_dataset.user_ids).any()
    assert public.num_nodes == movielens.without_people().num_nodes
    rated = np.asarray(public.edge_relations) // 2 == public.relations.index(RATED)
    assert (np.asarray(public.timestamps)[rated] == UNDATED).all()
    raters: dict[int, set[int]] = {}
    for position in np.flatnonzero(movielens_dataset.labels == 0):
        user = int(movielens_dataset.user_of(np.array([position]))[0])
        raters.setdefault(int(movielens_dataset.item_sequence[position]), set()).add(user)
    pairs = rated_pairs(public)
    assert len(pairs) > 1000 and min(len(raters[a] & raters[b]) for a, b in pairs) == 5
    assert {round(weight, 3) for weight in pairs.values()} == {round(weight, 6) for weight in pairs.values()}
    ties = np.bincount(np.array(list(pairs)).ravel())
    assert ties.max() > 20 and np.median(ties[ties > 0]) <= 40, "twenty of its own, and those that chose it"
    public.save_pretrained(tmp_path)
    assert_same(KnowledgeGraph.from_pretrained(tmp_path), public)


def test_a_graph_that_has_co_ratings_keeps_them(graph, film_dataset):
    public = with_co_ratings(graph, min_people=1)
    assert_same(with_co_ratings(public, film_dataset.user_ids, min_people=1), public)
    assert_same(public.without_people(film_dataset.user_ids), public)
    assert not rated_pairs(public.without_relations([RATED]))
    assert graph.without_people().weights is None and RATED in graph.without_people().relations
    no_ratings = graph.without_relations([RATED]).without_people()
    assert_same(with_co_ratings(no_ratings), no_ratings)


def test_co_ratings_go_with_their_items(graph):
    public = with_co_ratings(graph, min_people=1)
    ids = [str(public.node_keys[node]) for node in public.item_nodes[1:]]
    assert rated_pairs(KnowledgeGraph.from_networkx(public.to_networkx(), ids)) == rated_pairs(public)
    shuffled = rated_pairs(public.shuffle_items(3))
    assert sorted(shuffled.values()) == sorted(rated_pairs(public).values()) and shuffled != rated_pairs(public)


def test_no_path_and_no_reason_names_a_co_rating(film_dataset):
    proc = processor(film_dataset).fit(examples(film_dataset))
    proc.use_knowledge_graph(with_co_ratings(proc.knowledge_graph, min_people=1))
    rated, example = proc.relations.index(RATED), replace(examples(film_dataset)[0], user=UNKNOWN_USER)
    batch = proc([example])
    assert batch["evidence"][0, :, rated].any()
    assert not batch["path_relation_weights"][..., rated].any()
    for row in range(len(example.candidates)):
        assert all(relation != RATED for relation, _, _ in evidence_paths(proc, example, row))


def test_weights_of_a_networkx_graph_are_evidence_between_items():
    graph = nx.Graph()
    graph.add_edge("a", "b", relation="LIKE", weight=0.5)
    graph.add_edge("a", "c", relation="LIKE", weight=2)
    graph.add_edge("a", "d", relation="LIKE")
    index = EvidenceIndex.from_graph(KnowledgeGraph.from_networkx(graph, ["a", "b", "c", "d"]))
    (b,), (c,), (d,) = index.evidence(np.array([1]), np.array([2, 3, 4]))
    assert (b, c) == pytest.approx((0.5, 2.0)) and d == pytest.approx(1 / np.sqrt(3))
    for wrong in (-1, "much", True, float("inf")):
        graph.add_edge("a", "b", relation="LIKE", weight=wrong)
        with pytest.raises(LKGError, match="A weight is a number from 0 up"):
            KnowledgeGraph.from_networkx(graph, ["a", "b", "c", "d"])
