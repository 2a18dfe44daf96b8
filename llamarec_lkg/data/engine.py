"""The engine that reads and counts tables: DuckDB, which takes files of any size and spills to disk what does not fit
into memory."""

from __future__ import annotations

import atexit
import codecs
import contextlib
import csv
import glob
import gzip
import io
import itertools
import json
import logging
import os
import platform
import re
import shutil
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from itertools import takewhile
from pathlib import Path
from typing import BinaryIO

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm.auto import tqdm

from ..utils.errors import LKGError
from ..utils.files import cache_dir
from .values import NOT_UTF_8, of_windows


logger = logging.getLogger(__name__)

Connection = duckdb.DuckDBPyConnection
Relation = duckdb.DuckDBPyRelation  # rows that have not been read yet
BATCH_ROWS = 1 << 17
_TAB = "\t"
_SEPARATORS = (",", _TAB, ";")
_ESCAPED = re.compile(rb'\\"[^",;\t\r\n]')  # a backslash before a quotation mark that does not end its cell
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def connect() -> Connection:
    """An empty database in memory. What `LLAMAREC_LKG_MEMORY` (such as "4GB"; by default four fifths of the machine)
    does not hold is spilled into a folder in the cache that nobody else may read, until the process ends."""
    connection = duckdb.connect(config={"temp_directory": str(_room())})
    connection.execute("SET TimeZone = 'UTC'")
    connection.execute("SET enable_progress_bar = false")
    connection.execute("SET pandas_analyze_sample = 0")  # look at every cell of a frame's columns of objects
    if limit := os.environ.get("LLAMAREC_LKG_MEMORY"):
        try:
            connection.execute(f"SET memory_limit = {literal(limit)}")
        except duckdb.Error as error:
            raise LKGError(f"LLAMAREC_LKG_MEMORY={limit!r} is no size. Set it to one such as '4GB'.") from error
    return connection


@cache
def _room() -> Path:
    """A folder of this process for what is not kept."""
    try:
        cache_dir().mkdir(parents=True, exist_ok=True)
        _sweep(cache_dir())
        room = Path(tempfile.mkdtemp(dir=cache_dir(), prefix=f"spill-{platform.node()}-{os.getpid()}-"))
    except OSError:  # a cache that cannot be written
        room = Path(tempfile.mkdtemp(prefix="spill-"))
    atexit.register(shutil.rmtree, room, ignore_errors=True)
    return room


def _sweep(cache: Path) -> None:
    """Remove what processes of this machine that were killed have left."""
    for folder in cache.glob(f"spill-{glob.escape(platform.node())}-*"):
        process = folder.name.split("-")[-2]
        if process.isdigit() and not Path("/proc", process).exists() and Path("/proc/self").exists():
            shutil.rmtree(folder, ignore_errors=True)


def pattern(path: Path) -> str:
    """A path as the engine takes it, for which brackets and stars stand for many files."""
    return glob.escape(str(path))


def literal(text: str) -> str:
    """A text as SQL writes it."""
    return "'" + text.replace("'", "''") + "'"


def name(column: str) -> str:
    """A column's name as SQL writes it."""
    return '"' + column.replace('"', '""') + '"'


@contextlib.contextmanager
def reading(place: str | Path) -> Iterator[None]:
    """Inside, an error of the engine becomes an `LKGError` that gives its cause: file, line and what was found; Ctrl-C
    stays what it is."""
    try:
        yield
    except RuntimeError as error:
        if str(error) == "Query interrupted":  # the engine's own word for Ctrl-C
            raise KeyboardInterrupt from error
        raise
    except (duckdb.Error, pa.ArrowInvalid, OSError) as error:
        if isinstance(error, OSError) and (error.errno or type(error) is not OSError):  # not of what a file holds
            raise
        file = re.search(r"^ *file = (.+)$", str(error), re.MULTILINE)
        # a copy in UTF-8 is called as its file, whose folder is that of the place
        where = place if file is None else Path(file[1]).name if _room() in Path(file[1]).parents else file[1]
        raise LKGError(f"{where} cannot be read: {_cause(error)}") from error


