"""Users without their names: numbers in an order that tells nothing, in interactions, items and facts alike."""

from __future__ import annotations

import hashlib
from collections.abc import Container, Iterator, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np
import pandas as pd
import pyarrow as pa
from transformers.utils import logging

from ..utils.errors import LKGError
from .raw_dataset import Catalogue, RawDataset, record_batches
from .readers import BATCH_ROWS
from .schema import ITEM_ID, RATING, TIMESTAMP, USER_ID, DatasetBundle, ItemTable, Triples
from .user_ids import OTHER_NAMES, telling


logger = logging.get_logger(__name__)


Data = TypeVar("Data", DatasetBundle, RawDataset)


def anonymize_users(data: Data) -> Data:
    """The data with users named "1", "2", ... and rows in the order of these numbers, each user's in file order.

    The numbers follow a hash of the ids keyed with the data themselves: the same data always get the same numbers,
    and to undo them takes the raw data. (Numbers in the order of the ids would leave ids that are numbers already
    almost as they were.) The same numbers get heads and tails of triples that are users, and not linked to items; and
    values of items' attributes that are users, of which numbers of up to nine digits are taken for numbers: a user
    called "1995" and the year cannot be told apart. Ids and titles of items stay as they are.

    Args:
        data: a bundle, or a data set that has not been read yet: of its interactions some twenty bytes each are held,
            and each id once.

    Raises:
        LKGError: such a number is the name of another entity of the triples, or another value of the attribute,
            already. (Of a data set that has not been read this is raised when its items are.)
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

    def catalogue(wanted: Container[str] | None) -> Catalogue:
        items, triples = data.catalogue(wanted)
        items = _renamed_values(items, raw_ids, numbers)
        return items, None if triples is None else _renamed(triples, raw_ids, numbers)

    return replace(data, batches=batches, catalogue=catalogue)


def entities_like_people(triples: Triples) -> set[str]:
    """Entities that could be users, if users are named so: those that are linked to no item."""
    return {*triples.heads, *triples.tails} - set(triples.item_of_entity)


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


def _renamed_values(items: ItemTable, raw_ids: Sequence[str], numbers: np.ndarray) -> ItemTable:
    """The items with the numbers in place of users among the values of their attributes."""
    attributes = dict(items.attributes)
    known = telling({value for cells in attributes.values() for cell in cells for value in cell})
    new = {raw: str(number) for raw, number in zip(raw_ids, numbers, strict=True) if raw in known}
    for relation, cells in items.attributes.items():
        values = {value for cell in cells for value in cell}
        people = {value for value in values if value in new}
        if not people:
            continue
        taken = sorted({new[value] for value in people} & values)
        if taken:
            raise LKGError(
                f"The items' {relation} names {len(people)} users, {min(people)!r} for example, and the numbers that "
                f"would replace them are other values of it already ({taken[:3]}). Leave the column out; if these are "
                f"no users, {OTHER_NAMES}."
            )
        logger.warning(
            f"The items' {relation} names {len(people)} users, {min(people)!r} for example; they get the users' "
            f"numbers. If they are no users, {OTHER_NAMES}."
        )
        attributes[relation] = tuple(tuple(new.get(value, value) for value in cell) for cell in cells)
    return replace(items, attributes=attributes)


def _renamed(triples: Triples, raw_ids: Sequence[str], numbers: np.ndarray) -> Triples:
    """The triples with the numbers in place of the users."""
    people = entities_like_people(triples) & set(raw_ids)
    if not people:
        return triples
    new = {raw: str(number) for raw, number in zip(raw_ids, numbers, strict=True) if raw in people}
    taken = sorted(set(new.values()) & (({*triples.heads, *triples.tails} - people) | set(triples.item_of_entity)))
    if taken:
        raise LKGError(
            f"The triples name {len(people)} users, {sorted(people)[0]!r} for example, and the numbers that would "
            f"replace them are names of other entities already ({taken[:3]}): {OTHER_NAMES}."
        )
    heads, tails = (
        np.array([new.get(entity, entity) for entity in column], dtype=object)
        for column in (triples.heads, triples.tails)
    )
    return replace(triples, heads=heads, tails=tails)
