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
from .ranges import order_of, ranges, ranks


AT_ONCE = 1 << 20  # joined walks that are held at a time
FEW = 1 << 10  # walks that are not worth a look at which may meet


Columns = tuple[np.ndarray, ...]  # one array for each step of all walks: those are few, and walks are many


@dataclass(frozen=True)
class Walks:
    """M walks of `n` edges out of sources or, backward, into targets.

    Args:
        owners (`np.ndarray`, shape (M,)): which source or target each belongs to.
        tips (`np.ndarray`, shape (M,)): the node that each has come to.
        edges (n times shape (M,)): places in the graph's edges, along the walk from its owner on.
    """

    owners: np.ndarray
    tips: np.ndarray
    edges: Columns

    @classmethod
    def start(cls, nodes: np.ndarray) -> Walks:
        """A walk of no edge from each of the nodes that is there (not -1)."""
        owners = (nodes >= 0).nonzero()[0]
        return cls(owners, nodes.take(owners), ())

    def take(self, rows: np.ndarray) -> Walks:
        return Walks(self.owners.take(rows), self.tips.take(rows), _taken(self.edges, rows))

    def extended(self, graph: KnowledgeGraph, frontier: int, *, backward: bool) -> Walks:
        """Every walk by one more edge, ordered as these are, then by code and node or, backward, by node and code.
        Where an owner's walks would go on over more than `frontier` edges, those from the rarest nodes are taken, and
        no more."""
        walks = self.take(_rarest_tips(self, graph, frontier)) if self.edges else self
        which, edges, tips = (graph.edges_into if backward else graph.edges_from)(walks.tips)
        return Walks(walks.owners.take(which), tips, (*_taken(walks.edges, which), edges))

    def in_order(self, graph: KnowledgeGraph) -> Walks:
        """Walks of one edge in the order of their owners, nodes and codes."""
        return self.take(order_of(self.owners * graph.num_nodes + self.tips))


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
) -> tuple[np.ndarray, Columns]:
    """The shortest paths from each source to each target of its list, as [`paths.find`] keeps them.

    Args:
        sources (shape (S,)): nodes of items; -1 is none.
        lists (shape (S,)): row of `targets` that goes with each source.
        targets (shape (L, T)): nodes of items; -1 is none.

    Returns:
        pair (source times T plus place of the target) of each path, shape (P,), and its edges, as places in the
        graph's, `max_hops` times shape (P,), -1 behind the end; ordered by pair, nodes and codes.
    """
    width = targets.shape[1]
    theirs, ours = targets.take(lists, axis=0), sources[:, None]
    is_open = ((ours != theirs) & (theirs >= 0) & (ours >= 0)).ravel()
    forward, backward = Walks.start(sources), Walks.start(targets.ravel())
    found = []
    for length in range(1, max_hops + 1):
        if not is_open.any():
            break
        if length > 2:  # whoever has all paths goes no further
            source, target = np.divmod(np.flatnonzero(is_open), width)
            forward = forward.take(np.flatnonzero(np.isin(forward.owners, source)))
            backward = backward.take(np.flatnonzero(np.isin(backward.owners, lists[source] * width + target)))
        if length == 3:
            forward = forward.in_order(graph)
        if length % 2:
            forward = forward.extended(graph, frontier, backward=False)
        else:
            backward = backward.extended(graph, frontier, backward=True)
        if length == 1 < max_hops and not graph.ties_items:
            continue
        joined = _met(graph, forward, backward, lists, width, is_open, cap)
        if len(joined.pairs):
            found.append(joined)
            is_open[joined.pairs] = False
    # the paths of a pair are of one length, and in order
    pairs = np.concatenate([np.zeros(0, dtype=np.int64), *(joined.pairs for joined in found)])
    order = order_of(pairs)
    if len(found) == 1 and len(found[0].edges) == max_hops:
        return pairs.take(order), _taken(found[0].edges, order)
    edges = np.full((max_hops, len(pairs)), -1)
    start = 0
    for joined in found:
        for step, column in enumerate(joined.edges):
            edges[step, start : start + len(column)] = column
        start += len(joined.pairs)
    return pairs.take(order), _taken(tuple(edges), order)


