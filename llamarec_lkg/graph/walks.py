"""Walks from both ends that meet in the middle: how shortest paths of many pairs are found at once.

A walk of `n` edges from a source to a target is one of `ceil(n / 2)` edges out of the source and one of
`floor(n / 2)` edges into the target that end in the same node. Lengths are tried in turn, and a pair that has a walk
is done: so every walk that is found is a shortest path, and no node has to be marked as seen.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .knowledge_graph import KnowledgeGraph
from .ranges import ranges, ranks


AT_ONCE = 1 << 20  # joined walks that are held at a time


Columns = tuple[np.ndarray, ...]  # one array for each step of all walks: those are few, and walks are many


@dataclass(frozen=True)
class Walks:
    """M walks of `n` edges out of sources or, backward, into targets.

    Args:
        owners (`np.ndarray`, shape (M,)): which source or target each belongs to.
        nodes (n + 1 times shape (M,)), codes (n times shape (M,)): along the walk, from its owner on.
    """

    owners: np.ndarray
    nodes: Columns
    codes: Columns

    @classmethod
    def start(cls, nodes: np.ndarray) -> Walks:
        """A walk of no edge from each of the nodes that is there (not -1)."""
        owners = (nodes >= 0).nonzero()[0]
        return cls(owners, (nodes.take(owners),), ())

    def take(self, rows: np.ndarray) -> Walks:
        return Walks(self.owners.take(rows), _taken(self.nodes, rows), _taken(self.codes, rows))

    def extended(self, graph: KnowledgeGraph, frontier: int, *, backward: bool) -> Walks:
        """Every walk by one more edge, ordered as these are, then by node and code. Where an owner's walks would go on
        over more than `frontier` edges, those from the rarest nodes are taken, and no more."""
        walks = self.take(_rarest_tips(self, graph, frontier)) if self.codes else self
        which, codes, nodes = (graph.predecessors if backward else graph.neighbours)(walks.nodes[-1])
        if not backward:  # those are ordered by code first
            order = (which * graph.num_nodes + nodes).argsort(kind="stable")
            which, codes, nodes = which.take(order), codes.take(order), nodes.take(order)
        longer = walks.take(which)
        return Walks(longer.owners, (*longer.nodes, nodes), (*longer.codes, codes))


def _taken(columns: Columns, rows: np.ndarray) -> Columns:
    return tuple(column.take(rows) for column in columns)


def shortest(
    graph: KnowledgeGraph,
    sources: np.ndarray,
    lists: np.ndarray,
    targets: np.ndarray,
    *,
    max_hops: int,
    cap: int,
    frontier: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The shortest paths from each source to each target of its list, as [`paths.find`] keeps them.

    Args:
        sources (shape (S,)): nodes of items; -1 is none.
        lists (shape (S,)): row of `targets` that goes with each source.
        targets (shape (L, T)): nodes of items; -1 is none.

    Returns:
        pair (source times T plus place of the target), length, nodes and edge codes of each path, of shape (P,), (P,),
        (P, max_hops + 1) and (P, max_hops), -1 behind the end; ordered by pair, nodes and codes.
    """
    width = targets.shape[1]
    theirs = targets[lists]
    is_open = ((sources[:, None] != theirs) & (theirs >= 0) & (sources[:, None] >= 0)).ravel()
    forward, backward = Walks.start(sources), Walks.start(targets.ravel())
    found = []
    for length in range(1, max_hops + 1):
        if length > 2:  # whoever has all paths goes no further
            source, target = np.divmod(np.flatnonzero(is_open), width)
            forward = forward.take(np.flatnonzero(np.isin(forward.owners, source)))
            backward = backward.take(np.flatnonzero(np.isin(backward.owners, lists[source] * width + target)))
        if length % 2:
            forward = forward.extended(graph, frontier, backward=False)
        else:
            backward = backward.extended(graph, frontier, backward=True)
        if length == 1 < max_hops and not graph.ties_items:
            continue
        joined = _met(graph, forward, backward, lists, width, is_open, cap)
        found.append(joined)
        if length < max_hops:
            is_open[joined.pairs] = False
    pairs = found[0].pairs if len(found) == 1 else np.concatenate([joined.pairs for joined in found])
    order = pairs.argsort(kind="stable")  # the paths of a pair are of one length, and in order
    place, lengths = np.empty((2, len(pairs)), dtype=np.int64)
    place[order] = np.arange(len(pairs))
    nodes, codes = np.full((len(pairs), max_hops + 1), -1), np.full((len(pairs), max_hops), -1)
    start = 0
    for joined in found:
        rows = place[start : start + len(joined.pairs)]
        start += len(rows)
        lengths[rows] = len(joined.codes)
        for table, columns in ((nodes, joined.nodes), (codes, joined.codes)):
            for step, column in enumerate(columns):
                table[rows, step] = column
    return pairs.take(order), lengths, nodes, codes


