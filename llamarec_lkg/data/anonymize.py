"""Users without their names: numbers in an order that tells nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np
import pandas as pd
import pyarrow as pa

from ..utils.errors import LKGError
from .raw_dataset import RawDataset, record_batches
from .readers import BATCH_ROWS
from .schema import ITEM_ID, RATING, TIMESTAMP, USER_ID, DatasetBundle


Data = TypeVar("Data", DatasetBundle, RawDataset)


def anonymize_users(data: Data) -> Data:
    """The data with users named "1", "2", ... and rows in the order of these numbers, each user's in file order.

    The numbers follow a hash of the ids keyed with the data themselves: the same data always get the same numbers,
    and to undo them takes the raw data. (Numbers in the order of the ids would leave ids that are numbers already
    almost as they were.) Items and triples stay as they are: leave people out of them.

    Args:
        data: a bundle, or a data set that has not been read yet: of its interactions some twenty bytes each are held,
            and each id once.
    """
    if isinstance(data, DatasetBundle):
        return anonymize_users(RawDataset.from_bundle(data)).to_bundle()
    columns = _read(data)
    codes = columns[USER_ID].indices.to_numpy().astype(np.int64)
    raw_ids = columns[USER_ID].dictionary.to_pylist()
    numbers = _numbers(codes, raw_ids, columns[TIMESTAMP].to_numpy(), columns[RATING].to_numpy())
    order = np.argsort(numbers[codes], kind="stable")

    def batches() -> Iterator[pd.DataFrame]:
        for start in range(0, len(order), BATCH_ROWS):
            rows = order[start : start + BATCH_ROWS]
            others = {name: columns[name].take(pa.array(rows)).to_pandas() for name in (ITEM_ID, RATING, TIMESTAMP)}
            yield pd.DataFrame({USER_ID: numbers[codes[rows]].astype(str), **others}).astype({ITEM_ID: object})

    return replace(data, batches=batches)


def _read(raw: RawDataset) -> dict[str, pa.Array]:
    """All interactions, ids as codes of a dictionary in order of their first appearance."""
    parts: dict[str, list[pa.Array]] = {name: [] for name in (USER_ID, ITEM_ID, RATING, TIMESTAMP)}
    for batch in record_batches(raw.batches()):
        for name, column in parts.items():
            values = batch.column(name)
            column.append(values.dictionary_encode() if name in (USER_ID, ITEM_ID) else values)
    if not parts[USER_ID]:
        raise LKGError(f"The interactions of {raw.name} have no rows, so there is nobody to number.")
    return {name: pa.chunked_array(column).unify_dictionaries().combine_chunks() for name, column in parts.items()}


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
