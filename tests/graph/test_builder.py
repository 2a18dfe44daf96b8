"""Facts become edges: order, inverses, repeated and merged facts."""

import tracemalloc

import numpy as np
import pytest
from graphs import edges_of, triples_of

from llamarec_lkg.data.schema import Triples
from llamarec_lkg.graph.builder import OVERLAP, UNDATED, GraphBuilder, merge_inverses
from llamarec_lkg.graph.knowledge_graph import KnowledgeGraph


def test_triples_become_edges_in_both_directions_ordered_by_source_code_and_target(graph):
    assert graph.relations == ("BY", "NEXT")
    assert graph.entity_types == ("item", "entity")
    assert graph.node_keys.tolist() == ["1", "2", "3", "x", "y"]
    assert graph.node_names.tolist() == ["One", "Two", "Three", "", ""]
    assert graph.node_types.tolist() == [0, 0, 0, 1, 1]
    assert graph.item_nodes.tolist() == [-1, 0, 1, 2]
    assert graph.offsets.tolist() == [0, 2, 5, 5, 7, 8]
    assert graph.targets.tolist() == [3, 1, 3, 4, 0, 0, 1, 1]
    assert graph.edge_relations.tolist() == [0, 2, 0, 0, 3, 1, 1, 1]
    assert set(graph.timestamps.tolist()) == {UNDATED}
    assert (graph.num_nodes, graph.num_edges, graph.num_items) == (5, 8, 3)


def test_titles_default_to_ids():
    assert KnowledgeGraph.from_triples(triples_of(), ["1", "2"]).node_names[:2].tolist() == ["1", "2"]


def test_repeated_facts_count_once():
    graph = KnowledgeGraph.from_triples(triples_of(("1", "BY", "x"), ("1", "BY", "x"), ("1", "AS", "x")), ["1"])
    assert [edge[:3] for edge in edges_of(graph)] == [
        ("1", "AS", "x"),
        ("1", "BY", "x"),
        ("x", "~AS", "1"),
        ("x", "~BY", "1"),
    ]


def test_linked_entities_are_the_items_and_unlinked_items_have_no_edges():
    triples = triples_of(("m.7", "BY", "x"), ("m.8", "BY", "x"), links={"m.7": "1", "m.8": "unknown item"})
    graph = KnowledgeGraph.from_triples(triples, ["1", "2"])
    assert graph.node_keys.tolist() == ["1", "2", "m.8", "x"]
    assert ("1", "BY", "x", UNDATED) in edges_of(graph)
    assert graph.offsets[2] - graph.offsets[1] == 0
    assert graph.item_of_node().tolist() == [1, 2, 0, 0]


def test_a_graph_without_facts_has_items_and_no_edges():
    graph = KnowledgeGraph.from_triples(triples_of(), ["1", "2"])
    assert (graph.num_nodes, graph.num_edges, graph.num_items) == (2, 0, 2)
    assert graph.before(5).num_edges == 0
    which, codes, reached = graph.neighbours(np.array([0, 1]))
    assert len(which) == len(codes) == len(reached) == 0


