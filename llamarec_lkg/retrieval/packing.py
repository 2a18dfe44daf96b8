"""Histories of different lengths without padding: their places follow each other, and each model lays them out so that
it computes nothing for places that are none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Chunks:
    """Histories cut into chunks of the same size, the last of each filled up.

    A chunk's places lie one step apart: slot `step * num_chunks + chunk`. Chunks are ordered by how many of the
    history's come before, then longest history first, so that the successors of the first chunks of a group are the
    next group.

    Args:
        size: places of a chunk, C.
        groups: how many chunks are the first, the second ... of their history; it never grows.
        num_chunks: K, of which those behind all groups are nobody's.
        slots (`long`, (N,)): where the places of the histories are among the C x K slots.
    """

    size: int
    groups: tuple[int, ...]
    num_chunks: int
    slots: np.ndarray

    @classmethod
    def of(cls, lengths: Sequence[int], size: int, *, multiple: int = 1) -> Chunks:
        """Of histories of `lengths`, whose N places follow each other, in a `multiple` of chunks."""
        lengths = np.asarray(lengths, dtype=np.int64)
        counts = -(-lengths // size)
        rank = np.empty(len(counts), dtype=np.int64)
        rank[np.argsort(-counts, kind="stable")] = np.arange(len(counts))
        # of how many histories there is a chunk after so many others
        groups = np.bincount(counts)[::-1].cumsum()[::-1][1:] if len(counts) else np.zeros(0, dtype=np.int64)
        first = np.cumsum(groups) - groups
        places = places_of(lengths)
        chunks = first[places // size] + np.repeat(rank, lengths) if len(places) else places
        num_chunks = -(-int(groups.sum()) // multiple) * multiple
        return cls(size, tuple(groups.tolist()), num_chunks, places % size * num_chunks + chunks)


@dataclass(frozen=True)
class Groups:
    """Histories of about the same length beside each other, for attention: each group is a block of its own.

    Args:
        shapes: histories of each group, and the places of the longest of them: n and l.
        sources (`long`, (S,)): the place in the packed histories that each of the S slots holds. A shorter history is
            filled up at its end with its last place, which none of its own places sees.
        slots (`long`, (N,)): where the places of the histories are among the slots, the first of each.
    """

    shapes: tuple[tuple[int, int], ...]
    sources: np.ndarray
    slots: np.ndarray

    @classmethod
    def of(cls, lengths: Sequence[int], *, share: float = 0.8, cells: int = 2**19) -> Groups:
        """Of histories of `lengths`, whose N places follow each other.

        Args:
            share: no history of a group is shorter than this share of its longest.
            cells: n times l times l of a group of several histories is at most this.
        """
        lengths = np.asarray(lengths, dtype=np.int64)
        order = np.argsort(-lengths, kind="stable")
        order = order[lengths[order] > 0]
        first, shapes, sources = np.cumsum(lengths) - lengths, [], []
        slots, start, used = np.empty(lengths.sum(), dtype=np.int64), 0, 0
        while start < len(order):
            longest = int(lengths[order[start]])
            size = int((lengths[order[start:]] >= share * longest).sum())
            size = min(size, max(1, cells // longest**2))
            members = order[start : start + size, None]
            places = np.minimum(np.arange(longest), lengths[members] - 1)
            real = np.arange(longest) < lengths[members]
            source = first[members] + places
            slots[source[real]] = used + np.flatnonzero(real)
            sources.append(source.ravel())
            shapes.append((size, longest))
            start, used = start + size, used + source.size
        return cls(tuple(shapes), np.concatenate([*sources, np.empty(0, np.int64)]), slots)


def places_of(lengths: np.ndarray) -> np.ndarray:
    """0, 1, 2 ... for each history of `lengths`, one after the other, (N,)."""
    ends = np.cumsum(lengths)
    return np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - lengths, lengths)
