import math

import numpy as np
import pandas as pd
import pytest

from llamarec_lkg.data.schema import HEAD, RATED, RELATION, TAIL, Triples
from llamarec_lkg.graph import paths
from llamarec_lkg.graph.evidence import RECENT_STEPS, STATISTICS, STATISTICS_WINDOW, EvidenceIndex
from llamarec_lkg.graph.knowledge_graph import KnowledgeGraph


def graph_of(facts, num_items) -> KnowledgeGraph:
    items = [str(item) for item in range(1, num_items + 1)]
    triples = Triples.from_frame(pd.DataFrame(facts, columns=[HEAD, RELATION, TAIL]), {raw: raw for raw in items})
    return KnowledgeGraph.from_triples(triples, items)


@pytest.fixture
def index() -> EvidenceIndex:
    """Items 1 and 2 share x and y, item 3 has y alone; 1 and 3 share the genre g."""
    facts = [("1", "BY", "x"), ("1", "BY", "y"), ("2", "BY", "x"), ("2", "BY", "y"), ("3", "BY", "y")]
    return EvidenceIndex.from_graph(graph_of([*facts, ("1", "IN", "g"), ("3", "IN", "g")], 3), half_life=1.0)


X, Y = math.log1p(3 / 2), math.log1p(3 / 3)  # inverse document frequency: x ties two of three items, y all three
LENGTH = math.hypot(X, Y)


def test_evidence_by_hand(index):
    assert index.relations == ("BY", "IN")
    evidence = index.evidence(np.array([1]), np.array([1, 2, 3]))
    assert evidence.dtype == np.float32 and evidence.shape == (3, 2)
    assert evidence == pytest.approx(np.array([[1, 1], [1, 0], [Y / LENGTH, 1]]), rel=1e-6)


def test_a_rare_entity_weighs_more_than_a_common_one():
    index = EvidenceIndex.from_graph(
        graph_of([("1", "BY", "rare"), ("1", "BY", "hub"), ("2", "BY", "rare"), ("2", "BY", "z"), ("3", "BY", "hub")]
                 + [("3", "BY", "w")] + [(str(i), "BY", "hub") for i in range(4, 9)], 8)
    )  # fmt: skip
    (rare,), (hub,) = index.evidence(np.array([1]), np.array([2, 3]))
    assert rare > hub > 0


def test_recent_items_weigh_more(index):
    assert index.history_weights(3) == pytest.approx(np.array([1, 2, 4]) / 7)
    assert EvidenceIndex.history_weights(index, 0).shape == (0,)
    evidence = index.evidence(np.array([3, 1]), np.array([2]))
    assert evidence == pytest.approx(np.array([[(1 / 3) * Y / LENGTH + 2 / 3, 0]]), rel=1e-6)


def test_an_empty_history_and_the_padding_item_have_no_evidence(index):
    assert not index.evidence(np.array([], dtype=int)).any()
    everything = index.evidence(np.array([1, 2]))
    assert everything.shape == (4, 2)
    assert not everything[0].any()
    assert everything[1:] == pytest.approx(index.evidence(np.array([1, 2]), np.array([1, 2, 3])))
    assert (index.num_items, index.num_relations) == (3, 2)


def test_evidence_of_the_order_asked_for(index):
    assert np.array_equal(
        index.evidence(np.array([1]), np.array([3, 2, 3])), index.evidence(np.array([1]))[np.array([3, 2, 3])]
    )


def test_scale_divides_each_relation(index):
    scaled = index.with_scale([2.0, 4.0])
    assert scaled.scale.dtype == np.float32
    assert scaled.evidence(np.array([1])) == pytest.approx(index.evidence(np.array([1])) / [2.0, 4.0])
    assert index.scale.tolist() == [1.0, 1.0]


def test_direct_edges_are_evidence_whichever_way_they_point():
    index = EvidenceIndex.from_graph(graph_of([("1", "SEQUEL", "2"), ("1", "SEQUEL", "3")], 4))
    half = 1 / math.sqrt(2)  # item 1 has two neighbours, items 2 and 3 have one each
    assert index.evidence(np.array([1]))[:, 0] == pytest.approx([0, 0, half, half, 0])
    assert index.evidence(np.array([2]))[:, 0] == pytest.approx([0, 1, 0, 0, 0])
    assert index.evidence(np.array([3]))[:, 0] == pytest.approx([0, 1, 0, 0, 0])
    assert not index.evidence(np.array([4])).any()


def test_a_tie_stated_in_both_directions_is_one_tie():
    facts = [("1", "ALSO", "2"), ("2", "ALSO", "1"), ("1", "ALSO", "3")]
    index = EvidenceIndex.from_graph(graph_of(facts, 3))
    assert index.evidence(np.array([1]))[:, 0] == pytest.approx([0, 0, 1 / math.sqrt(2), 1 / math.sqrt(2)])


