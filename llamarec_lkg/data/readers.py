"""Files as tables, and files that are no tables: a record or a line at a time."""

from __future__ import annotations

import ast
import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
from tqdm.auto import tqdm

from ..utils.errors import LKGError
from .engine import (
    BATCH_ROWS,
    Connection,
    Relation,
    connect,
    csv_relation,
    damaged,
    first_record,
    frame,
    gathered,
    json_relation,
    open_bytes,
    parquet_relation,
    require_file,
)
from .values import text_of


TABLES = r"\.(parquet|(csv|tsv|jsonl)(\.gz)?)"  # endings of the names of tables


def table_relation(connection: Connection, path: Path) -> Relation:
    """The rows of a parquet, csv, tsv or jsonl file."""
    if path.suffix == ".parquet":
        return parquet_relation(connection, path)
    if ".jsonl" in path.suffixes:
        return json_relation(connection, path)
    return csv_relation(connection, path, **_dialect(path))


def _dialect(path: Path) -> dict[str, str]:
    return {"separator": "\t"} if re.search(r"\.tsv\b", path.name) else {}


def read_table(path: Path, **options: Any) -> pd.DataFrame:
    """A parquet, csv, tsv or jsonl file as a frame, cells of text files as the text they are; `options` are those of
    `engine.csv_relation`."""
    if path.suffix == ".parquet":
        if not path.is_dir():  # of parts
            require_file(path)
        try:
            return pd.read_parquet(path)  # the engine has one name for columns that differ in case
        except (OSError, ValueError) as error:
            raise LKGError(f"{path} cannot be read: {error}. Is the file whole? Make or copy it again.") from error
    connection = connect()
    return frame(csv_relation(connection, path, **options) if options else table_relation(connection, path), path)


def read_lines(path: Path) -> list[str]:
    """The lines, but for empty ones, of a small text file in UTF-8 or, as older MovieLens files are, in Latin-1."""
    with damaged(path), open_bytes(path) as stream:
        content = stream.read()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = content.decode("latin-1")
    # not `splitlines`, for which some Latin-1 letters end a line
    return [line.rstrip("\r") for line in text.split("\n") if line.strip()]


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
    first_record(path)
    with (
        damaged(path),
        open_bytes(path) as stream,
        tqdm(desc=f"read {path.name}", unit="record", unit_scale=True, delay=2.0, leave=False) as bar,
    ):
        for number, line in enumerate(stream, 1):
            try:
                record = _parse_record(line) if line.strip() else None
            except ValueError as error:
                raise LKGError(f"Line {number} of {path} is {error}. Mend or leave out that line.") from error
            if record is not None:
                bar.update()
                yield record


def record_relation(connection: Connection, path: Path, fields: dict[str, str]) -> Relation:
    """Some fields (column -> field), as text, of the records of a file with one a line; NULL where one is absent."""
    first = next(records(path))
    if missing := [field for field in fields.values() if field not in first]:
        raise LKGError(
            f"The records of {path} have fields {sorted(first)} but lack {missing}. Rename the fields, or take the "
            "file of another release."
        )
    try:
        json.loads(first_record(path))
    except ValueError:  # dictionaries as Python writes them
        schema = pa.schema([(column, pa.string()) for column in fields])
        rows = ({column: text_of(record.get(field)) for column, field in fields.items()} for record in records(path))
        parts = iter(lambda: list(itertools.islice(rows, BATCH_ROWS)), [])
        return gathered(connection, (pa.Table.from_pylist(part, schema=schema) for part in parts))
    relation = json_relation(connection, path, list(fields.values()))
    return relation.project(", ".join(f'"{field}" AS {column}' for column, field in fields.items()))
