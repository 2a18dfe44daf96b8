"""What order a user's interactions have where time does not say, and which of them were written down twice."""

from __future__ import annotations

import numpy as np
import pandas as pd

from .schema import ITEM_ID, TIMESTAMP, USER_ID


def without_duplicates(frame: pd.DataFrame) -> pd.DataFrame:
    """The interactions without those that repeat user, item and time of an earlier row. An item that a user came back
    to at another time stays."""
    return frame[~frame.duplicated([USER_ID, ITEM_ID, TIMESTAMP]).to_numpy()]


def shuffling_keys(frame: pd.DataFrame, seed: int) -> np.ndarray:
    """A number for each row, as good as drawn by chance; ties in time are put in the order of these.

    It is a hash, keyed with the seed, of the row's item and time and of all that its user did. So the order within a
    tie is another one for each user, and does not change with the order of the file, the names of users (data that
    are pushed number them) or what a filter leaves.

    Args:
        frame: `user_id`, `item_id` and `timestamp`, before any filter.

    Returns:
        `np.ndarray` of `uint64`, shape (N,).
    """
    items = pd.util.hash_array(frame[ITEM_ID].to_numpy(dtype=object), hash_key=f"{seed % 2**64:016x}")
    times = frame[TIMESTAMP].to_numpy(dtype=np.int64).view(np.uint64)
    rows = _mixed(items ^ _mixed(times))
    users, names = pd.factorize(frame[USER_ID])
    deeds = np.zeros(len(names), dtype=np.uint64)
    np.add.at(deeds, users, rows)  # a sum modulo 2**64 is the same in any order
    return _mixed(rows ^ _mixed(deeds)[users])


def _mixed(values: np.ndarray) -> np.ndarray:
    """Numbers of 64 bits, each bit of which depends on all bits of the given ones (the finalizer of SplitMix64: Steele
    et al., Fast splittable pseudorandom number generators, OOPSLA 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
