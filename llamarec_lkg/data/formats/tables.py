"""Plain tables: what `convert` and `push_dataset` write."""

from __future__ import annotations

import logging
import re
from collections.abc import Container, Mapping, Sequence
from pathlib import Path

import pandas as pd

from ...utils.errors import LKGError
from ..engine import Connection, Relation, connect, name
from ..raw_dataset import CARD, Catalogue, Format, RawDataset, catalogue_of_tables, folder_of, only, read_source
from ..readers import TABLES, read_table, table_relation


logger = logging.getLogger(__name__)
TABLE_NAMES = ("interactions", "items", "triples", "links")
KINDS = ("parquet", "csv", "tsv", "jsonl")  # of files; of two for one table the first is read


def tables(path: Path, columns: Mapping[str, str] | None = None) -> RawDataset:
    """`interactions`, `items` and, if any, `triples` and `links` tables, as parquet, csv, tsv or jsonl, the last three
    plain or packed. Citation and licence are those of the card beside them.

    Args:
        columns: the library's name of a column -> the one it has in these tables, where that is another.

    Raises:
        LKGError: a table is not there, or none has a column that `columns` names.
    """
    folder = folder_of(path)
    files = {table: _file(folder, table) for table in TABLE_NAMES}
    for table in ("interactions", "items"):
        if files[table] is None:
            raise LKGError(f"{folder} holds no {table} table ({', '.join(f'{table}.{kind}' for kind in KINDS)}).")

    if columns:
        connection = connect()
        found = {column for file in files.values() if file for column in table_relation(connection, file).columns}
        if strange := sorted(set(columns.values()) - found):
            raise LKGError(f"The tables in {folder} have no column {strange}; they have {sorted(found)}. Name those.")

    def interactions(connection: Connection) -> Relation:
        relation = table_relation(connection, files["interactions"])
        new = _renamed(relation.columns, columns)
        return relation.project(", ".join(f"{name(old)} AS {name(own)}" for own, old in new.items()))

    def catalogue(wanted: Container[str] | None) -> Catalogue:
        given = {table: file for table, file in files.items() if file and table != "interactions"}
        items, triples = catalogue_of_tables(**{t: renamed(read_table(file), columns) for t, file in given.items()})
        return only(items, wanted), triples

    return RawDataset(folder.resolve().name, interactions, catalogue, **read_source(folder / CARD))


def renamed(table: pd.DataFrame, columns: Mapping[str, str] | None) -> pd.DataFrame:
    """A table under the library's names of columns."""
    new = _renamed(list(table.columns), columns)
    return table[list(new.values())].set_axis(list(new), axis=1)


def _renamed(found: Sequence[str], columns: Mapping[str, str] | None) -> dict[str, str]:
    """New name -> column of a table: what `columns` renames, and the others that are not called so already."""
    known = {new: old for new, old in (columns or {}).items() if old in found}
    return known | {old: old for old in found if old not in known.values() and old not in known}


def _file(folder: Path, table: str) -> Path | None:
    found = [entry for entry in folder.iterdir() if re.fullmatch(table + TABLES, entry.name)]
    found.sort(key=lambda entry: KINDS.index(entry.name.split(".")[1]))
    if len(found) > 1:
        logger.warning("%s holds %s; the first is read.", folder, [entry.name for entry in found])
    return found[0] if found else None


_SIGNS = (rf"interactions{TABLES}", rf"items{TABLES}")
FORMATS = (
    Format(
        "tables", tables, _SIGNS, "interactions and items, optionally triples and links, as parquet, csv, tsv or jsonl"
    ),
)
