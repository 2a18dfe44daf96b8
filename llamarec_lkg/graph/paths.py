"""Shortest typed paths between the items of a history and the candidates, and what each path weighs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from .knowledge_graph import KnowledgeGraph
from .ranges import order_of, owners, ranks
from .walks import shortest


MAX_FRONTIER = 1 << 17
PAIRS = 1 << 21  # that are searched at once
NOBODY = np.zeros(0, dtype=np.int64)


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


@dataclass(frozen=True)
class Ways:
    """P paths as the edges that they take: what is cheap to choose among before their nodes are looked up.

    Args:
        starts (`np.ndarray`, shape (S,)): nodes of the sources.
        source_index, target_index (`np.ndarray`, shape (P,)): as of [`Paths`].
        edges (`max_hops` times shape (P,)): places in the graph's edges, -1 behind the end.
    """

    starts: np.ndarray
    source_index: np.ndarray
    target_index: np.ndarray
    edges: tuple[np.ndarray, ...]

    def take(self, rows: np.ndarray) -> Ways:
        edges = tuple(column.take(rows) for column in self.edges)
        return Ways(self.starts, self.source_index.take(rows), self.target_index.take(rows), edges)

    def named(self, graph: KnowledgeGraph) -> Paths:
        """The paths with their nodes and edge codes."""
        edges = np.stack(self.edges, axis=1)
        nodes, codes = np.full((len(edges), edges.shape[1] + 1), -1), np.full(edges.shape, -1)
        nodes[:, 0] = self.starts.take(self.source_index)
        there = edges >= 0
        taken = edges[there]
        nodes[:, 1:][there], codes[there] = graph.targets.take(taken), graph.edge_relations.take(taken)
        return Paths(self.source_index, self.target_index, there.sum(axis=1), nodes, codes)


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
    return ways(
        graph,
        [sources],
        [targets],
        max_hops=max_hops,
        max_paths_per_pair=max_paths_per_pair,
        max_frontier=max_frontier,
    ).named(graph)


def find_together(
    graph: KnowledgeGraph,
    sources: Sequence[Sequence[int] | np.ndarray],
    targets: Sequence[Sequence[int] | np.ndarray],
    **limits: int,
) -> Paths:
    """The same for each of B lists of sources with its targets, at a lower price than one by one: `source_index` and
    `target_index` count through all lists, one behind the other."""
    return ways(graph, sources, targets, **limits).named(graph)


def ways(
    graph: KnowledgeGraph,
    sources: Sequence[Sequence[int] | np.ndarray],
    targets: Sequence[Sequence[int] | np.ndarray],
    *,
    max_hops: int = 2,
    max_paths_per_pair: int = 16,
    max_frontier: int = MAX_FRONTIER,
) -> Ways:
    """The paths of `find_together`, not yet named."""
    ours, theirs = (
        [graph.item_nodes.take(one) if len(one) else NOBODY for one in some] for some in (sources, targets)
    )
    lengths, counts = [len(one) for one in ours], [len(one) for one in theirs]
    found, source, target = [], 0, 0
    for block in _blocks(lengths, counts):
        first_target = np.array([0, *counts[block]]).cumsum() + target
        lists = owners(lengths[block])
        width = max(1, *counts[block])
        table = np.full((len(counts[block]), width), -1)
        for row, one in enumerate(theirs[block]):
            table[row, : len(one)] = one
        nodes = np.concatenate(ours[block])
        pairs, edges = shortest(
            graph, nodes, lists, table, max_hops=max_hops, cap=max_paths_per_pair, frontier=max_frontier
        )
        which, place = np.divmod(pairs, width)
        found.append((which + source, place + first_target.take(lists.take(which)), *edges))
        source, target = source + len(nodes), int(first_target[-1])
    which, place, *edges = found[0] if len(found) == 1 else map(np.concatenate, zip(*found, strict=True))
    return Ways(np.concatenate(ours), which, place, tuple(edges))


def _blocks(lengths: Sequence[int], counts: Sequence[int]) -> Iterator[slice]:
    """Stretches of lists whose table of sources and targets has at most `PAIRS` cells, or of one list."""
    start, sources, width = 0, 0, 1
    for row, (length, count) in enumerate(zip(lengths, counts, strict=True)):
        sources, width = sources + length, max(width, count)
        if row > start and sources * width > PAIRS:
            yield slice(start, row)
            start, sources, width = row, length, max(1, count)
    yield slice(start, len(lengths))


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


def heaviest(groups: np.ndarray, weights: np.ndarray, count: int) -> np.ndarray:
    """Of the rows that weigh more than 0 the `count` heaviest of each group, ties by row, in ascending order: what
    [`keep_selectable`] leaves of paths that lie on one relation each.

    Args:
        groups (shape (P,)): whole numbers from 0 on.
        weights (`float32`, shape (P,)): from 0 up.
    """
    rows = weights.nonzero()[0]
    # the bits of numbers from 0 up are in their order, so that one sort brings the heaviest of each group to its front
    groups, bits = groups.take(rows).astype(np.int64, copy=False), weights.take(rows).view(np.int32)
    lightness = bits.max(initial=0) - bits
    width = int(lightness.max(initial=0)).bit_length()
    if int(groups.max(initial=0)) >> (63 - width):
        groups = np.unique(groups, return_inverse=True)[1]
    order = order_of((groups << width) + lightness)
    groups = groups.take(order)
    among = np.ones(len(groups), dtype=bool)
    among[count:] = groups[count:] != groups[:-count]
    return np.sort(rows.take(order[among]))


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