def merge_pairs(facts: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """`merge_inverses` of pairs, shape (T, 2), to pairs."""
    width = 1000
    merged = merge_inverses({name: np.sort(pairs @ [width, 1]) for name, pairs in facts.items()}, width)
    return {name: np.stack(np.divmod(pairs, width), axis=1) for name, pairs in merged.items()}


def test_relations_stated_in_both_directions_are_merged():
    pairs = {
        "BY": np.array([[1, 7], [2, 7], [3, 8]]),
        "MADE": np.array([[7, 1], [7, 2], [8, 3]]),
        "OTHER": np.array([[7, 1], [9, 9]]),
    }
    merged = merge_pairs(pairs)
    assert list(merged) == ["BY", "OTHER"]
    assert merged["BY"].tolist() == [[1, 7], [2, 7], [3, 8]]
    assert merged["OTHER"].tolist() == [[7, 1], [9, 9]]


def test_merging_adds_facts_that_only_the_inverse_states():
    by = np.array([[i, 100 + i] for i in range(10)])
    made = np.array([[100 + i, i] for i in range(11)])
    assert merge_pairs({"BY": by, "MADE": made})["BY"].tolist() == [[i, 100 + i] for i in range(11)]


def test_relations_that_overlap_too_little_or_differ_much_in_size_stay_apart():
    by = np.array([[i, 100 + i] for i in range(10)])
    eight = np.array([[100 + i, i] for i in range(8)] + [[100, 50], [100, 51]])
    assert list(merge_pairs({"A": by, "B": eight})) == ["A", "B"]
    large = np.concatenate([by[:, ::-1], np.array([[200 + i, i] for i in range(11)])])
    assert list(merge_pairs({"A": by, "B": large})) == ["A", "B"]
    assert list(merge_pairs({"A": by, "B": by})) == ["A", "B"]


def test_of_several_relations_that_fit_the_first_takes_the_facts():
    by = np.array([[i, 100 + i] for i in range(10)])
    made = np.array([[100 + i, i] for i in range(11)])
    merged = merge_pairs({"A": by, "B": by, "C": made})
    assert {name: len(pairs) for name, pairs in merged.items()} == {"A": 11, "B": 10}


def test_a_graph_of_triples_merges_inverse_relations():
    graph = KnowledgeGraph.from_triples(
        triples_of(("1", "a.by", "x"), ("2", "a.by", "y"), ("x", "b.made", "1"), ("y", "b.made", "2")), ["1", "2"]
    )
    assert graph.relations == ("a.by",)
    assert graph.num_edges == 4


def slow_merge(facts: dict[str, np.ndarray]) -> dict[str, list[tuple[int, int]]]:
    """`merge_inverses` by sets of pairs."""
    merged: dict[str, set] = {}
    for relation in sorted(facts):
        pairs = {tuple(pair) for pair in facts[relation].tolist()}
        backwards = {(tail, head) for head, tail in pairs}
        for name in sorted(merged):
            few, many = sorted((len(backwards), len(merged[name])))
            if many <= 2 * few and len(backwards & merged[name]) >= OVERLAP * few:
                merged[name] |= backwards
                break
        else:
            merged[relation] = pairs
    return {name: sorted(pairs) for name, pairs in merged.items()}


def test_merging_equals_that_of_sets():
    """Relations that repeat most of each other's facts, in either direction."""
    generator, joined = np.random.default_rng(3), 0
    for _ in range(150):
        facts, common = {}, generator.integers(0, 12, size=(12, 2))
        for relation in "ABCDE"[: generator.integers(1, 6)]:
            pairs = common[generator.random(12) < generator.choice([0.5, 0.95, 1.0])]
            pairs = np.concatenate([pairs[:, :: generator.choice([1, -1])], generator.integers(0, 14, size=(1, 2))])
            facts[relation] = np.unique(pairs, axis=0)
        merged = merge_pairs(facts)
        assert {name: [*map(tuple, pairs.tolist())] for name, pairs in merged.items()} == slow_merge(facts)
        joined += len(merged) < len(facts)
    assert joined > 20


def test_edges_are_sorted_and_of_a_fact_given_twice_the_earliest_stays():
    generator = np.random.default_rng(4)
    for dated, weighted in ((False, False), (True, False), (False, True), (True, True)):
        builder, given = GraphBuilder(), []
        nodes = [builder.node("node", str(key), "") for key in range(6)]
        for relation in (0, 1, 0):
            ends = generator.integers(0, 6, size=(2, 20))
            stamps = generator.integers(0, 5, 20) if dated else UNDATED
            weights = generator.random(20).astype(np.float32) if weighted else np.nan
            builder.edges(f"R{relation}", *ends, stamps, weights)
            stamps, weights = np.broadcast_to(stamps, 20).tolist(), np.broadcast_to(weights, 20).tolist()
            for code, (sources, targets) in ((2 * relation, ends.tolist()), (2 * relation + 1, ends[::-1].tolist())):
                given += zip(sources, [code] * 20, targets, stamps, weights, strict=True)
        graph, kept = KnowledgeGraph(**builder.build([-1, *nodes])), {}
        for source, code, target, stamp, weight in sorted(given, key=lambda edge: edge[:4]):
            kept.setdefault((source, code, target), (stamp, weight))
        edges = zip(graph.edge_sources().tolist(), graph.edge_relations.tolist(), graph.targets.tolist(), strict=True)
        assert list(edges) == list(kept)
        assert graph.timestamps.tolist() == [stamp for stamp, _ in kept.values()]
        assert (graph.weights is None) == (not weighted)
        assert graph.weights is None or graph.weights.tolist() == [weight for _, weight in kept.values()]
        assert (graph.timestamps.dtype, graph.targets.dtype, graph.edge_relations.dtype) == (np.int64, *[np.int32] * 2)


@pytest.mark.parametrize("backwards", ["unstated", "by the same relation", "by another relation"])
def test_building_holds_few_bytes_a_fact(backwards):
    """A fact is two edges of 16 bytes each; what they are sorted by takes as much again at most."""
    generator = np.random.default_rng(0)
    ids = np.array([str(item) for item in range(2000)], dtype=object)
    heads, tails = ids[generator.integers(0, 2000, size=(2, 100_000))]
    names = np.full(200_000, "A", dtype=object)
    if backwards == "unstated":
        heads, tails = np.append(heads, ids[generator.integers(0, 2000, 100_000)]), np.append(tails, tails)
    else:
        heads, tails = np.append(heads, tails), np.append(tails, heads)
        names[100_000:] = "A" if backwards == "by the same relation" else "B"
    triples = Triples(heads, names, tails, dict(zip(ids, ids, strict=True)))
    tracemalloc.start()
    graph = KnowledgeGraph.from_triples(triples, ids.tolist())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert graph.num_edges == pytest.approx(200_000 if backwards == "by another relation" else 400_000, rel=0.05)
    assert peak < 75 * len(triples)
