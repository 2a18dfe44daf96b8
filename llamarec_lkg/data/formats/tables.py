"""Plain tables: what `convert` and `push_dataset` write."""

from __future__ import annotations

from collections.abc import Container, Iterator
from pathlib import Path

import pandas as pd

from ...utils.errors import LKGError
from ..raw_dataset import (
    CARD,
    ID_TYPES,
    INTERACTION_COLUMNS,
    Catalogue,
    Format,
    RawDataset,
    catalogue_of_tables,
    folder_of,
    only,
    read_source,
)
from ..readers import csv_batches, parquet_batches, read_table


def tables(path: Path) -> RawDataset:
    """`interactions`, `items` and, if any, `triples` and `links` tables, as parquet or csv. Citation and licence are
    those of the card beside them."""
    folder = folder_of(path)
    interactions = _table(folder, "interactions", needed=True)

    def batches() -> Iterator[pd.DataFrame]:
        if interactions.suffix == ".parquet":
            yield from parquet_batches(interactions, INTERACTION_COLUMNS)
        else:
            yield from map(_plain_ids, csv_batches(interactions, dtype=ID_TYPES))

    def catalogue(wanted: Container[str] | None) -> Catalogue:
        found = {name: _table(folder, name, needed=name == "items") for name in ("items", "triples", "links")}
        frames = {name: _plain_ids(read_table(file, dtype=ID_TYPES)) for name, file in found.items() if file}
        items, triples = catalogue_of_tables(**frames)
        return only(items, wanted), triples

    return RawDataset(folder.resolve().name, batches, catalogue, **read_source(folder / CARD))


def _table(folder: Path, name: str, needed: bool = False) -> Path | None:
    found = next((path for suffix in ("parquet", "csv") if (path := folder / f"{name}.{suffix}").exists()), None)
    if needed and found is None:
        raise LKGError(f"{folder} holds no {name}.parquet or {name}.csv. Put the table there.")
    return found


def _plain_ids(frame: pd.DataFrame) -> pd.DataFrame:
    """Ids that a table writer turned into floats ("7.0") as they were ("7")."""
    for column in ID_TYPES.keys() & set(frame.columns):
        values = frame[column]
        if pd.api.types.is_string_dtype(values) and values.str.fullmatch(r"-?\d+\.0", na=False).all():
            frame[column] = values.str.removesuffix(".0")
    return frame


_SIGNS = (r"interactions\.(parquet|csv)", r"items\.(parquet|csv)")
FORMATS = (
    Format("tables", tables, _SIGNS, "interactions and items, optionally triples and links, as parquet or csv"),
)
