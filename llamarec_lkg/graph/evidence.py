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

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from scipy import sparse

from .knowledge_graph import KnowledgeGraph
from .ranges import entries_of, joined, looked_up, order_of, owners, ranges
from .statistics import STATISTICS, statistics_along, statistics_of, steps_of
from .ties import Told, blocks, tell


MANY = 4  # where a list is at least this part of the catalogue, the whole catalogue is as fast
SCATTER = 4  # times as long an entry takes that is added where it belongs, than one of a product
TOGETHER, ROOM = 20, 1 << 22  # histories in one product, and numbers: what it makes stays in the cache
PIECE = 1 << 12  # rows of a product that are turned at once: what is read stays there, too
FADED = 64.0  # half-lives after which an item counts for nothing


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
        # every edge at an item, seen from that item, whichever way it points, as one number
        width = max(len(graph.relations), 1)
        ends = ((sources, targets), (targets, sources))
        ties = np.concatenate([(one * width + relations) * graph.num_nodes + other for one, other in ends])
        at_items = np.flatnonzero(np.concatenate([item_of_node[one] for one, _ in ends]))
        ties, first = np.unique(ties[at_items], return_index=True)
        groups, others = np.divmod(ties, max(graph.num_nodes, 1))
        nodes, relations = np.divmod(groups, width)
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
        tied = np.unique(item_of_node[others[direct]] * max(len(keys), 1) + columns[direct])
        tied_items, tied_columns = np.divmod(tied, max(len(keys), 1))
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
        other.__dict__["_tables"] = self._tables  # the pace is nothing to them, and making them is slow
        return other

    # -- evidence ---------------------------------------------------------------------------------------------------

    def history_weights(self, length: int) -> np.ndarray:
        """Weight of each item of a history of `length`, oldest first, by recency: 1 for the last. Evidence is their
        sum, not their mean: what the last item says does not fade because others came before it."""
        return 0.5 ** (np.arange(length)[::-1] / self.half_life)

    def evidence(self, histories: Sequence[np.ndarray], candidates: Sequence[np.ndarray]) -> np.ndarray:
        """Evidence of each relation for B lists of candidates, each after its history (dense items, oldest first).

        Returns:
            `np.ndarray` of `float32`, shape (B, C, R), not negative; C is the length of the longest list, and shorter
            ones are padded with zeros at their end.
        """
        return self.features(histories, candidates, [self.half_life], with_statistics=False)[0][0]

    def features(
        self,
        histories: Sequence[np.ndarray],
        candidates: Sequence[np.ndarray],
        half_lives: Sequence[float],
        *,
        with_statistics: bool = True,
    ) -> tuple[np.ndarray, np.ndarray]:
        """`evidence`, where histories fade at each of several paces, and `statistics`: what both need is looked up
        once.

        Returns:
            evidence, `float32`, shape (len(half_lives), B, C, R); statistics, `float32`, shape
            (B, R, len(STATISTICS)), zeros where they are not asked for.
        """
        paces = [self.with_half_life(half_life) for half_life in half_lives]
        candidates = [np.asarray(one, dtype=np.int64) for one in candidates]
        lengths, sizes = (np.array([len(one) for one in some], dtype=np.int64) for some in (histories, candidates))
        evidence = np.zeros((len(paces), len(sizes), sizes.max(initial=0), self.num_relations), dtype=np.float32)
        statistics = np.zeros((len(sizes), self.num_relations, len(STATISTICS)), dtype=np.float32)
        is_long = np.array([MANY * len(one) > self.num_items for one in candidates], dtype=bool)
        for index, result in zip(paces, evidence, strict=True):
            index._of_many(np.flatnonzero(is_long), histories, candidates, result)
        sizes[is_long] = 0
        if not with_statistics:
            audible = max(index._audible for index in paces)
            histories = [history[-audible:] for history in histories]
        rows_to_read = np.flatnonzero(~is_long | with_statistics)
        for block in blocks((lengths + sizes)[rows_to_read]):
            rows = rows_to_read[block]
            own, theirs = [histories[row] for row in rows], [candidates[row][: sizes[row]] for row in rows]
            told = tell(self, own, theirs, *([own] if with_statistics else []))
            if with_statistics:
                statistics[rows] = steps_of(self, own, told, told.heard[1]).summed()
            _, places = ranges(rows * evidence.shape[2], sizes[rows])
            for index, result in zip(paces, evidence, strict=True):
                result.reshape(len(histories) * result.shape[1], self.num_relations)[places] = index._of_few(own, told)
        return evidence, statistics

    def _of_few(self, histories: Sequence[np.ndarray], told: Told) -> np.ndarray:
        """Evidence of histories for the first kind of those who listen to them, shape (N, R): of what is said, what
        they hear."""
        said, heard = told.said, told.heard[0]
        recency = np.concatenate([self._audible_weights(len(history)) for history in histories])
        profile = np.bincount(said.cells, said.weights * recency.take(said.items), minlength=told.num_cells)
        return heard.summed(heard.weights * profile.take(heard.cells)) / self.scale

    def _of_many(
        self, rows: np.ndarray, histories: Sequence[np.ndarray], candidates: Sequence[np.ndarray], result: np.ndarray
    ) -> None:
        """Fills in those rows of `result` (B, C, R) whose lists are a good part of the catalogue."""
        everything = np.arange(self.num_items + 1)
        for start, sums in self._of_all([histories[row] for row in rows], 1.0 / self.scale[None], by_relation=True):
            for row, values in zip(rows[start:], sums.reshape(len(sums), len(everything), -1), strict=False):
                own = result[row, : len(candidates[row])]
                if np.array_equal(candidates[row], everything):
                    own[:] = values
                else:
                    values.take(candidates[row], axis=0, out=own)

    def catalogue(self, histories: Sequence[np.ndarray], weights: np.ndarray) -> np.ndarray:
        """Evidence of B histories for every item, summed over relations by `weights` (B, R), for example users'
        preferences: `float32`, shape (B, num_items + 1), 0 for the padding item."""
        result = np.zeros((len(histories), self.num_items + 1), dtype=np.float32)
        for start, sums in self._of_all(histories, np.asarray(weights, dtype=np.float64) / self.scale):
            result[start : start + len(sums)] = sums
        return result

    def _of_all(
        self, histories: Sequence[np.ndarray], weights: np.ndarray, *, by_relation: bool = False
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Evidence for every item times the `weights` (B or 1, R) of relations, summed over them unless it is asked
        for by relation: the first of some histories, and their evidence, `float32`, shape (some, num_items + 1) or
        (some, (num_items + 1) * R)."""
        rows = self._tables.by_relation if by_relation else self._tables.heard
        together = min(TOGETHER, max(1, ROOM // max(*rows.shape, 1)))
        for start in range(0, len(histories), together):
            block = slice(start, start + together)
            profiles = self.profiles(histories[block])
            profiles *= (weights if len(weights) == 1 else weights[block]).take(self.column_relation, axis=1)
            sums = np.empty((len(profiles), rows.shape[0]), dtype=np.float32)
            if SCATTER * self._tables.uses[profiles.any(axis=0)].sum() < rows.nnz:
                for row, profile in enumerate(profiles):
                    sums[row] = self._scattered(profile, by_relation)
            else:
                product = rows @ np.ascontiguousarray(profiles.T)
                for place in range(0, len(product), PIECE):
                    sums[:, place : place + PIECE] = product[place : place + PIECE].T
            yield start, sums

    def _scattered(self, profile: np.ndarray, by_relation: bool) -> np.ndarray:
        """One row of `_of_all` where little of the index is spoken of: column by column."""
        said, table = profile.nonzero()[0], self._candidates_by_column
        uses, entries = entries_of(table, said)
        cells, size = table.indices.take(entries), self.num_items + 1
        if by_relation:
            cells = cells.astype(np.int64) * self.num_relations + self.column_relation[said].repeat(uses)
            size *= self.num_relations
        return np.bincount(cells, table.data.take(entries) * profile[said].repeat(uses), minlength=size)

    def profiles(self, histories: Sequence[np.ndarray]) -> np.ndarray:
        """What histories of dense items, oldest first, say about every column, shape (B, F)."""
        items = [np.asarray(history, dtype=np.int64)[-self._audible :] for history in histories]
        lengths, width = [len(one) for one in items], len(self.column_relation)
        if len(items) == 1:  # sparse arrays are slow to make
            uses, entries = entries_of(self.history_rows, items[0])
            says = self.history_rows.data.take(entries) * self.history_weights(lengths[0]).repeat(uses)
            sums = np.bincount(self.history_rows.indices.take(entries), says, minlength=width)
            return sums[None].astype(float, copy=False)  # of nothing it is whole numbers
        said = self._tables.said[np.concatenate(items)]
        bounds = said.indptr[np.cumsum([0, *lengths])].tolist()
        for row, (start, end) in enumerate(zip(bounds, bounds[1:], strict=False)):
            said.indices[start:end] += row * width  # the columns of all histories, side by side
        said = sparse.csc_array((said.data, said.indices, said.indptr), shape=(len(items) * width, sum(lengths)))
        weights = self.history_weights(max(lengths))
        recency = np.concatenate([weights[len(weights) - length :] for length in lengths])
        return (said @ recency).reshape(len(items), width)

    @property
    def _audible(self) -> int:
        """How many items at the end of a history are not so far back that nothing is left of their weights."""
        return math.ceil(FADED * self.half_life)

    def _audible_weights(self, length: int) -> np.ndarray:
        """`history_weights`, 0 for items before those."""
        weights = self.history_weights(length)
        weights[: max(0, length - self._audible)] = 0.0
        return weights

    @property
    def _candidates_by_column(self) -> sparse.csr_array:
        return self._tables.by_column

    @cached_property
    def _tables(self) -> _Tables:
        return _Tables(self.history_rows, self.candidate_rows, self.column_relation, self.num_relations)

    def contributions(
        self, histories: Sequence[np.ndarray], candidates: Sequence[np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """What the evidence of the candidates of B lists is the sum of, wherever in the history of its list (dense
        items) its terms stand.

        Returns:
            index into the candidates and place in the histories, both counted through all lists, column, and weight
            (never 0) of every term, each of shape (T,), candidate by candidate. Times the `history_weights` of
            their places, the weights of a relation's columns sum to the candidate's evidence along it.
        """
        width = len(self.column_relation)  # each list has columns of its own

        def spoken(rows: sparse.csr_array, lists: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            lengths, entries = entries_of(rows, joined(lists, np.int64))
            places, own = owners(lengths), owners(np.array([len(one) for one in lists], dtype=np.int64))
            return places, entries, rows.indices[entries] + own[places] * width

        places, entries, said = spoken(self.history_rows, histories)
        order = order_of(said)  # by column
        said = said[order]
        which, heard, wanted = spoken(self.candidate_rows, candidates)
        first = said.searchsorted(wanted)
        term, found = ranges(first, said.searchsorted(wanted, "right") - first)
        in_order = order_of(which[term] * len(order) + order[found])  # as they stand in the history
        term, found = term[in_order], order[found[in_order]]
        columns = wanted[term] % width
        weights = self.history_rows.data[entries[found]] * self.candidate_rows.data[heard[term]]
        weights = weights / self.scale[self.column_relation[columns]]
        some = np.flatnonzero(weights)
        return which[term[some]], places[found[some]], columns[some], weights[some]

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
        cells = owners(np.diff(rows.indptr)) * self.num_relations + self.column_relation[rows.indices]
        sums = np.bincount(cells, rows.data * mean[rows.indices], minlength=rows.shape[0] * self.num_relations)
        return sums.reshape(rows.shape[0], self.num_relations)


@dataclass(frozen=True)
class _Tables:
    """The rows in other forms, made when they are asked for."""

    history_rows: sparse.csr_array
    candidate_rows: sparse.csr_array
    column_relation: np.ndarray
    num_relations: int

    @cached_property
    def said(self) -> sparse.csr_array:
        return _compact(self.history_rows)

    @cached_property
    def heard(self) -> sparse.csr_array:
        return _compact(self.candidate_rows)

    @cached_property
    def by_column(self) -> sparse.csr_array:
        """Shape (F, num_items + 1)."""
        return self.candidate_rows.T.tocsr()

    @cached_property
    def uses(self) -> np.ndarray:
        """How many items hear of each column, shape (F,)."""
        return np.bincount(self.candidate_rows.indices, minlength=len(self.column_relation))

    @cached_property
    def by_relation(self) -> sparse.csr_array:
        """A row for each item and relation, shape ((num_items + 1) * R, F). Columns are ordered by relation, so that
        the entries stay where they are."""
        rows, size = self.candidate_rows, self.candidate_rows.shape[0] * self.num_relations
        cells = owners(np.diff(rows.indptr)) * self.num_relations + self.column_relation[rows.indices]
        counts = np.bincount(cells, minlength=size)
        starts = np.concatenate([[0], counts.cumsum()])
        return _compact(sparse.csr_array((rows.data, rows.indices, starts), shape=(size, rows.shape[1])))


def _compact(rows: sparse.csr_array) -> sparse.csr_array:
    """The same rows with indices of 32 bits where these are enough: products read a quarter less of them."""
    if max(*rows.shape, rows.nnz) > np.iinfo(np.int32).max:
        return rows
    indices, starts = (array.astype(np.int32) for array in (rows.indices, rows.indptr))
    return sparse.csr_array((rows.data, indices, starts), shape=rows.shape)


def _values(rows: sparse.csr_array, items: np.ndarray, which: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """The value in the rows of `items[which]` at `columns`, 0 where there is none, shape (len(which),)."""
    lengths, entries = entries_of(rows, np.asarray(items, dtype=np.int64))
    keys, wanted = owners(lengths) * rows.shape[1] + rows.indices[entries], which * rows.shape[1] + columns
    return looked_up(keys, rows.data[entries], wanted)
