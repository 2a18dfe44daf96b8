"""Evidence: how strongly a history points at each item along each relation of the graph.

Two items share evidence along relation `r` through the entities that `r` ties both to (the paths item -> entity ->
item), weighted by inverse document frequency, so that a rare shared director says more than a common genre; where `r`
ties items directly, the edge itself is the evidence. It is the exact, differentiable counterpart of the path texts in
the prompt: summed over all paths of a relation, not only the few that fit.

An edge with a weight of its own says just that: so co-ratings, which are the evidence along RATED summed over people,
can stand for the people themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from ..data.schema import UNKNOWN_USER
from ..data.user_ids import USER
from .knowledge_graph import KnowledgeGraph
from .paths import Paths


# What a history says about each relation; the first four are logarithms of 1 + evidence.
STATISTICS = (
    "recent",  # mean evidence that earlier items gave to the ones that followed, recent steps counting more
    "mean",  # the same, all steps alike
    "last",  # of the last step
    "expected",  # evidence that the history gives to an average item of the catalogue
    "tied",  # share of steps from an item to one it is tied to
    "lift",  # log of mean over expected: how far above chance the user keeps to the relation
    "length",  # of the history, the same for all relations
)


STATISTICS_WINDOW = 128


RECENT_STEPS = 10.0  # half-life of "recent"


@dataclass(frozen=True)
class _Rows:
    """Sparse rows, one a dense item: `columns` and `weights` of item `i` are at `offsets[i]:offsets[i + 1]`."""

    offsets: np.ndarray
    columns: np.ndarray
    weights: np.ndarray

    @classmethod
    def pack(cls, num_items: int, items: np.ndarray, columns: np.ndarray, weights: np.ndarray) -> _Rows:
        order = np.lexsort((columns, items))
        offsets = np.concatenate([[0], np.cumsum(np.bincount(items, minlength=num_items + 1))])
        return cls(offsets, columns[order], weights[order].astype(np.float32))

    def take(self, items: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Index into `items`, column and weight of every entry of these rows."""
        starts = self.offsets[items]
        lengths = self.offsets[items + 1] - starts
        which = np.repeat(np.arange(len(items)), lengths)
        entries = np.arange(len(which)) + np.repeat(starts - np.cumsum(lengths) + lengths, lengths)
        return which, self.columns[entries], self.weights[entries]

    def lookup(self, items: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Weight of each (item, column), 0 where the row has none."""
        width = max(int(self.columns.max(initial=0)), int(columns.max(initial=0))) + 1
        owners = np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))
        keys, wanted = owners * width + self.columns, items * width + columns
        places = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        return np.where(keys[places] == wanted, self.weights[places], 0.0)


@dataclass(frozen=True)
class EvidenceIndex:
    """Item features by relation, ready for dot products between a history and candidates.

    Args:
        relations (`tuple[str, ...]`): the graph's R relations.
        history_rows, candidate_rows: what an item says as part of a history and as a candidate. They are the same for
            relations to entities (item -> entity -> item). For direct edges the history's row holds its neighbours.
        column_relation, column_node (`np.ndarray`, shape (num_columns,)): relation and graph node of each column,
            which is ordered by them.
        column_user (`np.ndarray`, shape (num_columns,)): dense user whose own edges a column is made of, 0 for
            entities.
        scale (`np.ndarray` of `float32`, shape (R,)): evidence is divided by it, so that relations compare.
        half_life (`float`): an item of the history counts half as much as one `half_life` places later.
    """

    relations: tuple[str, ...]
    history_rows: _Rows
    candidate_rows: _Rows
    column_relation: np.ndarray
    column_node: np.ndarray
    column_user: np.ndarray
    scale: np.ndarray
    half_life: float

    @classmethod
    def from_graph(
        cls, graph: KnowledgeGraph, user_ids: Sequence[str] = (), *, half_life: float = 10.0
    ) -> EvidenceIndex:
        """Index every relation of `graph`; `scale` is 1 until `with_scale` sets it.

        Args:
            user_ids: raw ids of dense users 1, 2, ...; by default the keys of the graph's user nodes in their order.
        """
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
        column_relation = keys // graph.num_nodes
        frequency = np.bincount(columns, minlength=len(keys))
        weights = np.where(direct, 1.0, np.log1p(graph.num_items / frequency[columns]))
        groups = items * len(graph.relations) + relations  # each item's part of each relation gets length 1
        weights /= np.sqrt(np.bincount(groups, weights**2))[groups]
        if graph.weights is not None:
            own = np.tile(graph.weights, 2)[at_items[first]]
            weights = np.where(direct & ~np.isnan(own), own, weights)

        # as a candidate, a directly tied item is found under its own node
        tied, tied_columns = item_of_node[others[direct]], columns[direct]
        tied_items, first = np.unique(np.stack([tied, tied_columns]), axis=1, return_index=True)
        return cls(
            relations=graph.relations,
            history_rows=_Rows.pack(graph.num_items, items, columns, weights),
            candidate_rows=_Rows.pack(
                graph.num_items,
                np.concatenate([items[~direct], tied_items[0]]),
                np.concatenate([columns[~direct], tied_items[1]]),
                np.concatenate([weights[~direct], np.ones(len(first))]),
            ),
            column_relation=column_relation,
            column_node=keys % graph.num_nodes,
            column_user=_users_of_nodes(graph, user_ids)[keys % graph.num_nodes],
            scale=np.ones(len(graph.relations), dtype=np.float32),
            half_life=half_life,
        )

    @property
    def num_relations(self) -> int:
        return len(self.relations)

    @property
    def num_items(self) -> int:
        return len(self.history_rows.offsets) - 2

    def history_weights(self, length: int) -> np.ndarray:
        """Weight of each item of a history of `length`, oldest first, by recency; they sum to 1."""
        weights = 0.5 ** (np.arange(length)[::-1] / self.half_life)
        return weights / max(weights.sum(), 1e-12)

    def profile(self, history: np.ndarray, user: int = UNKNOWN_USER) -> np.ndarray:
        """What a history says about every column, shape (num_columns,).

        The user's own columns are left out: in training they hold the very interaction that is to be predicted.
        """
        history = np.asarray(history, dtype=np.int64)
        which, columns, weights = self._without(user, *self.history_rows.take(history))
        recency = self.history_weights(len(history))
        return np.bincount(columns, weights * recency[which], minlength=len(self.column_relation))

    def _without(
        self, user: int, which: np.ndarray, columns: np.ndarray, weights: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows as they would be without the user's own edges: those weigh nothing, the rest has length 1 again.

        So an item that the user has in the training graph looks like one that is not there: a target does not stand
        out.
        """
        own = self.column_user[columns] == user
        if user == UNKNOWN_USER or not own.any():
            return which, columns, weights
        cells = which * self.num_relations + self.column_relation[columns]
        rest = 1.0 - np.bincount(cells[own], weights[own] ** 2, minlength=int(cells.max()) + 1)
        length = np.sqrt(np.where(rest > 1e-6, rest, np.inf))  # nothing is left of a row that was the user's alone
        return which, columns, np.where(own, 0.0, weights / length[cells])

    def evidence(
        self, history: np.ndarray, candidates: np.ndarray | None = None, user: int = UNKNOWN_USER
    ) -> np.ndarray:
        """Evidence of each relation for each candidate.

        Args:
            history (`np.ndarray`, shape (H,)): dense items, oldest first; may be empty.
            candidates (`np.ndarray`, shape (C,), optional): dense items, by default 0..num_items (all; padding gets
                0).
            user (`int`): dense user.

        Returns:
            `np.ndarray` of `float32`, shape (C, R), not negative.
        """
        candidates = np.arange(self.num_items + 1) if candidates is None else np.asarray(candidates, dtype=np.int64)
        profile = self.profile(history, user)
        which, columns, weights = self._without(user, *self.candidate_rows.take(candidates))
        cells = which * self.num_relations + self.column_relation[columns]
        sums = np.bincount(cells, weights * profile[columns], minlength=len(candidates) * self.num_relations)
        return (sums.reshape(len(candidates), -1) / self.scale).astype(np.float32)

    def contributions(
        self, history: np.ndarray, candidate: int, user: int = UNKNOWN_USER
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What one candidate's evidence is the sum of.

        Returns:
            place in the history, column, and weight (never 0) of every term, each of shape (T,); the weights of a
            relation's columns sum to the candidate's evidence along it.
        """
        history, candidates = np.asarray(history, dtype=np.int64), np.array([candidate], dtype=np.int64)
        _, heard_columns, heard = self._without(user, *self.candidate_rows.take(candidates))
        places, columns, said = self._without(user, *self.history_rows.take(history))
        listener = np.zeros(len(self.column_relation))
        listener[heard_columns] = heard
        weights = self.history_weights(len(history))[places] * said * listener[columns]
        weights /= self.scale[self.column_relation[columns]]
        some = np.flatnonzero(weights)
        return places[some], columns[some], weights[some]

    def history_statistics(self, history: np.ndarray, user: int = UNKNOWN_USER) -> np.ndarray:
        """How a history moves from item to item along each relation: what the preference module reads.

        Args:
            history (`np.ndarray`, shape (H,)): dense items, oldest first; of a long one the latest
                `STATISTICS_WINDOW`.
            user (`int`): dense user, whose own edges say nothing.

        Returns:
            `np.ndarray` of `float32`, shape (R, len(STATISTICS)); zeros but for the length where there are fewer than
            two items.
        """
        history = np.asarray(history, dtype=np.int64)
        values = np.zeros((len(STATISTICS), self.num_relations))
        values[-1] = np.log1p(len(history)) / 5.0
        history = history[-STATISTICS_WINDOW:]
        if len(history) >= 2:
            strength, tied = self._steps(history, user)
            recency = 0.5 ** (np.arange(len(strength))[::-1] / RECENT_STEPS)
            mean, recent = strength.mean(axis=0), recency @ strength / recency.sum()
            common = self.profile(history, user) * self._mean_candidate
            expected = np.bincount(self.column_relation, common, minlength=self.num_relations) / self.scale
            lift = np.log((mean + 0.05) / (expected + 0.05))
            values[:-1] = [*np.log1p([recent, mean, strength[-1], expected]), tied.mean(axis=0), lift]
        return values.T.astype(np.float32)

    def _steps(self, history: np.ndarray, user: int) -> tuple[np.ndarray, np.ndarray]:
        """For every item after the first, the evidence that those before it gave, and whether the one right before it
        gave any; both (H - 1, R)."""
        said, said_columns, said_weights = self._without(user, *self.history_rows.take(history))
        heard, heard_columns, heard_weights = self._without(user, *self.candidate_rows.take(history))
        columns, compact = np.unique(np.concatenate([said_columns, heard_columns]), return_inverse=True)
        said_columns, heard_columns = compact[: len(said)], compact[len(said) :]
        relation, places = self.column_relation[columns], np.arange(len(history) + 1)
        said_at, heard_at = np.searchsorted(said, places), np.searchsorted(heard, places)
        strength, tied = np.zeros((2, len(history), self.num_relations))
        profile, previous = np.zeros((2, len(columns)))
        decay, total = 0.5 ** (1.0 / self.half_life), 0.0
        for place in range(len(history)):
            part = slice(*heard_at[place : place + 2])
            at, weights = heard_columns[part], heard_weights[part]
            if place:
                told = [
                    np.bincount(relation[at], weights * by[at], minlength=len(tied[0])) for by in (profile, previous)
                ]
                strength[place], tied[place] = told[0] / total, told[1] > 0
            part = slice(*said_at[place : place + 2])
            profile *= decay
            profile[said_columns[part]] += said_weights[part]
            total = total * decay + 1.0
            previous[:] = 0.0
            previous[said_columns[part]] = said_weights[part]
        return strength[1:] / self.scale, tied[1:]

    @cached_property
    def _mean_candidate(self) -> np.ndarray:
        """Mean of all items' candidate rows, shape (num_columns,)."""
        rows = self.candidate_rows
        return np.bincount(rows.columns, rows.weights, minlength=len(self.column_relation)) / max(self.num_items, 1)

    def path_weights(self, paths: Paths, history: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        """The part of the evidence that runs through each path, shape (P, R).

        Summed over all paths of a candidate that lie on one relation, it is that candidate's evidence. A path that
        changes its relation on the way, or is longer than two edges, carries none.
        """
        weights = np.zeros((len(paths), self.num_relations), dtype=np.float32)
        relation = paths.edge_codes[:, 0] // 2
        second = paths.edge_codes[:, 1] // 2 if paths.edge_codes.shape[1] > 1 else np.full(len(paths), -1)
        plain = (paths.lengths == 1) | ((paths.lengths == 2) & (relation == second))
        rows = np.flatnonzero(plain)
        if not len(rows):
            return weights
        width = int(self.column_node.max()) + 1
        keys = relation[rows] * width + paths.nodes[rows, 1]
        columns = np.searchsorted(self.column_relation * width + self.column_node, keys)
        history, candidates = np.asarray(history, dtype=np.int64), np.asarray(candidates, dtype=np.int64)
        recency = self.history_weights(len(history))[paths.source_index[rows]]
        told = self.history_rows.lookup(history[paths.source_index[rows]], columns)
        heard = self.candidate_rows.lookup(candidates[paths.target_index[rows]], columns)
        # a fact stated in both directions makes several paths of one piece of evidence: they share it
        places = np.stack([paths.source_index[rows], paths.target_index[rows], columns])
        _, same, counts = np.unique(places, axis=1, return_inverse=True, return_counts=True)
        weights[rows, relation[rows]] = recency * told * heard / self.scale[relation[rows]] / counts[same.ravel()]
        return weights

    def with_scale(self, scale: Sequence[float]) -> EvidenceIndex:
        """The same index with another `scale`, for example one that was saved."""
        return replace(self, scale=np.asarray(scale, dtype=np.float32))


def _users_of_nodes(graph: KnowledgeGraph, user_ids: Sequence[str]) -> np.ndarray:
    """Dense user of every node, 0 where the node is none, shape (N,)."""
    users = np.zeros(graph.num_nodes, dtype=np.int64)
    if USER in graph.entity_types:
        nodes = np.flatnonzero(np.asarray(graph.node_types) == graph.entity_types.index(USER))
        keys = [str(key) for key in graph.node_keys[nodes]]
        dense = {str(raw): row + 1 for row, raw in enumerate(user_ids or keys)}
        users[nodes] = [dense.get(key, UNKNOWN_USER) for key in keys]
    return users