def test_a_users_own_ratings_are_left_out(make_dataset):
    # users 1 and 2 were both trained on items 1 and 2; user 3 on item 3 alone
    rows = [(1, 1, 1), (1, 2, 2), (1, 3, 8), (1, 4, 9), (2, 1, 1), (2, 2, 2), (2, 4, 8), (2, 3, 9)]
    rows += [(3, 3, 1), (3, 1, 8), (3, 2, 9)]
    graph = KnowledgeGraph.from_dataset(make_dataset(rows))
    index = EvidenceIndex.from_graph(graph)
    assert index.relations == (RATED,)
    both, one = (
        index.evidence(np.array([1]), np.array([2]))[0, 0],
        index.evidence(np.array([1]), np.array([2]), user=1)[0, 0],
    )
    # without user 1 both rows hold user 2 alone and have length 1 again
    assert both == pytest.approx(1.0) and one == pytest.approx(1.0)
    assert index.evidence(np.array([1]), np.array([2]), user=2)[0, 0] == pytest.approx(1.0)
    assert index.evidence(np.array([1]), np.array([2]), user=3)[0, 0] == pytest.approx(1.0)
    assert index.evidence(np.array([3]), np.array([3]), user=3)[0, 0] == 0.0
    assert index.evidence(np.array([1]), np.array([2]), user=99)[0, 0] == pytest.approx(1.0), (
        "an unknown user has no column"
    )
    own = int(np.flatnonzero(index.column_user == 1)[0])
    assert index.profile(np.array([1]))[own] > 0 and index.profile(np.array([1]), user=1)[own] == 0
    assert graph.node_types[index.column_node[own]] == graph.entity_types.index("user")


def test_a_user_without_training_interactions_has_no_column(make_dataset):
    rows = [(1, item, item) for item in range(1, 6)] + [(2, item, 50 + item) for item in range(1, 4)]
    data = make_dataset(rows, split="time", validation_fraction=0.2, test_fraction=0.2)
    index = EvidenceIndex.from_graph(KnowledgeGraph.from_dataset(data))
    assert set(index.column_user.tolist()) == {1}


def test_removing_the_users_own_edges_from_the_graph_changes_nothing_else(film_dataset):
    index = EvidenceIndex.from_graph(KnowledgeGraph.from_dataset(film_dataset))
    history = np.array([1, 2])
    attributes = [index.relations.index(name) for name in ("DIRECTED_BY", "GENRE_IS")]
    assert np.array_equal(index.evidence(history)[:, attributes], index.evidence(history, user=1)[:, attributes])


def test_a_target_in_the_training_graph_looks_like_one_that_is_not(make_dataset):
    """What is to be predicted must not show: with and without the edge user 1 -> item 3, user 1 sees the same
    evidence."""
    others = [(2, 1, 1), (2, 3, 2), (2, 5, 3), (2, 6, 4), (3, 2, 1), (3, 3, 2), (3, 6, 3), (3, 5, 4)]
    known = make_dataset([(1, 1, 1), (1, 2, 2), (1, 3, 3), (1, 5, 4), (1, 6, 5), *others])
    unknown = KnowledgeGraph.from_dataset(known)
    keep = ~((unknown.edge_sources() == 0) & (unknown.targets == unknown.item_nodes[3]))
    assert keep.sum() == unknown.num_edges - 1
    history, target = np.array([1, 2]), np.array([3])
    evidence = [
        EvidenceIndex.from_graph(graph).evidence(history, target, user=1) for graph in (unknown, unknown._keep(keep))
    ]
    assert evidence[0] > 0
    np.testing.assert_allclose(evidence[0], evidence[1], rtol=1e-6)


def test_history_statistics_by_hand(index):
    """Steps 1 -> 2 and 2 -> 3. Along BY item 1 says 1 of item 2; items 1 and 2 both say Y / LENGTH of item 3. Along IN
    item 1 says 1 of item 3, half as loud as item 2, which says nothing."""
    statistics = index.history_statistics(np.array([1, 2, 3]))
    assert statistics.shape == (2, len(STATISTICS)) and statistics.dtype == np.float32
    by, along = (dict(zip(STATISTICS, row, strict=True)) for row in statistics)
    share = Y / LENGTH
    strength = {"by": np.array([1, share]), "in": np.array([0, 1 / 3])}
    decay = 0.5 ** (1 / RECENT_STEPS)
    for values, (first, last), tied in ((by, strength["by"], 1.0), (along, strength["in"], 0.0)):
        assert values["mean"] == pytest.approx(math.log1p((first + last) / 2))
        assert values["recent"] == pytest.approx(math.log1p((decay * first + last) / (decay + 1)))
        assert values["last"] == pytest.approx(math.log1p(last))
        assert values["tied"] == pytest.approx(tied)
        assert values["length"] == pytest.approx(math.log1p(3) / 5)
    expected = index.evidence(np.array([1, 2, 3]), np.array([1, 2, 3])).mean(axis=0)
    assert [by["expected"], along["expected"]] == pytest.approx(np.log1p(expected))
    assert by["lift"] == pytest.approx(math.log(((1 + share) / 2 + 0.05) / (expected[0] + 0.05)), rel=1e-5)


