"""One entry to every format of recommendation data, and to facts from elsewhere: networkx graphs and tables of
triples."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from ..utils.errors import LKGError
from .formats.amazon import amazon_2014, amazon_2023
from .formats.movielens import movielens_1m, movielens_100k, movielens_latest
from .formats.recbole import recbole_atomic
from .formats.tables import tables
from .raw_dataset import RawDataset, folder_of
from .schema import DatasetBundle


class Format(NamedTuple):
    """How a format is read: by which function, which files a folder of it holds (patterns, the interactions first),
    and what to tell people."""

    opens: Callable[[Path], RawDataset]
    signs: tuple[str, ...]
    reads: str


MOVIELENS_DAT = (r"ratings\.dat", r"movies\.dat")


# the first format whose files are all there is taken
FORMATS: dict[str, Format] = {
    "movielens-latest": Format(
        movielens_latest,
        (r"ratings\.csv", r"movies\.csv"),
        "ml-latest, ml-latest-small, ml-20m, ml-25m, ml-32m: ratings.csv and movies.csv",
    ),
    "movielens-1m": Format(movielens_1m, MOVIELENS_DAT, "ml-1m: ratings.dat and movies.dat"),
    "movielens-10m": Format(movielens_1m, MOVIELENS_DAT, "ml-10m: files as of ml-1m, which the same reader takes"),
    "movielens-100k": Format(movielens_100k, (r"u\.data", r"u\.item"), "ml-100k: u.data and u.item"),
    "recbole": Format(recbole_atomic, (r".+\.inter",), "X.inter and X.item, optionally X.kg with X.link"),
    "tables": Format(
        tables,
        (r"interactions\.(parquet|csv)", r"items\.(parquet|csv)"),
        "interactions and items, optionally triples and links, as parquet or csv",
    ),
    "amazon-2014": Format(
        amazon_2014,
        (r"(ratings_.+\.csv|reviews_.+\.json)(\.gz)?", r"meta_.+\.json(\.gz)?"),
        "ratings_X.csv or reviews_X_5.json.gz, with meta_X.json.gz",
    ),
    "amazon-2023": Format(
        amazon_2023, (r"(?!meta_).+\.jsonl(\.gz)?", r"meta_.+\.jsonl(\.gz)?"), "X.jsonl.gz, with meta_X.jsonl.gz"
    ),
}


def describe_formats() -> str:
    """The formats and their files, one a line."""
    return "\n".join(f"  {name} ({format.reads})" for name, format in FORMATS.items())


def convert(path: str | Path, format: str | None = None) -> DatasetBundle:
    """Read a raw data set into memory.

    Args:
        path: a folder of raw files, or one of them.
        format (`str`, optional): a name of `FORMATS`. By default the file names tell.

    Raises:
        LKGError: no format fits, a file is damaged, or a table lacks what it needs.
    """
    return open_raw(path, format).to_bundle()


def open_raw(path: str | Path, format: str | None = None) -> RawDataset:
    """Find a raw data set and its format, without reading more than file names; the arguments are those of
    `convert`.

    Raises:
        LKGError: there is nothing at `path`, or no format fits.
    """
    path = Path(path)
    if format is not None and format not in FORMATS:
        close = difflib.get_close_matches(format, FORMATS, n=1, cutoff=0.5)
        hint = f"; did you mean {close[0]!r}? The formats are" if close else ". The formats are"
        raise LKGError(f"format={format!r} was given{hint}:\n{describe_formats()}")
    if not path.exists():
        raise LKGError(f"{path} does not exist. Pass a folder of raw files, or one of them.")
    folder = folder_of(path)
    names = sorted(entry.name for entry in folder.iterdir())
    if format is None:
        format = _recognise(path, names)
    if format is None:
        raise LKGError(
            f"{folder} holds {names[:12]}. Needed: interactions.parquet or .csv, and items.parquet or .csv (or "
            "MovieLens ratings.csv and movies.csv, or ratings.dat and movies.dat, or u.data and u.item; or RecBole "
            "*.inter and *.item files; or Amazon ratings_X.csv or reviews_X_5.json.gz with meta_X.json.gz, or "
            "X.jsonl.gz with meta_X.jsonl.gz)."
        )
    return FORMATS[format].opens(path)


def _recognise(path: Path, files: list[str]) -> str | None:
    for name, format in FORMATS.items():
        if path.is_file():
            if re.fullmatch(format.signs[0], path.name):
                return name
        elif all(any(re.fullmatch(sign, file) for file in files) for sign in format.signs):
            return name
    return None
