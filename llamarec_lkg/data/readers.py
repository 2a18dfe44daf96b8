"""Reading raw files of any size piece by piece: compressed or not, csv or one record a line, with a progress bar."""

from __future__ import annotations

import ast
import contextlib
import gzip
import io
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import pandas as pd
import pyarrow.parquet as pq
from tqdm.auto import tqdm

from ..utils.errors import LKGError


BATCH_ROWS = 1 << 17  # rows held at a time: some tens of megabytes of text


class _Counted(io.FileIO):
    """A file that moves a progress bar by the bytes read from it."""

    def __init__(self, path: Path, bar: tqdm) -> None:
        super().__init__(path)
        self.bar = bar

    def readinto(self, buffer: Any) -> int:
        count = super().readinto(buffer)
        self.bar.update(count)
        return count


@contextlib.contextmanager
def open_bytes(path: Path) -> Iterator[BinaryIO]:
    """The content of a file, unpacked where its name ends in `.gz`. A bar appears where reading takes a while."""
    size = path.stat().st_size if path.exists() else 0
    try:
        with (
            tqdm(total=size, desc=f"read {path.name}", unit="B", unit_scale=True, delay=2.0, leave=False) as bar,
            io.BufferedReader(_Counted(path, bar), buffer_size=1 << 20) as plain,
        ):
            yield gzip.open(plain) if path.suffix == ".gz" else plain
    except FileNotFoundError as error:
        raise LKGError(f"{path} does not exist. Put it there, or pass the folder that holds it.") from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise LKGError(f"{path} is damaged ({error}). Is the file whole? Make or copy it again.") from error


def read_lines(path: Path) -> list[str]:
    """The lines, but for empty ones, of a small text file in UTF-8 or, as older MovieLens files are, in Latin-1."""
    with open_bytes(path) as stream:
        content = stream.read()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = content.decode("latin-1")
    # not `splitlines`, for which some Latin-1 letters end a line
    return [line.rstrip("\r") for line in text.split("\n") if line.strip()]


# of a csv file only an empty cell is no value: Namibia is "NA", and somebody's title "None"
_TEXT_STAYS = {"keep_default_na": False, "na_values": [""]}


def read_table(path: Path, **options: Any) -> pd.DataFrame:
    """A parquet or csv file as a frame; `options` are those of `pandas.read_csv`."""
    try:
        return pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path, **{**_TEXT_STAYS, **options})
    except (OSError, ValueError) as error:  # pyarrow and pandas parser errors are ValueErrors
        raise _unreadable(path, error) from error


def csv_batches(path: Path, **options: Any) -> Iterator[pd.DataFrame]:
    """The rows of a csv file, `BATCH_ROWS` at a time; `options` are those of `pandas.read_csv`."""
    with open_bytes(path) as stream:
        try:
            with pd.read_csv(stream, chunksize=BATCH_ROWS, **{**_TEXT_STAYS, **options}) as batches:
                yield from batches
        except ValueError as error:
            raise _unreadable(path, error) from error


def parquet_batches(path: Path, columns: Sequence[str]) -> Iterator[pd.DataFrame]:
    """The rows of a parquet file, `BATCH_ROWS` at a time. Other columns are read only where one of these is missing,
    so that an error can list them."""
    try:
        with pq.ParquetFile(path) as file:
            wanted = list(columns) if set(columns) <= set(file.schema_arrow.names) else None
            for batch in file.iter_batches(BATCH_ROWS, columns=wanted):
                yield batch.to_pandas()
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> LKGError:
    kind = path.name.removesuffix(".gz").rpartition(".")[2]
    return LKGError(f"{path} cannot be read as {kind} ({error}). Is the file whole? Make or copy it again.")


def _parse_record(line: bytes) -> dict[str, Any]:
    """One record: json or, as the older Amazon files have it, a Python dictionary written out. Nothing is run."""
    try:
        record = json.loads(line)
    except ValueError:
        try:
            record = ast.literal_eval(line.decode("utf-8", errors="replace").strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
            raise ValueError(f"neither json nor a Python literal: {error}") from error
    if not isinstance(record, dict):
        raise ValueError(f"a {type(record).__name__}, not a record with named fields")
    return record


def records(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a file with one a line; empty lines are passed over."""
    with open_bytes(path) as stream:
        for number, line in enumerate(stream, 1):
            try:
                record = _parse_record(line) if line.strip() else None
            except ValueError as error:
                raise LKGError(f"Line {number} of {path} is {error}. Make or copy the file again.") from error
            if record is not None:
                yield record


def field_batches(path: Path, fields: Mapping[str, str]) -> Iterator[pd.DataFrame]:
    """Some fields (column -> field) of the records of a file, `BATCH_ROWS` at a time; None where one is absent."""
    rows = ([record.get(name) for name in fields.values()] for record in records(path))
    while batch := list(islice(rows, BATCH_ROWS)):
        yield pd.DataFrame(batch, columns=list(fields))
