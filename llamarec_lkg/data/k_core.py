"""The k-core filter, in memory and over streams."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from dataclasses import replace
from functools import cache

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from ..utils.errors import LKGError
from .raw_dataset import Catalogue, RawDataset, hash_ids, record_batches
from .schema import ITEM_ID, USER_ID, ItemTable, Triples
from .user_ids import telling


def filter_core(raw: RawDataset, min_user_interactions: int, min_item_interactions: int) -> RawDataset:
    """The data set without users and items that have fewer interactions, as `stream_interactions` leaves them out.
    Facts that name such a user go with them, and values of attributes that do (which numbers of up to nine digits do
    not): nobody could tell later on that it is a person."""
    batches, dropped_users = _filtered(raw.batches, min_user_interactions, min_item_interactions)

    def catalogue(wanted: Container[str] | None) -> Catalogue:
        items, triples = raw.catalogue(wanted)
        users = dropped_users()
        return _without_values(items, users), None if triples is None else _without(triples, users)

    return replace(raw, batches=batches, catalogue=catalogue)


def _without_values(items: ItemTable, dropped_users: np.ndarray) -> ItemTable:
    """The items without values of attributes that are ids of these users."""
    attributes = {}
    for relation, cells in items.attributes.items():
        people = _among(telling({value for cell in cells for value in cell}), dropped_users)
        attributes[relation] = tuple(tuple(value for value in cell if value not in people) for cell in cells)
    return replace(items, attributes=attributes)


def _among(texts: set[str], users: np.ndarray) -> set[str]:
    """Those of the texts that are ids of users, who are given as hashes."""
    ordered = np.array(sorted(texts), dtype=object)
    return set(ordered[np.isin(pd.util.hash_array(ordered), users)]) if len(ordered) else set()


def _without(triples: Triples, dropped_users: np.ndarray) -> Triples:
    """The facts whose head and tail are none of these users; an entity that is linked to an item is no user."""
    people = _among({*triples.heads, *triples.tails} - set(triples.item_of_entity), dropped_users)
    keep = np.array(
        [head not in people and tail not in people for head, tail in zip(triples.heads, triples.tails, strict=True)],
        dtype=bool,
    )
    columns = (column[keep] for column in (triples.heads, triples.relations, triples.tails))
    return Triples(*columns, item_of_entity=triples.item_of_entity)


def _filtered(
    batches: Callable[[], Iterator[pd.DataFrame]], min_user: int, min_item: int
) -> tuple[Callable[[], Iterator[pd.DataFrame]], Callable[[], np.ndarray]]:
    """What reads the interactions that the k-core filter keeps, and what tells the hashes of the users it drops. The
    source is counted once for both."""

    @cache
    def core() -> tuple[np.ndarray, np.ndarray]:
        return _core_rows(batches(), min_user, min_item)

    def filtered() -> Iterator[pd.DataFrame]:
        keep, _ = core()
        start = 0
        for frame in batches():
            yield frame[keep[start : start + len(frame)]]
            start += len(frame)

    return filtered, lambda: core()[1]


def _core_rows(frames: Iterator[pd.DataFrame], min_user: int, min_item: int) -> tuple[np.ndarray, np.ndarray]:
    """Which rows the k-core filter keeps, shape (N,) of `bool`, and the hashes of the users of whom it keeps none.

    Ids are held as 64-bit hashes: among ten million of them two are the same with a chance of three in a million.
    """
    hashes: dict[str, list[np.ndarray]] = {USER_ID: [], ITEM_ID: []}
    for batch in tqdm(record_batches(frames), desc="count interactions", unit="batch", delay=2.0, leave=False):
        for column, parts in hashes.items():
            parts.append(hash_ids(batch, column))
    if not hashes[USER_ID]:
        return np.zeros(0, dtype=bool), np.zeros(0, dtype=np.uint64)
    users, user_hashes = pd.factorize(np.concatenate(hashes.pop(USER_ID)))
    items, _ = pd.factorize(np.concatenate(hashes.pop(ITEM_ID)))
    keep, left = np.ones(len(users), dtype=bool), -1
    while keep.sum() != left:
        left = keep.sum()
        for codes, minimum in ((items, min_item), (users, min_user)):
            keep &= (np.bincount(codes[keep], minlength=codes.max() + 1) >= minimum)[codes]
    if not keep.any():
        raise LKGError(
            f"No interaction of {len(keep)} is left after dropping users with fewer than {min_user} or items with "
            f"fewer than {min_item} interactions. Lower those bounds."
        )
    return keep, user_hashes[np.bincount(users[keep], minlength=len(user_hashes)) == 0]


def k_core(frame: pd.DataFrame, min_user: int, min_item: int) -> pd.DataFrame:
    """Drop rare items and users again and again until every one left has its minimum."""
    while True:
        before = len(frame)
        frame = frame[frame.groupby(ITEM_ID)[ITEM_ID].transform("size") >= min_item]
        frame = frame[frame.groupby(USER_ID)[USER_ID].transform("size") >= min_user]
        if len(frame) == before:
            return frame
