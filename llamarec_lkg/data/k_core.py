"""The k-core filter."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa

from ..utils.errors import LKGError
from .arrays import counted, mapped
from .engine import Connection, Relation, reading
from .interactions import ROW
from .raw_dataset import RawDataset, coded_interactions


def core_rows(users: np.ndarray, items: np.ndarray, min_user: int, min_item: int) -> np.ndarray:
    """Which interactions are left when rare items and users are dropped again and again until every one left has its
    minimum. (Counting codes in arrays is several times as fast as the same in SQL.)

    Args:
        users, items (`np.ndarray` of integers from 0 on, shape (N,)).

    Returns:
        `np.ndarray` of `bool`, shape (N,).
    """
    keep, left = np.ones(len(users), dtype=bool), -1
    while keep.sum() != left:
        left = keep.sum()
        for codes, minimum in ((items, min_item), (users, min_user)):
            keep &= mapped(counted(codes, keep) >= minimum, codes)
    return keep


def filtered(raw: RawDataset, min_user: int, min_item: int) -> RawDataset:
    """The data without users and items that have fewer interactions, dropped repeatedly. Some thirty bytes an
    interaction are held."""

    def interactions(connection: Connection) -> Relation:
        typed = raw.typed(connection)
        codes = coded_interactions(connection, typed, raw.name, order=ROW)
        keep = core_rows(codes.users, codes.items, min_user, min_item)
        if not keep.any():
            raise LKGError(
                f"No interaction of {len(keep)} is left after dropping users with fewer than {min_user} or items with "
                f"fewer than {min_item} interactions. Lower those bounds."
            )
        rows = connection.from_arrow(pa.table({ROW: np.flatnonzero(keep)}))
        with reading(raw.name):
            return typed.join(rows, ROW).order(ROW)

    return replace(raw, interactions=interactions, checked=True)
