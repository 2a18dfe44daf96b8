"""Shortest typed paths between the items of a history and the candidates, and what each path weighs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from .knowledge_graph import KnowledgeGraph


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

    def take(self, rows: np.ndarray) -> Paths:
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
    """
    sources, targets = np.asarray(sources, dtype=np.int64), np.asarray(targets, dtype=np.int64)
    target_nodes = graph.item_nodes[targets]
    found: list[tuple[int, int, tuple[int, ...], tuple[int, ...]]] = []
    for source_index, source_node in enumerate(graph.item_nodes[sources].tolist()):
        if source_node < 0:
            continue
        levels = _levels(graph, source_node, np.unique(target_nodes[target_nodes >= 0]), max_hops)
        for target_index, target_node in enumerate(target_nodes.tolist()):
            pair = _backtrack(levels, target_node)  # none where the target is the source, or has no node
            if len(pair) > max_paths_per_pair:  # specific entities first: a hub explains little
                degree = graph.offsets[1:] - graph.offsets[:-1]
                pair.sort(key=lambda path: (sum(int(degree[node]) for node in path[0][1:-1]), path))
            found.extend((source_index, target_index, *path) for path in sorted(pair[:max_paths_per_pair]))
    nodes = np.full((len(found), max_hops + 1), -1, dtype=np.int64)
    codes = np.full((len(found), max_hops), -1, dtype=np.int64)
    for row, (_, _, path_nodes, path_codes) in enumerate(found):
        nodes[row, : len(path_nodes)] = path_nodes
        codes[row, : len(path_codes)] = path_codes
    ends = np.array([(source, target) for source, target, _, _ in found], dtype=np.int64).reshape(-1, 2)
    return Paths(ends[:, 0], ends[:, 1], (codes >= 0).sum(axis=1), nodes, codes)


def _levels(
    graph: KnowledgeGraph, source: int, wanted: np.ndarray, max_hops: int
) -> list[dict[int, list[tuple[int, int]]]]:
    """Breadth-first search. Level `h` maps each node first reached after `h + 1` edges to its (predecessor, edge code)
    pairs.

    The last level looked at is cut down to wanted nodes: it is by far the largest.
    """
    seen = np.zeros(graph.num_nodes, dtype=bool)
    seen[source] = True
    missing = wanted[wanted != source]
    frontier = np.array([source])
    levels: list[dict[int, list[tuple[int, int]]]] = []
    for hop in range(max_hops):
        if not len(frontier) or not len(missing):
            break
        which, codes, reached = graph.neighbours(frontier)
        fresh = ~seen[reached]
        if hop == max_hops - 1:
            fresh &= np.isin(reached, missing)
        predecessors: dict[int, list[tuple[int, int]]] = {}
        for node, previous, code in zip(
            reached[fresh].tolist(), frontier[which[fresh]].tolist(), codes[fresh].tolist(), strict=True
        ):
            predecessors.setdefault(node, []).append((previous, code))
        levels.append(predecessors)
        frontier = np.array(sorted(predecessors), dtype=np.int64)
        seen[frontier] = True
        missing = missing[~seen[missing]]
    return levels


def _backtrack(
    levels: list[dict[int, list[tuple[int, int]]]], target: int
) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    depth = next((hop for hop, level in enumerate(levels) if target in level), None)
    if depth is None:
        return []
    partial: list[tuple[tuple[int, ...], tuple[int, ...]]] = [((target,), ())]
    for hop in range(depth, -1, -1):
        partial = [
            ((previous, *nodes), (code, *codes))
            for nodes, codes in partial
            for previous, code in levels[hop][nodes[0]]
        ]
    return partial


def tfidf(paths: Paths, num_relations: int) -> np.ndarray:
    """Weight of each relation in each path, shape (P, R), as published (arXiv 2506.07449, section 3.3).

    tf is how often the relation occurs in the path; df is in how many of the paths of the same history item it occurs;
    idf = log(N / (df + 1)) + 1 with N paths of that history item. As in the published code a softmax over relations
    follows, so that a relation that does not occur keeps a share, too.
    """
    counts = paths.relation_counts(num_relations)
    weights = np.zeros_like(counts)
    for source in np.unique(paths.source_index):
        rows = paths.source_index == source
        frequency = (counts[rows] > 0).sum(axis=0)
        weights[rows] = counts[rows] * (np.log(rows.sum() / (frequency + 1.0)) + 1.0)
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
    groups: dict[tuple[int, int, bytes, bytes], list[int]] = {}
    for row, weight in enumerate(weights):
        support = np.flatnonzero(weight)
        single = len(support) == 1
        source = -1 if source_index is None else int(source_index[row])
        target = -1 if target_index is None else int(target_index[row])
        groups.setdefault((source, target, support.tobytes(), b"" if single else weight.tobytes()), []).append(row)
    each = count if source_index is None else 1
    kept = [row for rows in groups.values() for row in sorted(rows, key=lambda row: (-weights[row].max(), row))[:each]]
    return np.array(sorted(kept), dtype=np.int64)
