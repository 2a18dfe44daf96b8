import math
from dataclasses import replace

import networkx as nx
import numpy as np
import pytest
from graphs import graph_of
from scipy import sparse

from llamarec_lkg.data.schema import CO_RATED
from llamarec_lkg.graph import evidence as evidence_module
from llamarec_lkg.graph import paths
from llamarec_lkg.graph import ties as ties_module
from llamarec_lkg.graph.co_ratings import CoRatings
from llamarec_lkg.graph.evidence import EvidenceIndex
from llamarec_lkg.graph.knowledge_graph import KnowledgeGraph
from llamarec_lkg.graph.path_evidence import PathEvidence
from llamarec_lkg.graph.statistics import RECENT_STEPS, STATISTICS


@pytest.fixture(scope="module")
def random_graph() -> KnowledgeGraph:
    generator = np.random.default_rng(5)
    facts = [
        (str(item), f"R{relation}", f"{'abc'[relation]}{entity}")
        for relation, entities in enumerate((3, 8, 15))
        for item in range(1, 21)
        for entity in generator.choice(entities, size=int(generator.integers(0, 4)), replace=entities < 4)
    ]
    return graph_of(facts, 20)


@pytest.fixture(scope="module")
def mixed_graph(random_graph) -> KnowledgeGraph:
    """Relations to entities, one of them between items as well, one between items alone, and co-ratings."""
    generator = np.random.default_rng(6)
    graph = random_graph.to_networkx()
    for relation in ("R1", "NEXT"):
        for _ in range(25):
            item, other = (int(node) for node in generator.choice(20, size=2, replace=False))
            graph.add_edge(item, other, relation=relation, both_ways=bool(generator.integers(2)))
    graph = KnowledgeGraph.from_networkx(graph, [str(item) for item in range(1, 21)])
    items, others = np.triu_indices(20, k=1)
    some = generator.random(len(items)) < 0.2
    weights = generator.random(some.sum()).round(3).astype(np.float32)
    graph = replace(graph, relations=(*graph.relations, CO_RATED))
    return graph.with_co_ratings(CoRatings(items[some] + 1, others[some] + 1, weights))


@pytest.fixture(scope="module")
def mixed(mixed_graph) -> EvidenceIndex:
    return EvidenceIndex.from_graph(mixed_graph, half_life=3.0).with_scale([1.0, 2.0, 0.5, 4.0, 0.25])


@pytest.fixture(scope="module")
def histories() -> list[np.ndarray]:
    """Of different lengths, in no order; one is empty, some items come twice."""
    generator = np.random.default_rng(7)
    return [generator.integers(1, 21, size=length) for length in (4, 1, 12, 0, 7, 2, 30, 7)]


@pytest.fixture(scope="module")
def candidates() -> list[np.ndarray]:
    generator = np.random.default_rng(8)
    return [generator.permutation(np.arange(1, 21))[:length] for length in (5, 5, 2, 5, 0, 1, 20, 5)]


@pytest.fixture
def index() -> EvidenceIndex:
    """Items 1 and 2 share x and y, item 3 has y alone; 1 and 3 share the genre g."""
    facts = [("1", "BY", "x"), ("1", "BY", "y"), ("2", "BY", "x"), ("2", "BY", "y"), ("3", "BY", "y")]
    return EvidenceIndex.from_graph(graph_of([*facts, ("1", "IN", "g"), ("3", "IN", "g")], 3), half_life=1.0)


X, Y = math.log1p(3 / 2), math.log1p(3 / 3)  # inverse document frequency: x ties two of three items, y all three
LENGTH = math.hypot(X, Y)


def evidence(index: EvidenceIndex, history, candidates) -> np.ndarray:
    """Of one list, shape (C, R)."""
    return index.evidence([history], [candidates])[0]


def test_evidence_by_hand(index):
    assert index.relations == ("BY", "IN")
    found = evidence(index, [1], [1, 2, 3])
    assert found.dtype == np.float32 and found.shape == (3, 2)
    assert found == pytest.approx(np.array([[1, 1], [1, 0], [Y / LENGTH, 1]]), rel=1e-6)


def test_recent_items_weigh_more(index):
    assert index.history_weights(3) == pytest.approx([1 / 4, 1 / 2, 1])
    assert index.history_weights(0).shape == (0,)
    assert evidence(index, [3, 1], [2]) == pytest.approx(np.array([[Y / LENGTH / 2 + 1, 0]]), rel=1e-6)


