"""The input of a batch ranking: parquet, whose rows are read by their numbers, in pieces."""

from __future__ import annotations

import logging
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.types as kinds

from ..utils.errors import LKGError
from ..utils.fingerprints import fingerprint, hash_file


USER, HISTORY, CANDIDATES = "user", "history", "candidates"
READ_ROWS = 4096
READ_BUFFER = 1 << 20  # bytes of a column that are read at once, however long its row groups are

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class InputRows:
    """The rows of one parquet file, or of all that a folder holds, in the order of their paths.

    Args:
        files: their paths.
        starts: the number, counted from 0 through all files, of the first row of each row group; last how many rows
            there are.
        groups: (place of its file, place in the file) of each row group.
        user_type: of the column `user`: text or whole numbers.
        has_candidates: whether some file has the column `candidates`.
        stamps: size and time of the last change of each file, before it was looked at.
    """

    files: tuple[Path, ...]
    starts: tuple[int, ...]
    groups: tuple[tuple[int, int], ...]
    user_type: pa.DataType
    has_candidates: bool
    stamps: tuple[tuple[int, int], ...]

    @classmethod
    def from_path(cls, path: str | Path) -> InputRows:
        """Look at footers; no row is read.

        Raises:
            LKGError: there is no parquet file, or one without the columns `user` and `history`, or with others in
                their place.
        """
        files = _parquet_files(Path(path))
        stamps = tuple(map(_stamp, files))
        starts, groups, user_types, with_candidates, ignored = [0], [], {}, False, set()
        for place, file in enumerate(files):
            with _opened(file) as parquet:
                schema, about = parquet.schema_arrow, parquet.metadata
                _check_columns(file, schema)
                if not kinds.is_null(kind := _plain(schema.field(USER).type)):
                    user_types.setdefault(kind, file)
                with_candidates |= CANDIDATES in schema.names
                ignored |= {*schema.names} - {USER, HISTORY, CANDIDATES}
                for group in range(about.num_row_groups):
                    if rows := about.row_group(group).num_rows:
                        starts.append(starts[-1] + rows)
                        groups.append((place, group))
        if len(user_types) > 1:
            found = ", ".join(f"{kind} in {file.name}" for kind, file in user_types.items())
            raise LKGError(f"The column 'user' has several types: {found}. It needs one: cast it alike in all files.")
        if ignored:
            logger.warning(f"Columns of {path} that nothing is done with: {sorted(ignored)}.")
        return cls(files, tuple(starts), tuple(groups), next(iter(user_types), pa.null()), with_candidates, stamps)

    def __len__(self) -> int:
        return self.starts[-1]

    def require_unchanged(self, *places: int) -> None:
        """Raise `LKGError` where files, all unless some are named, are not what they were when they were found."""
        for place in places or range(len(self.files)):
            if _stamp(self.files[place]) != self.stamps[place]:
                raise LKGError(
                    f"{self.files[place]} was changed while it was ranked. What stands in the output is of the file "
                    "before: give a new output folder, and leave the input as it is."
                )

    def identity(self) -> dict[str, Any]:
        """What tells this input from another: a hash of the content of all files, which is read for it once."""
        return {"rows": len(self), "content": fingerprint([hash_file(file) for file in self.files])}


def _stamp(file: Path) -> tuple[int, int]:
    """Size and time of the last change; of a file that is gone, none."""
    try:
        found = file.stat()
    except OSError:
        return 0, 0
    return found.st_size, found.st_mtime_ns


def _parquet_files(path: Path) -> tuple[Path, ...]:
    if path.is_file():
        return (path,)
    if not path.exists():
        raise LKGError(f"{path} does not exist. Give a parquet file, or a folder of them.")

    def is_meant(name: str) -> bool:
        return name.endswith(".parquet") and not name.startswith(("_", "."))

    names = sorted(file.relative_to(path).as_posix() for file in path.rglob("*.parquet"))
    files = [path / name for name in names if is_meant(name) and "/_" not in name and "/." not in name]
    files = [file for file in files if file.is_file()]  # Spark calls folders so
    if not files:
        found = sorted(entry.name for entry in path.iterdir())[:5]
        csv = next((_of_csv(path / name) for name in found if name.endswith(".csv")), "")
        remedy = csv or "Write the rows to rank as parquet."
        raise LKGError(f"The folder {path} holds no parquet file (found: {found}). {remedy}")
    return tuple(files)


@contextmanager
def _opened(file: Path) -> Iterator[pq.ParquetFile]:
    try:
        with pq.ParquetFile(file, buffer_size=READ_BUFFER, pre_buffer=False) as parquet:
            yield parquet
    except (pa.ArrowInvalid, OSError) as error:
        remedy = _of_csv(file) if file.suffix == ".csv" else "Make or copy it again."
        raise LKGError(f"{file} cannot be read as parquet: {error}. {remedy}") from error


