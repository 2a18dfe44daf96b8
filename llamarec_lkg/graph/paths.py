"""Shortest typed paths between the items of a history and the candidates, and what each path weighs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import special

from .knowledge_graph import KnowledgeGraph
from .ranges import ranks
from .walks import shortest


MAX_FRONTIER = 1 << 17
BLOCK = 32  # lists that are searched at once


@dataclass(frozen=True)
class Paths:
    """P paths. Path `p` goes from `sources[source_index[p]]` over `lengths[p]` edges to `targets[target_index[p]]`.

    Args:
        source_index, target_index, lengths (`np.ndarray`, shape (P,)).
        nodes (`np.ndarray`, shape (P, max_hops + 1)): graph nodes, -1 behind the end.
        edge_codes (`np.ndarray`, shape (P, max_hops)): edge codes of the graph, -1 behind the end.
    """

    source_index: np.ndarray
    target_index: np.ndarray
    lengths: np.ndarray
    nodes: np.ndarray
    edge_codes: np.ndarray

    def __len__(self) -> int:
        return len(self.lengths)

    def take(self, rows: np.ndarray | slice) -> Paths:
        return Paths(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))

    def relation_counts(self, num_relations: int) -> np.ndarray:
        """How often each relation occurs in each path, shape (P, R); a relation and its inverse are one."""
        counts = np.zeros((len(self), num_relations), dtype=np.float32)
        rows, columns = np.nonzero(self.edge_codes >= 0)
        np.add.at(counts, (rows, self.edge_codes[rows, columns] // 2), 1.0)
        return counts


def find(
    graph: KnowledgeGraph,
    sources: Sequence[int] | np.ndarray,
    targets: Sequence[int] | np.ndarray,
    *,
    max_hops: int = 2,
    max_paths_per_pair: int = 16,
    max_frontier: int = MAX_FRONTIER,
) -> Paths:
    """The shortest paths of every (source, target) pair.

    All shortest paths of a pair are kept, up to the cap. Their order is fixed by (source, target, nodes, edges), so
    two runs agree. A pair that is not connected within `max_hops`, that is one and the same item, or that has no node
    in the graph, has no path.

    Args:
        graph: leave relations out with `graph.without_relations`; make it time-safe with `graph.before`.
        sources, targets: dense items.
        max_hops: 2 finds item -> entity -> item, 4 goes through another item.
        max_paths_per_pair: of the shortest paths of a pair, how many are kept, rarest entity first.
        max_frontier: how many edges a search may take from the neighbours of one item, where 3 hops or more are
            looked for; those of the rarest neighbours come first. It bounds what a hub costs, and does not depend on
            what else is looked for.
    """
    return find_together(
        graph,
        [sources],
        [targets],
        max_hops=max_hops,
        max_paths_per_pair=max_paths_per_pair,
        max_frontier=max_frontier,
    )


def find_together(
    graph: KnowledgeGraph,
    sources: Sequence[Sequence[int] | np.ndarray],
    targets: Sequence[Sequence[int] | np.ndarray],
    *,
    max_hops: int = 2,
    max_paths_per_pair: int = 16,
    max_frontier: int = MAX_FRONTIER,
) -> Paths:
    """The same for each of B lists of sources with its targets, at a lower price than one by one: `source_index` and
    `target_index` count through all lists, one behind the other."""
    found, before = [], np.zeros(2, dtype=np.int64)
    for place in range(0, len(sources), BLOCK):
        block = slice(place, place + BLOCK)
        lengths, counts = (np.array([len(one) for one in lists[block]]) for lists in (sources, targets))
        lists = np.arange(len(lengths)).repeat(lengths)
        width = max(1, int(counts.max()))
        theirs = np.full((len(lengths), width), -1)
        for row, one in enumerate(targets[block]):
            theirs[row, : len(one)] = graph.item_nodes[np.asarray(one, dtype=np.int64)]
        items = np.concatenate([np.asarray(one, dtype=np.int64) for one in sources[block]])
        pairs, hops, nodes, codes = shortest(
            graph,
            graph.item_nodes[items],
            lists,
            theirs,
            max_hops=max_hops,
            cap=max_paths_per_pair,
            frontier=max_frontier,
        )
        source, target = pairs // width, pairs % width
        target += (counts.cumsum() - counts)[lists[source]]
        found.append(Paths(before[0] + source, before[1] + target, hops, nodes, codes))
        before += lengths.sum(), counts.sum()
    return Paths(*(np.concatenate([getattr(part, name) for part in found]) for name in Paths.__dataclass_fields__))


def apart(paths: Paths, num_sources: Sequence[int], num_targets: Sequence[int]) -> list[Paths]:
    """Paths of `find_together`, or some of them in their order, list by list."""
    ends = np.cumsum(num_sources)
    stops = paths.source_index.searchsorted(ends)
    found, start, source, target = [], 0, 0, 0
    for stop, end, count in zip(stops.tolist(), ends.tolist(), num_targets, strict=True):
        own = paths.take(slice(start, stop))
        found.append(replace(own, source_index=own.source_index - source, target_index=own.target_index - target))
        start, source, target = stop, end, target + count
    return found


def tfidf(paths: Paths, num_relations: int) -> np.ndarray:
    """Weight of each relation in each path, shape (P, R), as published (arXiv 2506.07449, section 3.3).

    tf is how often the relation occurs in the path; df is in how many of the paths of the same history item it occurs;
    idf = log(N / (df + 1)) + 1 with N paths of that history item. As in the published code a softmax over relations
    follows, so that a relation that does not occur keeps a share, too.
    """
    counts = paths.relation_counts(num_relations)
    _, source, totals = np.unique(paths.source_index, return_inverse=True, return_counts=True)
    frequency = np.zeros((len(totals), num_relations))
    np.add.at(frequency, source, counts > 0)
    weights = (counts * (np.log(totals[:, None] / (frequency + 1.0)) + 1.0)[source]).astype(counts.dtype)
    return special.softmax(weights, axis=1) if len(weights) else weights


def keep_selectable(
    weights: np.ndarray,
    count: int,
    source_index: np.ndarray | None = None,
    target_index: np.ndarray | None = None,
) -> np.ndarray:
    """Rows of `weights` (P, R) that can be among the `count` best under *some* preferences, in ascending order.

    Which paths enter the prompt is decided later, inside the model, by `weights @ preferences`; but most paths never
    can. Among paths that lie on one relation alone the order never changes, so the `count` heaviest of each suffice;
    of equal rows the first `count`. With `source_index` (P,), where one path of each history item is taken, one of
    each kind suffices for every history item. With `target_index` (P,) each target has a `count` of its own.
    """
    support = weights != 0
    size = support.sum(axis=1)
    kind = np.where(size == 1, support.argmax(axis=1), weights.shape[1]) if weights.size else size
    if len(several := np.flatnonzero(size > 1)):  # equal rows are of one kind
        rows = np.ascontiguousarray(weights[several])
        _, same = np.unique(rows.view(f"V{rows.itemsize * rows.shape[1]}").ravel(), return_inverse=True)
        kind[several] = weights.shape[1] + 1 + same
    keys = [index for index in (target_index, source_index) if index is not None]
    order = np.lexsort((-weights.max(axis=1, initial=-np.inf), kind, *keys))  # ties by row
    group = np.zeros(len(order), dtype=np.int64)
    group[1:] = np.logical_or.reduce([np.diff(key[order]) != 0 for key in (kind, *keys)]).cumsum()
    each = count if source_index is None else 1
    return np.sort(order[ranks(group) < each])