def test_what_the_last_item_says_does_not_fade_because_others_came_before_it(index):
    """Item 3 says nothing of item 3 along BY but through y, item 1 nothing along IN of item 2."""
    alone, after = evidence(index, [1], [3]), evidence(index, [2, 1], [3])
    assert after[0, 1] == pytest.approx(alone[0, 1]) == pytest.approx(1.0)


def test_an_empty_history_and_the_padding_item_have_no_evidence(index):
    assert not evidence(index, [], [1, 2, 3]).any()
    assert not evidence(index, [1, 2], [0]).any()
    assert evidence(index, [1], [3, 2, 3]).tolist() == evidence(index, [1], [1, 2, 3])[[2, 1, 2]].tolist()
    assert (index.num_items, index.num_relations) == (3, 2)


def test_scale_divides_each_relation(index):
    scaled = index.with_scale([2.0, 4.0])
    assert scaled.scale.dtype == np.float32
    assert evidence(scaled, [1], [1, 2, 3]) == pytest.approx(evidence(index, [1], [1, 2, 3]) / [2.0, 4.0])
    assert index.scale.tolist() == [1.0, 1.0]


def test_direct_edges_are_evidence_whichever_way_they_point():
    index = EvidenceIndex.from_graph(graph_of([("1", "SEQUEL", "2"), ("1", "SEQUEL", "3")], 4))
    half, items = 1 / math.sqrt(2), [1, 2, 3, 4]  # item 1 has two neighbours, items 2 and 3 have one each
    for item, wanted in zip(items, ([0, half, half, 0], [1, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]), strict=True):
        assert evidence(index, [item], items)[:, 0] == pytest.approx(wanted)


def test_weights_of_edges_between_items_are_their_evidence():
    graph = nx.Graph()
    graph.add_edge("a", "b", relation="LIKE", weight=0.5)
    graph.add_edge("a", "c", relation="LIKE", weight=2)
    graph.add_edge("a", "d", relation="LIKE")
    index = EvidenceIndex.from_graph(KnowledgeGraph.from_networkx(graph, ["a", "b", "c", "d"]))
    assert evidence(index, [1], [2, 3, 4])[:, 0] == pytest.approx([0.5, 2.0, 1 / math.sqrt(3)])


def test_a_graph_without_edges_gives_no_evidence():
    index = EvidenceIndex.from_graph(graph_of([], 2))
    assert evidence(index, [1, 2], [1, 2]).shape == (2, 0)
    assert index.statistics([[1, 2]]).shape == (1, 0, len(STATISTICS))
    assert index.catalogue([[1, 2]], np.zeros((1, 0))).tolist() == [[0, 0, 0]]


def test_history_statistics_by_hand(index):
    """Steps 1 -> 2 and 2 -> 3. Along BY item 1 says 1 of item 2; items 1 and 2 both say Y / LENGTH of item 3. Along IN
    item 1 says 1 of item 3, half as loud as item 2, which says nothing."""
    statistics = index.statistics([[1, 2, 3]])[0]
    assert statistics.shape == (2, len(STATISTICS)) and statistics.dtype == np.float32
    by, along = (dict(zip(STATISTICS, row, strict=True)) for row in statistics)
    share = Y / LENGTH
    # twice a mean: in the units of a sum over a long history, at a half-life of one item
    strength = {"by": 2 * np.array([1, share]), "in": 2 * np.array([0, 1 / 3])}
    decay = 0.5 ** (1 / RECENT_STEPS)
    for values, (first, last), tied in ((by, strength["by"], 1.0), (along, strength["in"], 0.0)):
        assert values["mean"] == pytest.approx(math.log1p((first + last) / 2))
        assert values["recent"] == pytest.approx(math.log1p((decay * first + last) / (decay + 1)))
        assert values["last"] == pytest.approx(math.log1p(last))
        assert values["tied"] == pytest.approx(tied)
        assert values["length"] == pytest.approx(math.log1p(3) / 5)
    expected = 2 * evidence(index, [1, 2, 3], [1, 2, 3]).mean(axis=0) / index.history_weights(3).sum()
    assert [by["expected"], along["expected"]] == pytest.approx(np.log1p(expected))
    assert by["lift"] == pytest.approx(math.log((1 + share + 0.05) / (expected[0] + 0.05)), rel=1e-5)


# -- batches ----------------------------------------------------------------------------------------------------------


