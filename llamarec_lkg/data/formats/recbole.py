"""RecBole atomic files."""

from __future__ import annotations

import re
from collections.abc import Container
from pathlib import Path

import pandas as pd

from ...utils.errors import LKGError
from ..engine import Connection, Relation, csv_relation, name
from ..links import checked_links, links_of
from ..raw_dataset import Catalogue, Format, RawDataset, folder_of, only
from ..readers import read_table
from ..schema import HEAD, ITEM_ID, RATING, RELATION, TAIL, TIMESTAMP, TITLE, USER_ID, ItemTable, Triples
from .movielens import GENRE, YEAR


PARTS = ("train", "valid", "test")  # of data that are split already
_OF_INTERACTIONS = {
    USER_ID: ("user_id", "session_id"),
    ITEM_ID: ("item_id", "artist_id", "business_id", "movie_id", "book_id", "product_id"),
    RATING: ("rating", "stars", "weight"),
    TIMESTAMP: ("timestamp", "date"),
}
_TITLES = ("title", "item_name", "name")


def recbole_atomic(path: Path) -> RawDataset:
    """RecBole atomic files: `*.inter`, `*.item`, optionally `*.kg` and `*.link`. `token_seq` columns other than the
    title hold several values, separated by spaces or, in quotation marks, by commas. Data that are split into
    `x.train.inter`, `x.valid.inter` and `x.test.inter` are read as a whole."""
    folder, (title, files) = folder_of(path), _files(path)

    def interactions(connection: Connection) -> Relation:
        parts = [one_part(csv_relation(connection, file, **_ATOMIC), file) for file in files]
        if len({tuple(part.columns) for part in parts}) > 1:
            raise LKGError(f"{[file.name for file in files]} have different columns. Give all of them the same.")
        whole = parts[0]
        for part in parts[1:]:
            whole = whole.union(part)
        return whole

    def one_part(whole: Relation, file: Path) -> Relation:
        names = [column.split(":")[0] for column in whole.columns]
        found = {new: next((n for n in known if n in names), None) for new, known in _OF_INTERACTIONS.items()}
        missing = [new for new, old in found.items() if old is None and new != RATING]
        if missing:
            raise LKGError(
                f"{file.name} has columns {names}, of which none is {' or '.join(missing)}. Add "
                f"{[_OF_INTERACTIONS[new][0] for new in missing]}; without times, number the rows in their order."
            )
        return whole.project(
            ", ".join(f"{name(whole.columns[names.index(old)])} AS {new}" for new, old in found.items() if old)
        )

    def catalogue(wanted: Container[str] | None) -> Catalogue:
        table = _atomic(_items(folder, title))
        titled = [column for column in table.columns if _is_title(column)]
        item = next((column for column in _OF_INTERACTIONS[ITEM_ID] if column in table.columns), None)
        if not titled or item is None:
            raise LKGError(
                f"{title}.item has columns {list(table.columns)}; needed are an id ({_OF_INTERACTIONS[ITEM_ID]}) and "
                f"a title ({_TITLES}, or a name that ends with 'title'). Rename the columns."
            )
        best = min(titled, key=lambda column: (column in ("item_name", "name"), list(table.columns).index(column)))
        renames = {"class": GENRE, "release_year": YEAR}
        attributes = {c: renames.get(c, c.upper()) for c in table.columns if c not in (item, best)}
        items = ItemTable.from_frame(table.rename(columns={best: TITLE, item: ITEM_ID}), attributes)
        triples = None
        if (folder / f"{title}.kg").exists():
            links = links_of(_atomic(read_table(folder / f"{title}.link", **_ATOMIC)), f"{title}.link")
            facts = _atomic(read_table(folder / f"{title}.kg", **_ATOMIC))
            names = {"head_id": HEAD, "relation_id": RELATION, "tail_id": TAIL}
            triples = checked_links(Triples.from_frame(facts.rename(columns=names), links), items.ids)
        return only(items, wanted), triples

    return RawDataset(title, interactions, catalogue)


def _files(path: Path) -> tuple[str, list[Path]]:
    """The name of the data set and its files of interactions: one, or those of its parts."""
    files = [path] if path.is_file() else sorted(folder_of(path).glob("*.inter"))
    if not files:
        raise LKGError(f"{path} holds no *.inter file. RecBole data needs one, and an *.item file.")
    found: dict[str, list[Path]] = {}
    for file in files:
        found.setdefault(re.sub(rf"\.({'|'.join(PARTS)})$", "", file.stem), []).append(file)
    if len(found) > 1:
        raise LKGError(f"{path} holds several data sets: {sorted(found)}. Pass the path of one .inter file.")
    ((title, files),) = found.items()
    whole = [file for file in files if file.stem == title]
    return title, whole or sorted(files, key=lambda file: PARTS.index(file.stem.rpartition(".")[2]))


def _items(folder: Path, title: str) -> pd.DataFrame:
    """The items: one file, or those beside the parts of data that are split, each row once."""
    found = [folder / f"{name}.item" for name in (title, *(f"{title}.{part}" for part in PARTS))]
    files = [file for file in found if file.exists()]
    if not files:
        raise LKGError(
            f"{folder} holds no {title}.item, which has the titles. It needs item_id:token and one of {_TITLES}."
        )
    files = files[:1] if files[0] == found[0] else files
    return pd.concat([read_table(file, **_ATOMIC) for file in files], ignore_index=True).drop_duplicates()


# tab separated, whose header reads `column:type`; a quotation mark is a letter like any other
_ATOMIC = {"separator": "\t", "quotes": False}


def _atomic(frame: pd.DataFrame) -> pd.DataFrame:
    for column in frame.columns:
        if column.endswith(":token_seq") and not _is_title(column.split(":")[0]):
            frame[column] = [_sequence(cell) for cell in frame[column]]
    frame.columns = [column.split(":")[0] for column in frame.columns]
    return frame


def _is_title(column: str) -> bool:
    return column in _TITLES or column.endswith("title")


def _sequence(cell: str | None) -> list[str]:
    """The values of a cell: between blanks or, where they stand in quotation marks, between these."""
    if not isinstance(cell, str):
        return []
    quoted = _QUOTED.findall(cell) if cell.strip()[:1] in ("'", '"') else []
    return [one or other for one, other in quoted] or cell.split(" ")


_QUOTED = re.compile(r"'((?:[^'\\]|\\.)*)'|\"((?:[^\"\\]|\\.)*)\"")


FORMATS = (Format("recbole", recbole_atomic, (r".+\.inter",), "X.inter and X.item, optionally X.kg with X.link"),)
