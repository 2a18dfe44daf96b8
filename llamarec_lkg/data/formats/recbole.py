"""RecBole atomic files."""

from __future__ import annotations

import csv
from collections.abc import Container
from pathlib import Path

import pandas as pd

from ...utils.errors import LKGError
from ..links import checked_links
from ..raw_dataset import Catalogue, Format, RawDataset, folder_of, links_of, only
from ..readers import csv_batches, read_table
from ..schema import HEAD, ITEM_ID, RELATION, TAIL, TITLE, ItemTable, Triples
from .movielens import GENRE, YEAR


def recbole_atomic(path: Path) -> RawDataset:
    """RecBole atomic files: `*.inter`, `*.item`, optionally `*.kg` and `*.link`. `token_seq` columns other than the
    title hold several values, separated by spaces."""
    folder = folder_of(path)
    files = [path] if path.is_file() else sorted(folder.glob("*.inter"))
    if not files:
        raise LKGError(f"{folder} holds no *.inter file. RecBole data needs one, and an *.item file.")
    name = files[0].stem

    def catalogue(wanted: Container[str] | None) -> Catalogue:
        items = _atomic(read_table(folder / f"{name}.item", **_ATOMIC))
        title_column = next((column for column in items.columns if column.endswith("title")), None)
        if title_column is None:
            raise LKGError(f"{name}.item has columns {list(items.columns)}; one must end with 'title'.")
        renames = {"class": GENRE, "release_year": YEAR}
        attributes = {c: renames.get(c, c.upper()) for c in items.columns if c not in (ITEM_ID, title_column)}
        table = ItemTable.from_frame(items.rename(columns={title_column: TITLE}), attributes)
        triples = None
        if (folder / f"{name}.kg").exists():
            links = links_of(_atomic(read_table(folder / f"{name}.link", **_ATOMIC)), f"{name}.link")
            facts = _atomic(read_table(folder / f"{name}.kg", **_ATOMIC))
            names = {"head_id": HEAD, "relation_id": RELATION, "tail_id": TAIL}
            triples = checked_links(Triples.from_frame(facts.rename(columns=names), links), table.ids)
        return only(table, wanted), triples

    return RawDataset(name, lambda: map(_atomic, csv_batches(folder / f"{name}.inter", **_ATOMIC)), catalogue)


# tab separated, whose header reads `column:type`; a quotation mark is a letter like any other
_ATOMIC = {"sep": "\t", "dtype": str, "na_values": None, "quoting": csv.QUOTE_NONE}


def _atomic(frame: pd.DataFrame) -> pd.DataFrame:
    for column in frame.columns:
        if column.endswith(":token_seq") and not column.startswith(("title", "movie_title")):
            frame[column] = frame[column].str.replace(" ", "|")
    frame.columns = [column.split(":")[0] for column in frame.columns]
    return frame


FORMATS = (Format("recbole", recbole_atomic, (r".+\.inter",), "X.inter and X.item, optionally X.kg with X.link"),)