def dense(graph: KnowledgeGraph, relation: int) -> np.ndarray:
    """How much each item says of each other one along one relation, shape (num_items + 1, num_items + 1), from whole
    item x node matrices."""
    item_of_node, shape = graph.item_of_node(), (graph.num_items + 1, graph.num_nodes)
    ties, own = np.zeros(shape), np.full(shape, np.nan)
    for edge, source in enumerate(graph.edge_sources()):
        if graph.edge_relations[edge] // 2 == relation:
            for one, other in ((source, graph.targets[edge]), (graph.targets[edge], source)):
                ties[item_of_node[one], other] = 1.0
                own[item_of_node[one], other] = graph.weights[edge]
    ties[0] = 0.0  # what is no item has been counted here
    of_items = ties.sum(axis=0)
    ties *= np.where(item_of_node > 0, 1.0, np.log1p(graph.num_items / np.maximum(of_items, 1)))
    ties /= np.maximum(np.linalg.norm(ties, axis=1, keepdims=True), 1e-12)
    entities = ties * ((item_of_node == 0) & (of_items > 1))
    said = entities @ entities.T
    said[:, 1:] += np.where(np.isnan(own), ties, own)[:, graph.item_nodes[1:]]
    return said


@pytest.mark.parametrize("many", [0, 4, math.inf])  # no list is of the whole catalogue, some are, all are
@pytest.mark.parametrize("scatter", [0, math.inf])
@pytest.mark.parametrize("together", [8, 3, 1])
def test_evidence_equals_a_dense_computation(
    mixed_graph, mixed, histories, candidates, many, scatter, together, monkeypatch
):
    monkeypatch.setattr(evidence_module, "MANY", many)
    monkeypatch.setattr(evidence_module, "SCATTER", scatter)
    monkeypatch.setattr(evidence_module, "TOGETHER", together)
    found = mixed.evidence(histories, candidates)
    assert found.shape == (8, 20, 5) and found.dtype == np.float32
    for relation in range(5):
        said = dense(mixed_graph, relation)
        assert found[:, :, relation].any()
        for row, (history, wanted) in enumerate(zip(histories, candidates, strict=True)):
            weights = np.array([0.5 ** ((len(history) - 1 - place) / 3.0) for place in range(len(history))])
            expected = np.zeros(20)
            expected[: len(wanted)] = (weights @ said[history])[wanted] / mixed.scale[relation]
            assert found[row, :, relation] == pytest.approx(expected, rel=1e-5, abs=1e-7)


def test_a_batch_equals_its_rows_one_by_one(mixed, histories, candidates):
    together = mixed.evidence(histories, candidates)
    for row, (history, wanted) in enumerate(zip(histories, candidates, strict=True)):
        (alone,) = mixed.evidence([history], [wanted])
        assert alone == pytest.approx(together[row, : len(wanted)], rel=1e-6)
        assert not together[row, len(wanted) :].any(), "padding"
    assert mixed.evidence([], []).shape == (0, 0, 5)


@pytest.mark.parametrize("scatter", [0, math.inf])
def test_the_catalogue_is_the_weighted_evidence_of_all_items(mixed, histories, scatter, monkeypatch):
    monkeypatch.setattr(evidence_module, "SCATTER", scatter)
    weights = np.random.default_rng(9).normal(size=(8, 5))
    everything = mixed.evidence(histories, [np.arange(21)] * 8)
    found = mixed.catalogue(histories, weights)
    assert found.shape == (8, 21) and found.dtype == np.float32
    assert found == pytest.approx(np.einsum("bcr,br->bc", everything, weights), rel=1e-4, abs=1e-6)
    assert found[:, 1:].any() and not found[:, 0].any()


@pytest.mark.parametrize("piece", [7, 1 << 12])
def test_a_list_of_the_whole_catalogue_in_order_is_like_any_other(mixed, histories, piece, monkeypatch):
    monkeypatch.setattr(evidence_module, "SCATTER", math.inf)
    monkeypatch.setattr(evidence_module, "PIECE", piece)
    everything, mixed_up = np.arange(21), np.random.default_rng(11).permutation(21)
    found = mixed.evidence(histories, [everything, mixed_up] * 4)
    found[1::2, mixed_up] = found[1::2].copy()
    assert found == pytest.approx(mixed.evidence(histories, [everything[::-1]] * 8)[:, ::-1], rel=1e-6)
    assert found[:, 1:].any(axis=(1, 2)).sum() == 7, "one history is empty"


@pytest.mark.parametrize(("width", "kind"), [((1 << 31) - 1, np.int32), (1 << 31, np.int64)])
def test_numbers_of_columns_take_half_the_room_where_they_fit(width, kind):
    rows = sparse.csr_array(([2.0], [width - 1], [0, 1]), shape=(1, width))
    found = evidence_module._compact(rows)
    assert found.indices.dtype == found.indptr.dtype == kind
    assert (found.shape, found.indices.tolist(), found.data.tolist()) == (rows.shape, [width - 1], [2.0])


