"""The part of the evidence that runs through each path, looked up by the edges that the path takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from ..data.arrays import same_as_before
from .evidence import EvidenceIndex
from .knowledge_graph import KnowledgeGraph
from .paths import Ways
from .ranges import looked_up, owners


@dataclass(frozen=True)
class PathEvidence:
    """What the edges of a graph say: computed once, so that what a path carries is a product of two numbers.

    Args:
        graph: the paths' graph, of the nodes of the index, with some or all of its edges.
        index: whose evidence it is.
        said, heard (`np.ndarray`, shape (E,)): what the item at the edge's source says by it, as part of a history,
            and what the item at its target hears by it, as a candidate; 0 where there is none.
    """

    graph: KnowledgeGraph
    index: EvidenceIndex
    said: np.ndarray
    heard: np.ndarray

    @classmethod
    def of(cls, graph: KnowledgeGraph, index: EvidenceIndex) -> PathEvidence:
        items, sources, relations = graph.item_of_node(), graph.edge_sources(), graph.edge_relations // 2
        said = _along(index, index.history_rows, items.take(sources), relations, graph.targets)
        heard = _along(index, index.candidate_rows, items.take(graph.targets), relations, sources)
        return cls(graph, index, said, heard)

    def of_ways(self, ways: Ways, histories: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """The relation that each path of B lists (`paths.ways`, or some of them in their order) lies on, and its share
        of the evidence along it, `float32`, both of shape (P,).

        Summed over all paths of a candidate that lie on one relation, it is that candidate's evidence. A path that
        changes its relation on the way, or is longer than two edges, carries none.
        """
        recency = np.concatenate([self.index.history_weights(len(history)) for history in histories])
        first = ways.edges[0]
        relation = self.graph.edge_relations.take(first) >> 1
        weights = recency.take(ways.source_index)
        weights *= self.said.take(first)
        if len(ways.edges) > 1:
            second = ways.edges[1]
            longer = second >= 0  # a candidate that is tied directly is found under its own node, with a weight of 1
            weights *= np.where(longer, self.heard.take(second), 1.0)
            weights[longer & (self.graph.edge_relations.take(second) >> 1 != relation)] = 0.0
        for further in ways.edges[2:]:
            weights[further >= 0] = 0.0
        weights /= self.index.scale.take(relation)
        # a fact stated in both directions makes several paths of one piece of evidence: they share it
        rows = weights.nonzero()[0]
        nodes = self.graph.targets.take(first)
        of_one = (ways.source_index, ways.target_index, relation, nodes)
        again = same_as_before(*(values.take(rows) for values in of_one))
        if again.any():
            piece = (~again).cumsum()
            weights[rows] /= np.bincount(piece).take(piece)
        return relation, weights.astype(np.float32)


def _along(
    index: EvidenceIndex, rows: sparse.csr_array, items: np.ndarray, relations: np.ndarray, nodes: np.ndarray
) -> np.ndarray:
    """The value in the rows of `items` at the columns of `relations` and `nodes`, 0 where there is none."""
    cells = owners(np.diff(rows.indptr)) * index.num_relations + index.column_relation.take(rows.indices)
    width = 1 + max(int(index.column_node.max(initial=0)), int(nodes.max(initial=0)))
    keys = cells * width + index.column_node.take(rows.indices)
    return looked_up(keys, rows.data, (items * index.num_relations + relations) * width + nodes)
