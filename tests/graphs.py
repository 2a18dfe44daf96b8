"""Small graphs to test with, and what to compare them by."""

import numpy as np
import pandas as pd

from llamarec_lkg.data.schema import HEAD, RELATION, TAIL, Triples
from llamarec_lkg.graph.knowledge_graph import KnowledgeGraph


ARRAYS = ("offsets", "targets", "edge_relations", "timestamps", "node_types", "item_nodes", "node_keys", "node_names")


def triples_of(*facts, links=None) -> Triples:
    """Facts in which "1" to "99" are the items of these ids, or those that `links` says."""
    frame = pd.DataFrame(facts, columns=[HEAD, RELATION, TAIL], dtype=object)
    return Triples.from_frame(frame, {str(i): str(i) for i in range(1, 100)} if links is None else links)


def graph_of(facts, num_items: int) -> KnowledgeGraph:
    """A graph with the items "1", "2", ... and these facts."""
    return KnowledgeGraph.from_triples(triples_of(*facts), [str(item) for item in range(1, num_items + 1)])


def edges_of(graph: KnowledgeGraph) -> list[tuple[str, str, str, int]]:
    """(source, relation, target, date), with "~" before a relation that is read against its direction."""
    keys = graph.node_keys
    return [
        (keys[source], "~" * (code % 2) + graph.relations[code // 2], keys[target], int(stamp))
        for source, code, target, stamp in zip(
            graph.edge_sources(), graph.edge_relations, graph.targets, graph.timestamps, strict=True
        )
    ]


def weighted_pairs(graph: KnowledgeGraph) -> dict[tuple[int, int], float]:
    """The weight of every edge that has one, by its dense items."""
    if graph.weights is None:
        return {}
    own, items = ~np.isnan(graph.weights), graph.item_of_node()
    ends = items[graph.edge_sources()[own]], items[np.asarray(graph.targets)[own]]
    return {(int(a), int(b)): float(weight) for a, b, weight in zip(*ends, graph.weights[own], strict=True)}


def assert_same(one: KnowledgeGraph, other: KnowledgeGraph) -> None:
    """Two graphs are the same, array by array."""
    assert one.relations == other.relations and one.entity_types == other.entity_types
    for name in ARRAYS:
        a, b = getattr(one, name), getattr(other, name)
        assert a.dtype == b.dtype and np.array_equal(a, b), name
    assert (one.weights is None) == (other.weights is None)
    assert one.weights is None or np.array_equal(one.weights, other.weights, equal_nan=True)