def test_steps_are_the_evidence_of_what_came_before(random_graph):
    index = EvidenceIndex.from_graph(random_graph, half_life=3.0).with_scale([1.0, 2.0, 4.0])
    history = np.array([5, 2, 9, 13, 1, 7])
    strength, tied = index._steps(history, 0)
    for place in range(1, len(history)):
        before, item = history[:place], history[place : place + 1]
        np.testing.assert_allclose(strength[place - 1], index.evidence(before, item)[0], rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(tied[place - 1], index.evidence(before[-1:], item)[0] > 0)


def test_statistics_of_short_and_long_histories(index):
    for short in ([], [1]):
        assert not index.history_statistics(np.array(short, dtype=int))[:, :-1].any()
    long = np.array([1, 2, 3] * STATISTICS_WINDOW)
    full, window = index.history_statistics(long), index.history_statistics(long[-STATISTICS_WINDOW:])
    for column, name in enumerate(STATISTICS):
        same = np.allclose(full[:, column], window[:, column])
        assert same != (name == "length"), name


def test_statistics_leave_the_users_own_ratings_out(film_dataset):
    index = EvidenceIndex.from_graph(KnowledgeGraph.from_dataset(film_dataset))
    rated, history = index.relations.index(RATED), np.array([1, 2, 3])
    own, others = index.history_statistics(history, user=1)[rated], index.history_statistics(history)[rated]
    assert (own[:2] < others[:2]).all()


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


def test_the_weights_of_all_paths_sum_to_the_evidence(random_graph):
    history = np.array([3, 8, 8, 1])
    candidates = np.setdiff1d(np.arange(1, 21), history)
    index = EvidenceIndex.from_graph(random_graph, half_life=2.0).with_scale([0.5, 2.0, 3.0])
    for hops in (2, 3):
        listed = paths.find(random_graph, history, candidates, max_hops=hops, max_paths_per_pair=10_000)
        weights = index.path_weights(listed, history, candidates)
        assert weights.shape == (len(listed), 3)
        sums = np.zeros((len(candidates), 3))
        np.add.at(sums, listed.target_index, weights)
        assert sums == pytest.approx(index.evidence(history, candidates), rel=1e-5, abs=1e-7)
        assert (sums > 0).any(axis=0).all()


def test_a_direct_path_carries_the_evidence_of_its_edge():
    graph = graph_of([("1", "SEQUEL", "2"), ("1", "SEQUEL", "3"), ("4", "BY", "x")], 4)
    index = EvidenceIndex.from_graph(graph)
    history, candidates = np.array([1, 2]), np.array([1, 2, 3])
    for hops in (1, 2):
        listed = paths.find(graph, history, candidates, max_hops=hops, max_paths_per_pair=100)
        weights = index.path_weights(listed, history, candidates)
        sums = np.zeros((3, 2))
        np.add.at(sums, listed.target_index, weights)
        assert sums == pytest.approx(index.evidence(history, candidates))
        assert (weights[listed.lengths == 2] == 0).all(), "2 -> 1 -> 3 runs through an item"


def test_the_paths_of_a_fact_stated_in_both_directions_share_its_evidence():
    graph = graph_of([("1", "ALSO", "2"), ("2", "ALSO", "1")], 2)
    index = EvidenceIndex.from_graph(graph)
    history, candidates = np.array([1]), np.array([2])
    listed = paths.find(graph, history, candidates, max_paths_per_pair=100)
    weights = index.path_weights(listed, history, candidates)
    assert weights.sum(axis=0) == pytest.approx(index.evidence(history, candidates)[0])


def test_a_path_that_changes_its_relation_or_is_long_carries_no_evidence():
    facts = [("1", "BY", "x"), ("2", "LIKE", "x"), ("2", "BY", "y"), ("3", "BY", "y")]
    graph = graph_of(facts, 3)
    listed = paths.find(graph, [1], [2, 3], max_hops=4)
    assert listed.lengths.tolist() == [2, 4]
    assert not EvidenceIndex.from_graph(graph).path_weights(listed, np.array([1]), np.array([2, 3])).any()


def test_no_paths_have_no_weights(random_graph):
    none = paths.find(random_graph, [], [1, 2])
    weights = EvidenceIndex.from_graph(random_graph).path_weights(none, np.array([]), np.array([1, 2]))
    assert weights.shape == (0, 3)


def test_a_graph_without_edges_gives_no_evidence():
    index = EvidenceIndex.from_graph(graph_of([], 2))
    assert index.evidence(np.array([1, 2])).shape == (3, 0)