def _of_csv(file: Path) -> str:
    """How to make parquet of it."""
    return (
        "Of csv with histories such as 50 181 172, pandas makes parquet: "
        f"pd.read_csv({str(file)!r}, dtype=str, keep_default_na=False)"
        f".assign(history=lambda rows: rows.history.str.split()).to_parquet({str(file.with_suffix('.parquet'))!r})"
    )


def _check_columns(file: Path, schema: pa.Schema) -> None:
    needed = "a column 'user', a column 'history' of lists of item ids, and may have one of lists, 'candidates'"
    if missing := [name for name in (USER, HISTORY) if name not in schema.names]:
        raise LKGError(f"{file} has the columns {schema.names} but lacks {missing}. It needs {needed}: rename them.")
    for name in (USER, HISTORY, CANDIDATES):
        if name not in schema.names:
            continue
        if schema.names.count(name) > 1:
            raise LKGError(f"{file} has several columns {name!r}. Drop or rename all but one.")
        kind = schema.field(name).type
        is_list = any(fits(kind) for fits in (kinds.is_list, kinds.is_large_list, kinds.is_fixed_size_list))
        if is_list != (name != USER) and not kinds.is_null(kind):  # which a column of no value at all may be
            raise LKGError(f"The column {name!r} of {file} is {kind}. The file needs {needed}.")
        ids = _plain(kind.value_type if is_list else kind)
        if not any(fits(ids) for fits in (kinds.is_integer, kinds.is_string, kinds.is_null)):
            raise LKGError(
                f"The column {name!r} of {file} is {kind}. Ids are text or whole numbers, as in the data that the "
                "model was trained on: cast the column."
            )


def _plain(kind: pa.DataType) -> pa.DataType:
    """The type of ids, however a writer has laid them out."""
    kind = kind.value_type if kinds.is_dictionary(kind) else kind
    if kinds.is_large_string(kind) or kinds.is_string_view(kind):
        return pa.string()
    return pa.int64() if kinds.is_integer(kind) and kind != pa.uint64() else kind


class RowReader:
    """Reads slices of rows, best in their order: between two of them whole row groups are passed over, and the rows of
    one row group are read once, `READ_ROWS` at a time."""

    def __init__(self, rows: InputRows):
        self.rows = rows
        self._position, self._ahead, self._batches = 0, None, iter(())  # the row that comes next, and where it is
        self._is_open = False

    def read(self, start: int, stop: int) -> pa.Table:
        """Rows `start` to before `stop`, with the columns user, history and candidates."""
        same_group = self._group(start) == self._group(self._position)
        if not self._is_open or start < self._position or not same_group:
            self.close()
            self._position, self._ahead, self._is_open = self.rows.starts[self._group(start)], None, True
            self._batches = self._read_from(self._group(start))
        pieces = []
        while self._position < stop:
            if self._ahead is None:
                self._ahead = next(self._batches, None)
                if self._ahead is None:
                    raise LKGError("The input has fewer rows than it said. Leave it as it is while it is ranked.")
            skipped = min(max(start - self._position, 0), len(self._ahead))
            taken = min(stop - self._position, len(self._ahead))
            if taken > skipped:  # an empty piece would keep its whole batch in memory
                pieces.append(self._ahead.slice(skipped, taken - skipped))
            self._position += taken
            self._ahead = self._ahead.slice(taken) if taken < len(self._ahead) else None
        return _as_input(pieces, self.rows.user_type)

    def close(self) -> None:
        if hasattr(self._batches, "close"):
            self._batches.close()

    def _group(self, row: int) -> int:
        return max(0, min(bisect_right(self.rows.starts, row), len(self.rows.groups)) - 1)

    def _read_from(self, first: int) -> Iterator[pa.RecordBatch]:
        """Batches from a row group on."""
        groups = self.rows.groups[first:]
        for place in dict.fromkeys(place for place, _ in groups):
            self.rows.require_unchanged(place)
            with _opened(self.rows.files[place]) as parquet:
                columns = [name for name in (USER, HISTORY, CANDIDATES) if name in parquet.schema_arrow.names]
                for group in (group for other, group in groups if other == place):
                    yield from parquet.iter_batches(READ_ROWS, row_groups=[group], columns=columns)


def _as_input(pieces: Sequence[pa.RecordBatch], user_type: pa.DataType) -> pa.Table:
    """One table; files may differ in the integers and texts of their lists, and in having candidates."""
    ids = pa.list_(pa.string())
    types = {USER: user_type, HISTORY: ids, CANDIDATES: ids}
    columns = {name: [] for name in types}
    for piece in pieces:
        for name, kind in types.items():
            given = piece.column(name) if name in piece.schema.names else pa.nulls(len(piece))
            columns[name].append(given if given.type == kind else given.cast(kind))
    return pa.table({name: pa.chunked_array(chunks, types[name]) for name, chunks in columns.items()})
