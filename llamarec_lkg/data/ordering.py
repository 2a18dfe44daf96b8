"""What order a user's interactions have where time does not say."""

from __future__ import annotations

import numpy as np
import pandas as pd

from .arrays import blocks


def shuffling_keys(
    users: np.ndarray, items: np.ndarray, timestamps: np.ndarray, item_ids: np.ndarray, seed: int
) -> np.ndarray:
    """A number for each interaction, as good as drawn by chance; ties in time are put in the order of these.

    It is a hash, keyed with the seed, of its item and time and of all that its user did. So the order within a
    tie is another one for each user, and does not change with the order of the file, the names of users (data that
    are pushed number them) or what a filter leaves.

    Args:
        users, items (shape (N,)): codes from 0 on, of all interactions before any filter.
        timestamps (`np.ndarray` of `int64`, shape (N,)).
        item_ids (`np.ndarray` of `str`): the raw id of each code.

    Returns:
        `np.ndarray` of `uint64`, shape (N,).
    """
    names = pd.util.hash_array(np.asarray(item_ids, dtype=object), hash_key=f"{seed % 2**64:016x}")
    deeds = np.zeros(int(users.max(initial=-1)) + 1, dtype=np.uint64)
    keys = np.empty(len(users), dtype=np.uint64)
    for block in blocks(len(users)):
        keys[block] = _mixed(names[items[block]] ^ _mixed(timestamps[block].view(np.uint64)))
        np.add.at(deeds, users[block], keys[block])  # a sum modulo 2**64 is the same in any order
    deeds = _mixed(deeds)
    for block in blocks(len(users)):
        keys[block] = _mixed(keys[block] ^ deeds[users[block]])
    return keys


def _mixed(values: np.ndarray) -> np.ndarray:
    """Numbers of 64 bits, each bit of which depends on all bits of the given ones (the finalizer of SplitMix64: Steele
    et al., Fast splittable pseudorandom number generators, OOPSLA 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def order_ties(same: np.ndarray, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rows that are tied with others, and which of them comes in the place of each when the rows of a tie are put
    in the order of their keys.

    Args:
        same (`bool`, shape (N,)): whether a row is tied with the one before it.
        keys (shape (N,)).
    """
    tied = np.flatnonzero(same | np.append(same[1:], False))
    ties = np.cumsum(~same[tied])  # the number of each tie
    return tied, tied[np.lexsort((keys[tied], ties))]
