"""Stretches of different lengths, joined: what takes many rows out of compressed arrays at once."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from scipy import sparse


def ranges(starts: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The ranges `starts[i]:starts[i] + lengths[i]`, one behind the other: which range, and the place, each of shape
    (sum of lengths,)."""
    which = owners(lengths)
    shifts = starts - lengths.cumsum() + lengths
    return which, np.arange(len(which)) + shifts.take(which)


def owners(lengths: np.ndarray) -> np.ndarray:
    """Which of some ranges of these lengths, one behind the other, each place belongs to, shape (sum of lengths,)."""
    return np.arange(len(lengths)).repeat(lengths)


def ranks(groups: np.ndarray) -> np.ndarray:
    """The how-manieth of its group each element of a sorted array is, from 0, same shape."""
    firsts = np.flatnonzero(np.diff(groups, prepend=groups[0] - 1)) if len(groups) else np.zeros(0, np.int64)
    return np.arange(len(groups)) - np.repeat(firsts, np.diff(firsts, append=len(groups)))


def order_of(keys: np.ndarray) -> np.ndarray:
    """The stable order of whole numbers from 0 on: `keys.argsort(kind="stable")`, several times as fast for many
    whose number and row fit into one."""
    bits = len(keys).bit_length()
    if len(keys) < 512 or int(keys.max(initial=0)) >> (63 - bits):
        return keys.argsort(kind="stable")
    packed = (keys.astype(np.int64) << bits) + np.arange(len(keys))
    packed.sort()
    packed &= (1 << bits) - 1
    return packed


def entries_of(rows: sparse.csr_array, items: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How many entries each of these rows has, and the place in `rows.indices` and `rows.data` of every one."""
    starts = rows.indptr.take(items)
    lengths = rows.indptr.take(items + 1) - starts
    places = np.arange(int(lengths.sum()))
    places += (starts - lengths.cumsum() + lengths).repeat(lengths)  # rows are long: this is faster than `ranges`
    return lengths, places


def looked_up(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The value at each key that is wanted, 0 where it is not among the ascending `keys`."""
    if not len(keys):
        return np.zeros(len(wanted))
    places = np.minimum(keys.searchsorted(wanted), len(keys) - 1)
    return np.where(keys[places] == wanted, values[places], 0.0)


def portions(sizes: Sequence[int], most: int) -> list[slice]:
    """Parts, one after the other, of things of these sizes: each as many as come to at most `most`, but one at
    least."""
    bounds, held = [0], 0
    for place, size in enumerate(sizes):
        if place > bounds[-1] and held + size > most:
            bounds, held = [*bounds, place], 0
        held += size
    return [slice(start, stop) for start, stop in pairwise([*bounds, len(sizes)]) if stop > start]


def joined(arrays: Sequence[np.ndarray], dtype: type) -> np.ndarray:
    """The arrays, of which there may be none, as one of this type."""
    return np.concatenate([np.zeros(0, dtype), *(np.asarray(array, dtype) for array in arrays)])