@dataclass(frozen=True)
class _Joined:
    """Walks between the ends of pairs."""

    pairs: np.ndarray
    nodes: Columns
    codes: Columns

    def take(self, rows: np.ndarray) -> _Joined:
        return _Joined(self.pairs.take(rows), _taken(self.nodes, rows), _taken(self.codes, rows))

    def and_more(self, other: _Joined) -> _Joined:
        pairs, *columns = map(np.concatenate, zip(self._columns(), other._columns(), strict=True))
        return _Joined(pairs, tuple(columns[: len(self.nodes)]), tuple(columns[len(self.nodes) :]))

    def _columns(self) -> Columns:
        return self.pairs, *self.nodes, *self.codes


def _met(
    graph: KnowledgeGraph,
    forward: Walks,
    backward: Walks,
    lists: np.ndarray,
    width: int,
    is_open: np.ndarray,
    cap: int,
) -> _Joined:
    """The walks of open pairs that meet, at most `cap` of each pair, which are in order."""
    ahead = lists.take(forward.owners) * graph.num_nodes + forward.nodes[-1]
    behind = backward.owners // width * graph.num_nodes + backward.nodes[-1]
    order = behind.argsort(kind="stable")
    behind = behind.take(order)
    starts = behind.searchsorted(ahead)
    counts = behind.searchsorted(ahead, side="right") - starts
    none, length = np.zeros(0, dtype=np.int64), len(forward.codes) + len(backward.codes)
    best = _Joined(none, (none,) * (length + 1), (none,) * length)
    for rows in _blocks(counts):
        which, places = ranges(starts[rows], counts[rows])
        one, other = which + rows.start, order.take(places)
        pairs = forward.owners.take(one) * width + backward.owners.take(other) % width
        of_open = is_open.take(pairs).nonzero()[0]
        ours, theirs = forward.take(one.take(of_open)), backward.take(other.take(of_open))
        joined = _Joined(pairs.take(of_open), ours.nodes + theirs.nodes[-2::-1], ours.codes + theirs.codes[::-1])
        best = _rarest_paths(graph, best.and_more(joined) if len(best.pairs) else joined, cap)
    return best


def _blocks(counts: np.ndarray) -> Iterator[slice]:
    """Stretches of rows of which each gives about `AT_ONCE` joined walks."""
    total = counts.sum()
    if total <= AT_ONCE:
        if total:
            yield slice(0, len(counts))
        return
    block = np.cumsum(counts) // AT_ONCE
    cuts = np.flatnonzero(np.diff(block)) + 1
    for start, stop in zip([0, *cuts], [*cuts, len(counts)], strict=True):
        yield slice(start, stop)


def _rarest_paths(graph: KnowledgeGraph, joined: _Joined, cap: int) -> _Joined:
    """Of each pair the `cap` paths whose inner nodes have the fewest edges in all, ties by nodes and codes; each
    pair's in order of nodes and codes."""
    in_order = len(joined.codes) < 3  # as the walks that they are made of
    counts = np.bincount(joined.pairs)
    if counts.max(initial=0) > cap:
        crowded = counts.take(joined.pairs) > cap
        some, others = crowded.nonzero()[0], (~crowded).nonzero()[0]
        pairs = joined.pairs[some]
        degrees = np.zeros(len(some), dtype=np.int64)
        for inner in joined.nodes[1:-1]:
            degrees += graph.offsets[inner[some] + 1] - graph.offsets[inner[some]]
        if not in_order:  # sorting by all columns is dear: what is behind the last that fits need not be
            order = np.lexsort((degrees, pairs))
            last = order[ranks(pairs[order]) == cap - 1]
            most = np.zeros(int(pairs.max()) + 1, dtype=np.int64)
            most[pairs[last]] = degrees[last]
            fits = degrees <= most[pairs]
            some, degrees = some[fits], degrees[fits]
            by_path = np.lexsort((*_taken(joined.codes, some)[::-1], *_taken(joined.nodes, some)[::-1]))
            some, degrees = some[by_path], degrees[by_path]
            pairs = joined.pairs[some]
        order = np.lexsort((degrees, pairs))
        rows = np.concatenate([others, some[order[ranks(pairs[order]) < cap]]])
        rows.sort()
        joined = joined.take(rows)
    if in_order:
        return joined
    return joined.take(np.lexsort((*joined.codes[::-1], *joined.nodes[::-1], joined.pairs)))


def _rarest_tips(walks: Walks, graph: KnowledgeGraph, frontier: int) -> np.ndarray:
    """Rows of the walks that go on, in order."""
    tips = walks.nodes[-1]
    degrees = graph.offsets[tips + 1] - graph.offsets[tips]
    if degrees.sum() <= frontier:
        return np.arange(len(degrees))
    order = np.lexsort((tips, degrees, walks.owners))
    owners, running = walks.owners[order], np.cumsum(degrees[order])
    first = np.searchsorted(owners, owners)
    running -= running[first] - degrees[order][first]
    return np.sort(order[running <= frontier])