@dataclass(frozen=True)
class _Joined:
    """Walks between the ends of pairs."""

    pairs: np.ndarray
    edges: Columns

    def take(self, rows: np.ndarray) -> _Joined:
        return _Joined(self.pairs.take(rows), _taken(self.edges, rows))

    def and_more(self, other: _Joined) -> _Joined:
        pairs, *edges = map(np.concatenate, zip((self.pairs, *self.edges), (other.pairs, *other.edges), strict=True))
        return _Joined(pairs, tuple(edges))


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
    ahead = lists.take(forward.owners) * graph.num_nodes + forward.tips
    behind = backward.owners // width * graph.num_nodes + backward.tips
    if len(ahead) + len(behind) > FEW:
        some, others = _may_meet(ahead, behind)
        forward, ahead = forward.take(some), ahead.take(some)
        backward, behind = backward.take(others), behind.take(others)
    # neighbouring questions are fast to answer, and the walks of a pair get into order
    some, others = order_of(ahead), order_of(behind)
    ahead, behind = ahead.take(some), behind.take(others)
    starts = behind.searchsorted(ahead)
    counts = behind.searchsorted(ahead, side="right") - starts
    forward, backward = forward.take(some), backward.take(others)
    owners, places_of = forward.owners * width, backward.owners % width
    best = _Joined(np.zeros(0, dtype=np.int64), ())
    for rows in _blocks(counts):
        one, other = ranges(starts[rows], counts[rows])
        one += rows.start
        pairs = owners.take(one) + places_of.take(other)
        of_open = is_open.take(pairs).nonzero()[0]
        one, other = one.take(of_open), other.take(of_open)
        joined = _Joined(pairs.take(of_open), _taken(forward.edges, one) + _taken(backward.edges[::-1], other))
        best = _rarest_paths(graph, best.and_more(joined) if len(best.pairs) else joined, cap)
    return best


def _may_meet(ahead: np.ndarray, behind: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows of both among which are all that have an equal in the other. Most walks lead to what nobody shares: a table
    of marks, in which two numbers seldom have one place, is faster than to sort them."""
    last = (8 << max(len(ahead), len(behind)).bit_length()) - 1
    places, their_places = ((keys * 0x9E3779B1 >> 12) & last for keys in (ahead, behind))
    marked = np.zeros(last + 1, dtype=bool)
    marked[their_places] = True
    some = marked.take(places).nonzero()[0]
    marked = np.zeros(last + 1, dtype=bool)
    marked[places.take(some)] = True
    return some, marked.take(their_places).nonzero()[0]


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
    in_order = len(joined.edges) < 3  # as the walks that they are made of
    counts = np.bincount(joined.pairs)
    if counts.max(initial=0) > cap:
        crowded = counts.take(joined.pairs) > cap
        some = crowded.nonzero()[0]
        pairs = joined.pairs[some]
        degrees = np.zeros(len(some), dtype=np.int64)
        for edges in joined.edges[:-1]:
            inner = graph.targets[edges[some]]
            degrees += graph.offsets[inner + 1] - graph.offsets[inner]
        if not in_order:  # sorting by all columns is dear: what is behind the last that fits need not be
            order = np.lexsort((degrees, pairs))
            last = order[ranks(pairs[order]) == cap - 1]
            most = np.zeros(int(pairs.max()) + 1, dtype=np.int64)
            most[pairs[last]] = degrees[last]
            fits = degrees <= most[pairs]
            some, degrees = some[fits], degrees[fits]
            by_path = np.lexsort(_by_path(graph, _taken(joined.edges, some)))
            some, degrees = some[by_path], degrees[by_path]
            pairs = joined.pairs[some]
        order = np.lexsort((degrees, pairs))
        crowded[some[order[ranks(pairs[order]) < cap]]] = False
        joined = joined.take((~crowded).nonzero()[0])
    if in_order:
        return joined
    return joined.take(np.lexsort((*_by_path(graph, joined.edges), joined.pairs)))


def _by_path(graph: KnowledgeGraph, edges: Columns) -> Columns:
    """Keys of a lexsort by nodes, then by codes."""
    return *_taken_from(graph.edge_relations, edges), *_taken_from(graph.targets, edges)


def _taken_from(values: np.ndarray, edges: Columns) -> Iterator[np.ndarray]:
    return (values.take(column) for column in edges[::-1])


def _rarest_tips(walks: Walks, graph: KnowledgeGraph, frontier: int) -> np.ndarray:
    """Rows of the walks that go on, in order."""
    tips = walks.tips
    degrees = graph.offsets[tips + 1] - graph.offsets[tips]
    if degrees.sum() <= frontier:
        return np.arange(len(degrees))
    order = np.lexsort((tips, degrees, walks.owners))
    owners, running = walks.owners[order], np.cumsum(degrees[order])
    first = np.searchsorted(owners, owners)
    running -= running[first] - degrees[order][first]
    return np.sort(order[running <= frontier])