def _cause(error: Exception) -> str:
    """What the engine says is wrong, without its advice on settings of its own, and a remedy for that."""
    text = str(error)
    if found := re.search(r'Malformed JSON in file "(.+?)"', text):
        return _bad_json(Path(found[1]))
    lines = (line.strip() for line in text.splitlines() if line.strip())
    told = list(takewhile(lambda line: not line.startswith(("Possible", "file =", "LINE", "See also")), lines))
    if "Failure in decode" in text:
        return f"a column {NOT_UTF_8}"
    remedy = "Mend that place."
    if isinstance(error, duckdb.OutOfMemoryException):
        remedy = "Let LLAMAREC_LKG_MEMORY name more memory, or make room on the disk."
    elif isinstance(error, duckdb.NotImplementedException):
        remedy = "Write it as numbers, dates or text."
    elif re.search("gzip stream|zstd|parquet|thrift", text, re.IGNORECASE):
        remedy = "Is the file whole? Make or copy it again."
    return " ".join(told)[:600].rstrip(".") + ". " + remedy


def _bad_json(path: Path) -> str:
    with open_bytes(path) as stream:  # the engine counts lines otherwise
        for number, line in enumerate(stream, 1):
            try:
                if line.strip():
                    json.dumps(json.loads(line), ensure_ascii=False).encode()  # halves of a character are no text
            except ValueError as error:
                return f"line {number} of {path} is no json ({error}): {line[:80]!r}. Mend or leave out that line."
    return f"{path} is no json. Make or copy it again."


def batches(relation: Relation, place: str | Path) -> Iterator[pa.RecordBatch]:
    """The rows in their order, `BATCH_ROWS` at a time. A bar appears where it takes a while."""
    with reading(place), tqdm(desc=f"read {place}", unit="row", unit_scale=True, delay=2.0, leave=False) as bar:
        for batch in relation.to_arrow_reader(BATCH_ROWS):
            yield batch
            bar.update(batch.num_rows)


def frame(relation: Relation, place: str | Path) -> pd.DataFrame:
    """All rows."""
    with reading(place):
        return relation.to_arrow_table().to_pandas()


def gathered(connection: Connection, parts: Iterable[pa.Table]) -> Relation:
    """Tables of the same columns as one, which need not fit into memory. An `LKGError` says that there is none."""
    table, some = f"gathered_{next(_numbers)}", False
    for part in parts:
        relation = connection.from_arrow(part)
        relation.insert_into(table) if some else relation.create(table)
        some = True
    if not some:
        raise LKGError("The interactions table has no rows. At least one user with three interactions is needed.")
    return connection.table(table)


_numbers = itertools.count()


def parquet_relation(connection: Connection, path: Path) -> Relation:
    """The rows of a parquet file."""
    require_file(path)
    with reading(path):
        require_distinct(pq.read_schema(path).names, path)
        return connection.read_parquet(pattern(path), hive_partitioning=False)


def json_relation(connection: Connection, path: Path, fields: Sequence[str] = ()) -> Relation:
    """The fields of a file with one record of json a line; some of them, as text, where they are named; NULL where one
    is absent."""
    first_record(path)
    how = {"format": "newline_delimited", "hive_partitioning": False}
    with reading(path):
        if fields:
            return connection.read_json(pattern(path), columns=dict.fromkeys(fields, "VARCHAR"), **how)
        # values as they are written: to guess their types would change some
        relation = connection.read_json(pattern(path), sample_size=-1, maximum_depth=1, **how)
        require_distinct(relation.columns, path)
        return relation.project(", ".join(f"{name(column)} ->> '$' AS {name(column)}" for column in relation.columns))