@pytest.mark.parametrize("together", [False, True])
def test_contributions_sum_to_the_evidence(mixed, histories, together):
    candidates = np.array([1, 7, 20])
    everything = mixed.contributions(histories, [candidates] * len(histories))
    starts = np.cumsum([0, *map(len, histories)])
    for number, history in enumerate(histories):
        if together:
            own = everything[0] // 3 == number
            which, places, columns, terms = (one[own] for one in everything)
            which, *found = which - 3 * number, places - starts[number], columns, terms
        else:
            which, *found = mixed.contributions([history], [candidates])
        for row, candidate in enumerate(candidates):
            places, columns, terms = (one[which == row] for one in found)
            weights = terms * mixed.history_weights(len(history))[places]
            (evidence,) = mixed.evidence([history], [[candidate]])[0]
            sums = np.bincount(mixed.column_relation[columns], weights, minlength=5)
            assert sums == pytest.approx(evidence, rel=1e-5, abs=1e-7) and (terms > 0).all()
            for place in np.unique(places):  # and those of a place to what its item says
                own = places == place
                alone = mixed.evidence([history[[place]]], [[candidate]])[0, 0]
                share = mixed.history_weights(len(history))[place]
                sums = np.bincount(mixed.column_relation[columns[own]], weights[own], minlength=5)
                assert sums == pytest.approx(share * alone, rel=1e-5, abs=1e-7)


# -- statistics -------------------------------------------------------------------------------------------------------


def slow_statistics(index: EvidenceIndex, history: np.ndarray) -> np.ndarray:
    """Place by place, from the evidence of what came before."""
    values = {name: np.zeros(index.num_relations) for name in STATISTICS}
    values["length"] += math.log1p(len(history)) / 5
    if len(history) > 1:
        steps = range(1, len(history))
        items = [history[place : place + 1] for place in steps]
        unit = 1 - 0.5 ** (1 / index.half_life)
        mass = unit * np.array([index.history_weights(place).sum() for place in steps])
        strength = index.evidence([history[:place] for place in steps], items)[:, 0] / mass[:, None]
        single = index.evidence([history[place - 1 : place] for place in steps], items)[:, 0]
        recency = 0.5 ** (np.arange(len(strength))[::-1] / RECENT_STEPS)
        expected = index.evidence([history], [np.arange(1, index.num_items + 1)])[0].mean(axis=0)
        expected = expected / (unit * index.history_weights(len(history)).sum())
        values["recent"] = np.log1p(recency @ strength / recency.sum())
        values["mean"] = np.log1p(strength.mean(axis=0))
        values["last"] = np.log1p(strength[-1])
        values["expected"] = np.log1p(expected)
        values["tied"] = (single > 0).mean(axis=0)
        values["lift"] = np.log((strength.mean(axis=0) + 0.05) / (expected + 0.05))
    return np.stack([values[name] for name in STATISTICS], axis=1)


@pytest.mark.parametrize(("block", "places"), [(128, 1 << 14), (3, 1 << 14), (128, 20)])
def test_statistics_equal_those_made_place_by_place(mixed, histories, block, places, monkeypatch):
    monkeypatch.setattr(ties_module, "BLOCK", block)
    monkeypatch.setattr(ties_module, "PLACES", places)
    found = mixed.statistics(histories)
    assert found.shape == (8, 5, len(STATISTICS)) and found.dtype == np.float32
    for row, history in enumerate(histories):
        assert found[row] == pytest.approx(slow_statistics(mixed, history), abs=1e-6)
    assert found[2].all(axis=1).any(), "none of the statistics is always zero"


def test_statistics_of_every_beginning_of_a_history(mixed, histories):
    history = histories[6]
    along = mixed.statistics_along(history)
    assert along.shape == (len(history) + 1, 5, len(STATISTICS))
    for length in range(len(history) + 1):
        assert along[length] == pytest.approx(mixed.statistics([history[:length]])[0], abs=1e-6)
    assert mixed.statistics_along(history[:0]).shape == (1, 5, len(STATISTICS))
    assert mixed.statistics([]).shape == (0, 5, len(STATISTICS))


