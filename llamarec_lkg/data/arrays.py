"""Work on arrays of hundreds of millions of numbers in the room that they have: a block at a time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np


def blocks(length: int, size: int = 1 << 22) -> Iterator[slice]:
    """Slices that cover `length` places, `size` at a time."""
    return (slice(start, min(start + size, length)) for start in range(0, length, size))


def counted(codes: np.ndarray, which: np.ndarray | None = None) -> np.ndarray:
    """How often each code stands in an array, or in some of its places. (`np.bincount` would make a copy of all.)"""
    counts = np.zeros(int(codes.max(initial=0)) + 1, dtype=np.int64)
    for block in blocks(len(codes)):
        found = np.bincount(codes[block] if which is None else codes[block][which[block]])
        counts[: len(found)] += found
    return counts


def mapped(values: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """`values[codes]`, without the copy of all codes that numpy would make."""
    found = np.empty(len(codes), dtype=values.dtype)
    for block in blocks(len(codes)):
        found[block] = values[codes[block]]
    return found


def kept(array: np.ndarray, which: np.ndarray) -> np.ndarray:
    """`array[which]`, in the room that the array has."""
    end = 0
    for block in blocks(len(array)):
        part = array[block][which[block]]
        array[end : end + len(part)] = part
        end += len(part)
    return array[:end]


def same_as_before(*arrays: np.ndarray) -> np.ndarray:
    """Whether each place has the values of the place before it in all of some aligned arrays: `bool`, shape (N,)."""
    same = np.ones(len(arrays[0]), dtype=bool)
    same[:1] = False
    for array in arrays:
        same[1:] &= array[1:] == array[:-1]
    return same
