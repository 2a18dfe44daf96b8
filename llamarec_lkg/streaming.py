"""Interactions too many for memory: read batch by batch, and filtered while only two numbers of each are held."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
from huggingface_hub.errors import HTTPError  # of whichever client it uses
from tqdm.auto import tqdm

from .converters import open_raw
from .people import telling
from .raw_files import BATCH_ROWS
from .raw_formats import Catalogue, RawDataset
from .schema import ITEM_ID, RATING, TIMESTAMP, USER_ID, Interactions, ItemTable, LKGDataError, Triples
from .sources import HUB_ID, KNOWN_DATASETS, load_dataset_bundle


INTERACTIONS_SCHEMA = pa.schema(
    [(USER_ID, pa.string()), (ITEM_ID, pa.string()), (RATING, pa.float32()), (TIMESTAMP, pa.int64())]
)


def stream_interactions(
    name_or_path: str | Path,
    *,
    format: str | None = None,
    revision: str | None = None,
    min_user_interactions: int = 1,
    min_item_interactions: int = 1,
    token: str | bool | None = None,
) -> Iterator[pa.RecordBatch]:
    """Iterate over the interactions of a data set without ever holding them all.

    ```python
    for batch in stream_interactions("path/to/Books.jsonl.gz"):
        print(batch.to_pandas())
    ```

    Args:
        name_or_path: as `load_dataset_bundle` takes it; a Hub data set is read over the network as it is needed.
        format: a name of `converters.FORMATS`; by default the file names tell.
        revision: branch, tag or commit of a Hub data set.
        min_user_interactions, min_item_interactions: leave out users and items with fewer, repeatedly, as
            `PreprocessingSettings` does; the source is then read twice, and sixteen bytes an interaction are held.
        token: for a private Hub data set, as `huggingface_hub` takes it; by default that of the login.

    Yields:
        Batches of up to `raw_files.BATCH_ROWS` rows in file order: `user_id` and `item_id` (string), `rating`
        (float32), `timestamp` (int64).

    Raises:
        LKGDataError: nothing is found there, a file is damaged, or a row lacks a value.
    """
    name = str(name_or_path)
    if Path(name_or_path).exists() or format is not None:
        batches = open_raw(name_or_path, format).batches
    elif HUB_ID.fullmatch(name) and name not in KNOWN_DATASETS:

        def batches() -> Iterator[pd.DataFrame]:
            return _hub_batches(name, revision, token)
    else:
        batches = RawDataset.from_bundle(load_dataset_bundle(name)).batches
    if max(min_user_interactions, min_item_interactions) > 1:
        batches, _ = _filtered(batches, min_user_interactions, min_item_interactions)
    return record_batches(batches())


def open_source(
    name_or_path: str | Path,
    *,
    format: str | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
) -> RawDataset:
    """A data set whose interactions need not be in memory; the arguments are those of `stream_interactions`. Only a
    known name or a Hub data set is loaded here, whole.

    Raises:
        LKGDataError: as `load_dataset_bundle`.
    """
    if Path(name_or_path).exists() or format is not None:
        return open_raw(name_or_path, format)
    return RawDataset.from_bundle(load_dataset_bundle(name_or_path, revision=revision, token=token))


def record_batches(frames: Iterator[pd.DataFrame]) -> Iterator[pa.RecordBatch]:
    """Frames of interactions, checked, as record batches of one schema.

    Raises:
        LKGDataError: as `Interactions.from_frame`, with the rows it is about.
    """
    start = 0
    for frame in frames:
        if frame.empty:
            continue
        try:
            checked = Interactions.from_frame(frame)
        except LKGDataError as error:
            raise LKGDataError(f"{error} (Rows are counted from row {start} of the source.)") from error
        columns = (checked.users, checked.items, checked.ratings, checked.timestamps)
        yield pa.RecordBatch.from_arrays(
            [pa.array(column, field.type) for column, field in zip(columns, INTERACTIONS_SCHEMA, strict=True)],
            schema=INTERACTIONS_SCHEMA,
        )
        start += len(frame)


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
        raise LKGDataError(
            f"No interaction of {len(keep)} is left after dropping users with fewer than {min_user} or items with "
            f"fewer than {min_item} interactions. Lower those bounds."
        )
    return keep, user_hashes[np.bincount(users[keep], minlength=len(user_hashes)) == 0]


def hash_ids(batch: pa.RecordBatch, column: str) -> np.ndarray:
    """A 64-bit number for each id of a column, the same for equal ids."""
    return pd.util.hash_array(batch.column(column).to_numpy(zero_copy_only=False))


def _hub_batches(repo_id: str, revision: str | None, token: str | bool | None = None) -> Iterator[pd.DataFrame]:
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    try:
        rows = load_dataset(repo_id, "interactions", split="train", revision=revision, token=token, streaming=True)
        for table in rows.with_format("arrow").iter(BATCH_ROWS):
            yield table.to_pandas()
    except (OSError, ValueError, HTTPError, DatasetsError) as error:
        raise LKGDataError(
            f"The interactions of the Hub data set {repo_id!r} could not be read ({error}). Check the id, the "
            "network and, for a private one, your login (`hf auth login`) or `token`; or pass a local folder."
        ) from error
