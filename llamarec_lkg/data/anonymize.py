"""Users without their names: numbers in an order that tells nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np
import pyarrow as pa

from .engine import Connection, Relation, reading
from .interactions import ROW
from .raw_dataset import RawDataset, coded_interactions
from .schema import ITEM_ID, RATING, TIMESTAMP, USER_ID, DatasetBundle


Data = TypeVar("Data", DatasetBundle, RawDataset)


def anonymize_users(data: Data) -> Data:
    """The data with users named "1", "2", ... and rows in the order of these numbers, each user's in file order.

    The numbers follow a hash of the ids keyed with the data themselves: the same data always get the same numbers,
    and to undo them takes the raw data. (Numbers in the order of the ids would leave ids that are numbers already
    almost as they were.) Items and triples stay as they are: leave people out of them.

    Args:
        data: a bundle, or a data set that has not been read yet: of its interactions some forty bytes each are held,
            and each id once.
    """
    if isinstance(data, DatasetBundle):
        return anonymize_users(RawDataset.from_bundle(data)).to_bundle()

    def interactions(connection: Connection) -> Relation:
        typed = data.typed(connection)
        found = coded_interactions(connection, typed, data.name, order=ROW)
        # users in the order of their first row: codes themselves are the engine's affair
        order = np.argsort(np.unique(found.users, return_index=True)[1])
        place = np.empty(len(order), dtype=np.int64)
        place[order] = np.arange(len(order))
        raw_ids = found.user_ids[order]
        numbers = _numbers(place[found.users], raw_ids.tolist(), found.timestamps, found.ratings)
        named = connection.from_arrow(pa.table({"named": raw_ids, "number": numbers}))
        with reading(data.name):
            joined = typed.join(named, f"CAST({USER_ID} AS VARCHAR) = named")
            columns = f"CAST(number AS VARCHAR) AS {USER_ID}, {ITEM_ID}, {RATING}, {TIMESTAMP}, {ROW}"
            return joined.order(f"number, {ROW}").project(columns)

    return replace(data, interactions=interactions, checked=True)


def _numbers(codes: np.ndarray, raw_ids: Sequence[str], timestamps: np.ndarray, ratings: np.ndarray) -> np.ndarray:
    """The number from 1 on of each user, shape (U,)."""
    key = hashlib.sha256()
    for part in (codes, timestamps, ratings):
        key.update(np.ascontiguousarray(part).data)
    key.update("\n".join(raw_ids).encode())
    digests = [hashlib.sha256(key.digest() + raw.encode()).digest() for raw in raw_ids]
    numbers = np.empty(len(raw_ids), dtype=np.int64)
    numbers[sorted(range(len(raw_ids)), key=digests.__getitem__)] = np.arange(1, len(raw_ids) + 1)
    return numbers