def csv_relation(
    connection: Connection,
    path: Path,
    *,
    names: Sequence[str] | None = None,
    separator: str | None = None,
    quotes: bool = True,
    short_rows: bool = False,
) -> Relation:
    """The rows of a csv file, every cell as the text it is, NULL where it is empty.

    Commas, semicolons and tabs are told apart by the header. A file that is not in UTF-8 is read as UTF-16 where its
    first bytes say so, else as Latin-1, and a warning says that it was. A column without a name, as a table that was
    saved with its index has it, is left out with a word. A header that comes again, as in
    files that were joined, is no row.

    Args:
        names: of the columns, where the file has no header.
        separator: where it is known.
        quotes: whether a quotation mark holds a cell together; else it is a letter like any other.
        short_rows: whether a row may lack its last fields, which are NULL then.

    Raises:
        LKGError: two columns have one name, or header and rows have different numbers of fields.
    """
    path, escaped = in_utf_8(path)
    kept, start = list(names or ()), 0
    if names is None:
        blank, header, row, separator = _beginning(path, separator, quotes)
        kept, start = [column.strip() for column in header], blank + 1
        if row is not None and len(row) != len(header) and not (short_rows and len(row) < len(header)):
            shown = [cell[:40] for cell in row[:20]]
            remedy = "Give each column one name, and put what holds the separator in quotation marks."
            if len(row) < len(header):
                remedy = "Give the row all its fields, and end what a quotation mark begins by another."
            raise LKGError(
                f"The header of {path} has {len(header)} names, its first row {len(row)} fields: {header} above "
                f"{shown}. {remedy}"
            )
        if len(header) == 1 and re.search(r"[,;|\t]", header[0]):
            raise LKGError(
                f"The header of {path} is one name, {header[0]!r}. Put {'tabs' if separator == _TAB else 'commas'} "
                "between names and between cells."
            )
        require_distinct(kept, path)
        if "" in kept:
            logger.warning("%s has a column without a name, such as a table's index; it is left out.", path)
    marks = ('"', "\\" if escaped else '"') if quotes else ("", "")
    columns = ", ".join(f"'c{place}': 'VARCHAR'" for place in range(len(kept)))
    padding = ", null_padding = true, parallel = false" if short_rows else ""
    wanted = ", ".join(f"c{place} AS {name(column)}" for place, column in enumerate(kept) if column)
    with reading(path):
        rows = connection.sql(
            f"SELECT {wanted} FROM read_csv({literal(pattern(path))}, auto_detect = false, header = false, "
            f"skip = {start}, delim = {literal(separator)}, quote = {literal(marks[0])}, "
            f"escape = {literal(marks[1])}, columns = {{{columns}}}{padding})"
        )
    if names is None:
        again = " AND ".join(f"{name(column)} IS NOT DISTINCT FROM {literal(column)}" for column in rows.columns)
        rows = rows.filter(f"NOT ({again})")
    return rows


def require_distinct(columns: Sequence[str], path: Path | str) -> None:
    """Raise `LKGError` where names of columns differ in case alone: they are one name to the engine."""
    lower = [column.lower() for column in columns]
    if twice := sorted({column for column in columns if column and lower.count(column.lower()) > 1}):
        raise LKGError(f"{path} has columns {twice}, which are one name here. Rename or drop all but one.")


def require_file(path: Path) -> None:
    if not path.exists():
        raise LKGError(f"{path} does not exist. Put it there, or pass the folder that holds it.")
    if path.is_dir():
        raise LKGError(f"{path} is a folder; needed is a file. Join what is in it in one file of that name.")


def open_bytes(path: Path) -> BinaryIO:
    """A file's bytes, unpacked where its name ends in `.gz`."""
    require_file(path)
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")


