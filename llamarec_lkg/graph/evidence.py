"""Evidence: how strongly a history points at each item along each relation of the graph.

Two items share evidence along relation `r` through the entities that `r` ties both to (the paths item -> entity ->
item), weighted by inverse document frequency, so that a rare shared director says more than a common genre; where `r`
ties items directly, the edge itself is the evidence, with its own weight where it has one, as co-ratings do. It is the
exact, differentiable counterpart of the path texts in the prompt: summed over all paths of a relation, not only the
few that fit.

All of it is sparse algebra. Every relation is an item x feature matrix, and the matrices of all relations stand side
by side in one; a batch of histories is a matrix of recency weights; their product is what the histories say of each
feature, and its product with the candidates' rows, summed by relation, is the evidence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from scipy import sparse

from .knowledge_graph import KnowledgeGraph
from .paths import Paths
from .ranges import entries_of, joined
from .statistics import statistics_along, statistics_of


BLOCK = 128  # lists that are read at once


@dataclass(frozen=True)
class EvidenceIndex:
    """Item features by relation, ready for products between histories and candidates.

    Args:
        relations (`tuple[str, ...]`): the graph's R relations.
        history_rows, candidate_rows (`scipy.sparse.csr_array`, shape (num_items + 1, F)): what an item says as part of
            a history and as a candidate. They are the same for relations to entities (item -> entity -> item). For
            direct edges the history's row holds its neighbours, the candidate's row the item itself.
        column_relation, column_node (`np.ndarray`, shape (F,)): relation and graph node of each column, which is
            ordered by them.
        scale (`np.ndarray` of `float32`, shape (R,)): evidence is divided by it, so that relations compare.
        half_life (`float`): an item of the history counts half as much as one `half_life` places later.
    """

    relations: tuple[str, ...]
    history_rows: sparse.csr_array
    candidate_rows: sparse.csr_array
    column_relation: np.ndarray
    column_node: np.ndarray
    scale: np.ndarray
    half_life: float

    @classmethod
    def from_graph(cls, graph: KnowledgeGraph, *, half_life: float = 10.0) -> EvidenceIndex:
        """Index every relation of `graph`; `scale` is 1 until `with_scale` sets it."""
        item_of_node = graph.item_of_node()
        sources, targets = graph.edge_sources(), np.asarray(graph.targets, dtype=np.int64)
        relations = np.asarray(graph.edge_relations, dtype=np.int64) // 2
        # every edge at an item, seen from that item, whichever way it points
        ends = np.concatenate(
            [np.stack([sources, relations, targets]), np.stack([targets, relations, sources])], axis=1
        )
        at_items = np.flatnonzero(item_of_node[ends[0]] > 0)
        (nodes, relations, others), first = np.unique(ends[:, at_items], axis=1, return_index=True)
        items = item_of_node[nodes]
        direct = item_of_node[others] > 0

        keys, columns = np.unique(relations * graph.num_nodes + others, return_inverse=True)
        frequency = np.bincount(columns)[columns]
        weights = np.where(direct, 1.0, np.log1p(graph.num_items / frequency))
        groups = items * len(graph.relations) + relations  # each item's part of each relation gets length 1
        weights /= np.sqrt(np.bincount(groups, weights**2))[groups]
        if graph.weights is not None:
            own = np.tile(graph.weights, 2)[at_items[first]]
            weights = np.where(direct & ~np.isnan(own), own, weights)
        kept = direct | (frequency > 1)  # what only one item has ties it to no other
        items, others, weights, direct = items[kept], others[kept], weights[kept], direct[kept]
        keys, columns = np.unique(keys[columns[kept]], return_inverse=True)

        # as a candidate, a directly tied item is found under its own node
        tied, tied_columns = item_of_node[others[direct]], columns[direct]
        tied_items, tied_columns = np.unique(np.stack([tied, tied_columns]), axis=1)
        shape = (graph.num_items + 1, len(keys))
        heard = (
            np.concatenate([weights[~direct], np.ones(len(tied_items))]),
            (np.concatenate([items[~direct], tied_items]), np.concatenate([columns[~direct], tied_columns])),
        )
        return cls(
            relations=graph.relations,
            history_rows=sparse.csr_array((weights, (items, columns)), shape=shape),
            candidate_rows=sparse.csr_array(heard, shape=shape),
            column_relation=keys // graph.num_nodes,
            column_node=keys % graph.num_nodes,
            scale=np.ones(len(graph.relations), dtype=np.float32),
            half_life=half_life,
        )

    @property
    def num_relations(self) -> int:
        return len(self.relations)

    @property
    def num_items(self) -> int:
        return self.history_rows.shape[0] - 1

    def with_scale(self, scale: Sequence[float]) -> EvidenceIndex:
        """The same index with another `scale`, for example one that was saved."""
        return replace(self, scale=np.asarray(scale, dtype=np.float32))

    def with_half_life(self, half_life: float) -> EvidenceIndex:
        """The same index, in which a history fades at another pace."""
        other = replace(self, half_life=half_life)
        # the pace is nothing to it, and making it is slow
        other.__dict__["_candidates_by_column"] = self._candidates_by_column
        return other

    # -- evidence ---------------------------------------------------------------------------------------------------

    def history_weights(self, length: int) -> np.ndarray:
        """Weight of each item of a history of `length`, oldest first, by recency: 1 for the last. Evidence is their
        sum, not their mean: what the last item says does not fade because others came before it."""
        return 0.5 ** (np.arange(length)[::-1] / self.half_life)

    def profiles(self, histories: Sequence[np.ndarray]) -> sparse.csr_array:
        """What histories of dense items, oldest first, say about every column, shape (B, F)."""
        lengths = [len(history) for history in histories]
        weights = [self.history_weights(length) for length in lengths]
        rows = np.repeat(np.arange(len(histories)), lengths)
        recency = sparse.csr_array(
            (joined(weights, float), (rows, joined(histories, np.int64))), shape=(len(histories), self.num_items + 1)
        )
        return recency @ self.history_rows

    def evidence(self, histories: Sequence[np.ndarray], candidates: Sequence[np.ndarray]) -> np.ndarray:
        """Evidence of each relation for B lists of candidates, each after its history (dense items, oldest first).

        Returns:
            `np.ndarray` of `float32`, shape (B, C, R), not negative; C is the length of the longest list, and shorter
            ones are padded with zeros at their end.
        """
        counts = np.array([len(one) for one in candidates], dtype=np.int64)
        result = np.zeros((len(histories), int(counts.max(initial=0)), self.num_relations), dtype=np.float32)
        for start in range(0, len(histories), BLOCK):
            block = slice(start, start + BLOCK)
            owners = np.repeat(np.arange(len(counts[block])), counts[block])
            heard = self.candidate_rows[joined(candidates[block], np.int64)]
            columns, heard_columns = np.unique(heard.indices, return_inverse=True)
            said = self.profiles(histories[block])[:, columns].toarray()
            which = np.repeat(np.arange(len(owners)), np.diff(heard.indptr))
            cells = which * self.num_relations + self.column_relation[heard.indices]
            terms = heard.data * said[owners[which], heard_columns]
            sums = np.bincount(cells, terms, minlength=len(owners) * self.num_relations)
            places = np.arange(len(owners)) - np.repeat(np.cumsum(counts[block]) - counts[block], counts[block])
            result[start + owners, places] = sums.reshape(len(owners), self.num_relations) / self.scale
        return result

    def catalogue(self, histories: Sequence[np.ndarray], weights: np.ndarray) -> np.ndarray:
        """Evidence of B histories for every item, summed over relations by `weights` (B, R), for example users'
        preferences: `float32`, shape (B, num_items + 1), 0 for the padding item."""
        profiles = self.profiles(histories)
        rows = np.repeat(np.arange(len(histories)), np.diff(profiles.indptr))
        by_column = np.asarray(weights, dtype=np.float64) / self.scale
        profiles.data *= by_column[rows, self.column_relation[profiles.indices]]
        return (profiles @ self._candidates_by_column).toarray().astype(np.float32)

    @cached_property
    def _candidates_by_column(self) -> sparse.csr_array:
        return self.candidate_rows.T.tocsr()

    def contributions(self, history: np.ndarray, candidate: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What one candidate's evidence is the sum of.

        Returns:
            place in the history, column, and weight (never 0) of every term, each of shape (T,); the weights of a
            relation's columns sum to the candidate's evidence along it.
        """
        said = self.history_rows[np.asarray(history, dtype=np.int64)]
        places = np.repeat(np.arange(len(history)), np.diff(said.indptr))
        listener = self.candidate_rows[[candidate]].toarray()[0]
        weights = self.history_weights(len(history))[places] * said.data * listener[said.indices]
        weights /= self.scale[self.column_relation[said.indices]]
        some = np.flatnonzero(weights)
        return places[some], said.indices[some], weights[some]

    def path_weights(self, paths: Paths, history: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        """The part of the evidence that runs through each path, shape (P, R).

        Summed over all paths of a candidate that lie on one relation, it is that candidate's evidence. A path that
        changes its relation on the way, or is longer than two edges, carries none.
        """
        weights = np.zeros((len(paths), self.num_relations), dtype=np.float32)
        relation = paths.edge_codes[:, 0] // 2
        second = paths.edge_codes[:, 1] // 2 if paths.edge_codes.shape[1] > 1 else np.full(len(paths), -1)
        rows = np.flatnonzero((paths.lengths == 1) | ((paths.lengths == 2) & (relation == second)))
        if not len(rows):
            return weights
        relation, source, target = relation[rows], paths.source_index[rows], paths.target_index[rows]
        keys, width = self._column_keys
        columns = keys.searchsorted(relation * width + paths.nodes[rows, 1])
        said = _values(self.history_rows, history, source, columns)
        heard = _values(self.candidate_rows, candidates, target, columns)
        # a fact stated in both directions makes several paths of one piece of evidence: they share it
        pieces = (source * len(candidates) + target) * len(keys) + columns
        _, same, counts = np.unique(pieces, return_inverse=True, return_counts=True)
        recency = self.history_weights(len(history))[source]
        weights[rows, relation] = recency * said * heard / self.scale[relation] / counts[same]
        return weights

    @cached_property
    def _column_keys(self) -> tuple[np.ndarray, int]:
        """Relation and node of each column as one number, ascending, and what a relation is multiplied by in it."""
        width = int(self.column_node.max(initial=0)) + 1
        return self.column_relation * width + self.column_node, width

    @property
    def mean_scale(self) -> np.ndarray:
        """What a mean over the items of a history is divided by: `scale` is that of a sum over a long one."""
        return self.scale * (1 - 0.5 ** (1.0 / self.half_life))

    # -- statistics of histories ------------------------------------------------------------------------------------

    def statistics(self, histories: Sequence[np.ndarray]) -> np.ndarray:
        """How histories move from item to item along each relation: what the preference module reads. `float32`, shape
        (B, R, len(STATISTICS)); zeros but for the length where there are fewer than two items."""
        return statistics_of(self, histories)

    def statistics_along(self, history: np.ndarray) -> np.ndarray:
        """The statistics of every beginning of one history, shape (len(history) + 1, R, len(STATISTICS)): row `t` is
        of its first `t` items. They come at the price of the last one alone."""
        return statistics_along(self, history)

    @cached_property
    def expected(self) -> np.ndarray:
        """Evidence, not yet scaled, that each item gives to an average candidate, shape (num_items + 1, R)."""
        mean = self.candidate_rows.sum(axis=0) / max(self.num_items, 1)
        rows = self.history_rows
        owners = np.repeat(np.arange(rows.shape[0]), np.diff(rows.indptr))
        cells = owners * self.num_relations + self.column_relation[rows.indices]
        sums = np.bincount(cells, rows.data * mean[rows.indices], minlength=rows.shape[0] * self.num_relations)
        return sums.reshape(rows.shape[0], self.num_relations)


def _values(rows: sparse.csr_array, items: np.ndarray, which: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """The value in the rows of `items[which]` at `columns`, 0 where there is none, shape (len(which),)."""
    of_item, entries = entries_of(rows, np.asarray(items, dtype=np.int64))
    if not len(entries):
        return np.zeros(len(which))
    keys, wanted = of_item * rows.shape[1] + rows.indices[entries], which * rows.shape[1] + columns
    places = np.minimum(keys.searchsorted(wanted), len(keys) - 1)
    return np.where(keys[places] == wanted, rows.data[entries[places]], 0.0)
