"""Two graphs are the same, array by array."""

import numpy as np

from llamarec_lkg.graph.knowledge_graph import KnowledgeGraph


ARRAYS = ("offsets", "targets", "edge_relations", "timestamps", "node_types", "item_nodes", "node_keys", "node_names")


def assert_same(one: KnowledgeGraph, other: KnowledgeGraph) -> None:
    assert one.relations == other.relations and one.entity_types == other.entity_types
    for name in ARRAYS:
        a, b = getattr(one, name), getattr(other, name)
        assert a.dtype == b.dtype and np.array_equal(a, b), name
    assert (one.weights is None) == (other.weights is None)
    assert one.weights is None or np.array_equal(one.weights, other.weights, equal_nan=True)