def first_record(path: Path) -> bytes:
    """The first line of a file with one record a line; an `LKGError` where there is none, or no record begins it."""
    with damaged(path), open_bytes(path) as stream:
        first = next((line.strip() for line in stream if line.strip()), b"").removeprefix(codecs.BOM_UTF8)
    if not first:
        raise LKGError(f"{path} is empty. Make or copy it again.")
    if not first.startswith(b"{") or first == b"{":
        raise LKGError(
            f"{path} begins with {first[:40]!r}; needed is a record with named fields on each line, without brackets "
            "around all. Write it so, such as with `table.to_json(path, orient='records', lines=True)`."
        )
    return first


def in_utf_8(path: Path) -> tuple[Path, bool]:
    """The file, or a copy in UTF-8 of one that is not; and whether a backslash escapes quotation marks in it."""
    escaped, encoding, before = False, "utf-8", b""
    decoder = codecs.getincrementaldecoder("utf-8")()
    with damaged(path), open_bytes(path) as stream:
        while block := stream.read(1 << 22):
            if not before and block[:2] in _UTF_16:
                encoding = "utf-16"
                break
            escaped = escaped or bool(_ESCAPED.search(before[-2:] + block))
            before = block
            if encoding == "utf-8":
                try:
                    decoder.decode(block)
                except UnicodeDecodeError:
                    encoding = "latin-1"
    if encoding == "utf-8":
        try:
            decoder.decode(b"", True)
            return path, escaped
        except UnicodeDecodeError:
            encoding = "latin-1"
    stat = path.stat()
    return in_utf_8(_copy_in_utf_8(path, encoding, (stat.st_size, stat.st_mtime_ns)))


@cache
def _copy_in_utf_8(path: Path, encoding: str, stamp: tuple[int, int]) -> Path:
    """A copy, until the process ends, of a file as it is at the time of its stamp."""
    logger.warning("%s is not in UTF-8; it is read as %s.", path, "UTF-16" if encoding == "utf-16" else "Latin-1")
    copy = Path(tempfile.mkdtemp(dir=_room())) / path.name.removesuffix(".gz")
    with open_bytes(path) as stream, copy.open("w", encoding="utf-8", newline="") as out:
        for block in codecs.iterdecode(iter(lambda: stream.read(1 << 22), b""), encoding):
            out.write(of_windows(block) if encoding == "latin-1" else block)
    return copy


@contextlib.contextmanager
def damaged(path: Path) -> Iterator[None]:
    """Inside, an archive that cannot be unpacked becomes an `LKGError`."""
    try:
        yield
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        if "Not a gzipped file" in str(error):
            raise LKGError(f"{path} is not packed. Take the .gz off its name, or copy it again.") from error
        raise LKGError(f"{path} cannot be read: it is damaged or cut off ({error}). Make or copy it again.") from error


def _beginning(path: Path, separator: str | None, quotes: bool) -> tuple[int, list[str], list[str] | None, str]:
    """Blank lines at the start, the fields of the header and of the first row below it, and what separates them."""
    with open_bytes(path) as stream:
        text = stream.read(1 << 16).decode("utf-8-sig", errors="ignore")
    if not text.strip():
        raise LKGError(f"{path} is empty. Make or copy it again.")
    lines = text.replace("\r\n", "\n").split("\n")
    blank = next(number for number, line in enumerate(lines) if line.strip())
    if separator is None:
        separator = max(_SEPARATORS, key=lambda one: lines[blank].count(one))
    how = {"delimiter": separator, "quoting": csv.QUOTE_MINIMAL if quotes else csv.QUOTE_NONE}
    if _ESCAPED.search(text.encode()):
        how |= {"escapechar": "\\"}
    rows = csv.reader(io.StringIO("\n".join(lines[blank:]), newline=""), skipinitialspace=True, **how)
    found = [row for _, row in zip(range(3), rows, strict=False)]
    whole = len(found) > 2 or len(text.encode()) < 1 << 16  # the last row may be cut
    return blank, found[0], (found[1] if len(found) > 1 and found[1] and whole else None), separator
