"""The k-core filter, for tables in memory and for interactions that pass by batch after batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from ..utils.errors import LKGError
from .raw_dataset import hash_ids, record_batches
from .schema import ITEM_ID, USER_ID


def core_rows(users: np.ndarray, items: np.ndarray, min_user: int, min_item: int) -> np.ndarray:
    """Which interactions are left when rare items and users are dropped again and again until every one left has its
    minimum.

    Args:
        users, items (`np.ndarray`, shape (N,)): ids of any kind.

    Returns:
        `np.ndarray` of `bool`, shape (N,).
    """
    columns = [(pd.factorize(items)[0], min_item), (pd.factorize(users)[0], min_user)]
    keep, left = np.ones(len(users), dtype=bool), -1
    while keep.sum() != left:
        left = keep.sum()
        for codes, minimum in columns:
            keep &= (np.bincount(codes[keep], minlength=len(codes)) >= minimum)[codes]
    return keep


def filtered_batches(
    batches: Callable[[], Iterator[pd.DataFrame]], min_user: int, min_item: int
) -> Callable[[], Iterator[pd.DataFrame]]:
    """Reads the interactions that the k-core filter keeps. The source is read twice, first to count; ids are then held
    as 64-bit hashes: among ten million of them two are the same with a chance of three in a million."""

    def filtered() -> Iterator[pd.DataFrame]:
        hashes: dict[str, list[np.ndarray]] = {USER_ID: [], ITEM_ID: []}
        for batch in tqdm(record_batches(batches()), desc="count interactions", unit="batch", delay=2.0, leave=False):
            for column, parts in hashes.items():
                parts.append(hash_ids(batch, column))
        if not hashes[USER_ID]:
            return
        keep = core_rows(np.concatenate(hashes[USER_ID]), np.concatenate(hashes[ITEM_ID]), min_user, min_item)
        if not keep.any():
            raise LKGError(
                f"No interaction of {len(keep)} is left after dropping users with fewer than {min_user} or items with "
                f"fewer than {min_item} interactions. Lower those bounds."
            )
        start = 0
        for frame in batches():
            yield frame[keep[start : start + len(frame)]]
            start += len(frame)

    return filtered
