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


@dataclass(frozen=True)
class Walks:
    """M walks of `n` edges out of sources or, backward, into targets.

    Args:
        owners (`np.ndarray`, shape (M,)): which source or target each belongs to.
        nodes (`np.ndarray`, shape (M, n + 1)), codes (`np.ndarray`, shape (M, n)): along the walk, from its owner on.
    """

    owners: np.ndarray
    nodes: np.ndarray
    codes: np.ndarray

    @classmethod
    def start(cls, nodes: np.ndarray) -> Walks:
        """A walk of no edge from each of the nodes that is there (not -1)."""
        owners = np.flatnonzero(nodes >= 0)
        return cls(owners, nodes[owners, None], np.zeros((len(owners), 0), np.int64))

    @property
    def tips(self) -> np.ndarray:
        return self.nodes[:, -1]

    def take(self, rows: np.ndarray) -> Walks:
        return Walks(self.owners.take(rows), self.nodes.take(rows, axis=0), self.codes.take(rows, axis=0))

    def extended(self, graph: KnowledgeGraph, frontier: int, *, backward: bool) -> Walks:
        """Every walk by one more edge, ordered as these are, then by node and code. Where an owner's walks would go on
        over more than `frontier` edges, those from the rarest nodes are taken, and no more."""
        walks = self
        if self.codes.shape[1]:
            walks = self.take(_rarest_tips(self, graph, frontier))
        which, codes, nodes = (graph.predecessors if backward else graph.neighbours)(walks.tips)
        if not backward:  # those are ordered by code first
            order = np.argsort(which * graph.num_nodes + nodes, kind="stable")
            which, codes, nodes = which[order], codes[order], nodes[order]
        return Walks(
            walks.owners.take(which),
            np.concatenate([walks.nodes.take(which, axis=0), nodes[:, None]], axis=1),
            np.concatenate([walks.codes.take(which, axis=0), codes[:, None]], axis=1),
        )


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
        sources (shape (S,)): nodes; -1 is none.
        lists (shape (S,)): row of `targets` that goes with each source.
        targets (shape (L, T)): nodes; -1 is none.

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
        pairs, nodes, codes = _met(graph, forward, backward, lists, width, is_open, cap)
        if length < max_hops and len(pairs):
            is_open[pairs] = False
            padding = np.full((len(pairs), max_hops - length), -1)
            nodes, codes = np.append(nodes, padding, axis=1), np.append(codes, padding, axis=1)
        if len(pairs) or length == max_hops:
            found.append((pairs, np.full(len(pairs), length), nodes, codes))
    pairs, lengths, nodes, codes = found[0] if len(found) == 1 else map(np.concatenate, zip(*found, strict=True))
    order = pairs.argsort(kind="stable")  # the paths of a pair are of one length, and in order
    return pairs.take(order), lengths.take(order), nodes.take(order, axis=0), codes.take(order, axis=0)


Joined = tuple[np.ndarray, np.ndarray, np.ndarray]  # pair, nodes, codes


def _met(
    graph: KnowledgeGraph,
    forward: Walks,
    backward: Walks,
    lists: np.ndarray,
    width: int,
    is_open: np.ndarray,
    cap: int,
) -> Joined:
    """The walks of open pairs that meet, at most `cap` of each pair, which are in order."""
    ahead = lists.take(forward.owners) * graph.num_nodes + forward.tips
    behind = backward.owners // width * graph.num_nodes + backward.tips
    order = behind.argsort(kind="stable")
    behind = behind.take(order)
    starts = behind.searchsorted(ahead)
    counts = behind.searchsorted(ahead, side="right") - starts
    length = forward.codes.shape[1] + backward.codes.shape[1]
    best: Joined = np.zeros(0, np.int64), np.zeros((0, length + 1), np.int64), np.zeros((0, length), np.int64)
    for rows in _blocks(counts):
        which, places = ranges(starts[rows], counts[rows])
        one, other = which + rows.start, order.take(places)
        pairs = forward.owners.take(one) * width + backward.owners.take(other) % width
        of_open = is_open.take(pairs).nonzero()[0]
        one, other, pairs = one.take(of_open), other.take(of_open), pairs.take(of_open)
        ahead, behind = forward.take(one), backward.take(other)
        nodes = np.concatenate([ahead.nodes, behind.nodes[:, -2::-1]], axis=1, dtype=np.int64)
        codes = np.concatenate([ahead.codes, behind.codes[:, ::-1]], axis=1, dtype=np.int64)
        if len(best[0]):
            pairs, nodes, codes = map(np.concatenate, zip(best, (pairs, nodes, codes), strict=True))
        best = _rarest_paths(graph, pairs, nodes, codes, cap)
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


def _rarest_paths(graph: KnowledgeGraph, pairs: np.ndarray, nodes: np.ndarray, codes: np.ndarray, cap: int) -> Joined:
    """Of each pair the `cap` paths whose inner nodes have the fewest edges in all, ties by nodes and codes; each
    pair's in order of nodes and codes."""
    crowded = np.bincount(pairs)[pairs] > cap
    if crowded.any():
        some, others = np.flatnonzero(crowded), np.flatnonzero(~crowded)
        inner = nodes[some, 1:-1]
        degrees = (graph.offsets[inner + 1] - graph.offsets[inner]).sum(axis=1)
        if nodes.shape[1] > 3:  # sorting by all columns is dear: what is behind the last that fits need not be
            order = np.lexsort((degrees, pairs[some]))
            place = ranks(pairs[some][order])
            last = np.zeros(int(pairs.max()) + 1, np.int64)
            last[pairs[some][order[place == cap - 1]]] = degrees[order[place == cap - 1]]
            fits = degrees <= last[pairs[some]]
            some, degrees = some[fits], degrees[fits]
            by_path = np.lexsort((*codes[some].T[::-1], *nodes[some].T[::-1]))
            some, degrees = some[by_path], degrees[by_path]
        order = np.lexsort((degrees, pairs[some]))
        rows = np.concatenate([others, some[order[ranks(pairs[some][order]) < cap]]])
        rows.sort()
        pairs, nodes, codes = pairs[rows], nodes[rows], codes[rows]
    if nodes.shape[1] > 3:  # shorter ones come in order: their walks do
        order = np.lexsort((*codes.T[::-1], *nodes.T[::-1], pairs))
        pairs, nodes, codes = pairs[order], nodes[order], codes[order]
    return pairs, nodes, codes


def _rarest_tips(walks: Walks, graph: KnowledgeGraph, frontier: int) -> np.ndarray:
    """Rows of the walks that go on, in order."""
    degrees = graph.offsets[walks.tips + 1] - graph.offsets[walks.tips]
    if degrees.sum() <= frontier:
        return np.arange(len(degrees))
    order = np.lexsort((walks.tips, degrees, walks.owners))
    owners, running = walks.owners[order], np.cumsum(degrees[order])
    first = np.searchsorted(owners, owners)
    running -= running[first] - degrees[order][first]
    return np.sort(order[running <= frontier])