def test_a_history_of_thousands_is_like_a_short_one(mixed_graph):
    """The weights of three thousand items at a half-life of 1 span 900 powers of ten."""
    index = EvidenceIndex.from_graph(mixed_graph, half_life=1.0)
    history = np.random.default_rng(10).integers(1, 21, size=3000)
    short = history[-60:]
    assert np.isfinite(index.history_weights(3000)).all()
    items = [np.arange(1, 21)]
    assert index.evidence([history], items) == pytest.approx(index.evidence([short], items), rel=1e-6)
    assert index.statistics([history])[0] == pytest.approx(slow_statistics(index, history), abs=1e-5)


def test_an_edge_of_weight_zero_ties_nothing():
    graph = nx.Graph()
    graph.add_edge("a", "b", relation="LIKE", weight=0)
    graph.add_edge("b", "c", relation="LIKE", weight=0.5)
    index = EvidenceIndex.from_graph(KnowledgeGraph.from_networkx(graph, ["a", "b", "c"]))
    (statistics,) = index.statistics([[1, 2, 3]])[0]
    assert dict(zip(STATISTICS, statistics, strict=True))["tied"] == 0.5


# -- paths ------------------------------------------------------------------------------------------------------------


def weighed(graph, index, history, candidates, **limits):
    """Paths, and what each carries of the evidence along each relation."""
    ways = paths.ways(graph, [history], [candidates], **limits)
    relations, shares = PathEvidence.of(graph, index).of_ways(ways, [history])
    assert shares.dtype == np.float32
    return ways.named(graph), shares[:, None] * (relations[:, None] == np.arange(len(graph.relations)))


def test_the_weights_of_all_paths_sum_to_the_evidence(random_graph):
    history = np.array([3, 8, 8, 1])
    candidates = np.setdiff1d(np.arange(1, 21), history)
    index = EvidenceIndex.from_graph(random_graph, half_life=2.0).with_scale([0.5, 2.0, 3.0])
    for hops in (2, 3):
        listed, weights = weighed(random_graph, index, history, candidates, max_hops=hops, max_paths_per_pair=10_000)
        assert weights.shape == (len(listed), 3)
        sums = np.zeros((len(candidates), 3))
        np.add.at(sums, listed.target_index, weights)
        assert sums == pytest.approx(evidence(index, history, candidates), rel=1e-5, abs=1e-7)
        assert (sums > 0).any(axis=0).all()


def test_a_direct_path_carries_the_evidence_of_its_edge():
    graph = graph_of([("1", "SEQUEL", "2"), ("1", "SEQUEL", "3"), ("4", "BY", "x")], 4)
    index = EvidenceIndex.from_graph(graph)
    history, candidates = np.array([1, 2]), np.array([1, 2, 3])
    for hops in (1, 2):
        listed, weights = weighed(graph, index, history, candidates, max_hops=hops, max_paths_per_pair=100)
        sums = np.zeros((3, 2))
        np.add.at(sums, listed.target_index, weights)
        assert sums == pytest.approx(evidence(index, history, candidates))
        assert (weights[listed.lengths == 2] == 0).all(), "2 -> 1 -> 3 runs through an item"


def test_the_paths_of_a_fact_stated_in_both_directions_share_its_evidence():
    graph = graph_of([("1", "ALSO", "2"), ("2", "ALSO", "1")], 2)
    index = EvidenceIndex.from_graph(graph)
    history, candidates = np.array([1]), np.array([2])
    _, weights = weighed(graph, index, history, candidates, max_paths_per_pair=100)
    assert weights.sum(axis=0) == pytest.approx(evidence(index, history, candidates)[0])


def test_a_path_that_changes_its_relation_or_is_long_carries_no_evidence():
    facts = [("1", "BY", "x"), ("2", "LIKE", "x"), ("2", "BY", "y"), ("3", "BY", "y")]
    graph = graph_of(facts, 3)
    listed, weights = weighed(graph, EvidenceIndex.from_graph(graph), [1], [2, 3], max_hops=4)
    assert listed.lengths.tolist() == [2, 4] and not weights.any()
    graph = graph_of([("1", "BY", "x"), ("2", "BY", "x"), ("2", "IN", "x"), ("3", "IN", "x")], 3)
    index = EvidenceIndex.from_graph(graph)
    listed, weights = weighed(graph, index, [1], [2])
    assert listed.edge_codes.tolist() == [[0, 1], [0, 3]]
    assert weights.tolist() == [[evidence(index, [1], [2])[0, 0], 0], [0, 0]]


def test_no_paths_have_no_weights(random_graph):
    _, weights = weighed(random_graph, EvidenceIndex.from_graph(random_graph), [], [1, 2])
    assert weights.shape == (0, 3)
