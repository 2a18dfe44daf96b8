"""Plain tables: what `convert` and `push_dataset` write."""

from __future__ import annotations

import re
from collections.abc import Container
from pathlib import Path

from ...utils.errors import LKGError
from ..engine import Connection, Relation
from ..raw_dataset import CARD, Catalogue, Format, RawDataset, catalogue_of_tables, folder_of, only, read_source
from ..readers import TABLES, read_table, table_relation


def tables(path: Path) -> RawDataset:
    """`interactions`, `items` and, if any, `triples` and `links` tables, as parquet, csv or tsv, plain or packed.
    Citation and licence are those of the card beside them."""
    folder = folder_of(path)
    files = {name: _table(folder, name) for name in ("interactions", "items", "triples", "links")}
    if files["interactions"] is None:
        raise LKGError(f"{folder} holds no interactions.parquet or interactions.csv. Put the table there.")

    def interactions(connection: Connection) -> Relation:
        return table_relation(connection, files["interactions"])

    def catalogue(wanted: Container[str] | None) -> Catalogue:
        if files["items"] is None:
            raise LKGError(f"{folder} holds no items.parquet or items.csv. Put the table there.")
        frames = {name: read_table(file) for name, file in files.items() if file and name != "interactions"}
        items, triples = catalogue_of_tables(**frames)
        return only(items, wanted), triples

    return RawDataset(folder.resolve().name, interactions, catalogue, **read_source(folder / CARD))


def _table(folder: Path, name: str) -> Path | None:
    """The file of a table; of several the first of parquet, csv and tsv."""
    found = [entry for entry in sorted(folder.iterdir()) if re.fullmatch(name + TABLES, entry.name)]
    return min(found, key=lambda entry: ("parquet", "csv", "tsv").index(entry.name.split(".")[1]), default=None)


_SIGNS = (rf"interactions{TABLES}", rf"items{TABLES}")
FORMATS = (
    Format("tables", tables, _SIGNS, "interactions and items, optionally triples and links, as parquet, csv or tsv"),
)
