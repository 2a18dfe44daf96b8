"""The output of a batch ranking: shards that are whole or absent, and what they were begun with.

```text
ranked/
  part-000000.parquet, ...   the ranked lists of a fixed slice of the input's rows
  _refused/part-000000.parquet, ...   the rows of the same slices that could not be ranked, and why
  _done/part-000000.json, ...   counts, and hashes of those files: a slice is done when this is there
  _manifest.json             input, model and settings that the folder was begun with
  _summary.json              counts; it comes last, so where it is, everything is there
```

What begins with an underscore is passed over by pandas, pyarrow and Spark when they read the folder as one table.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout

from ..utils.errors import LKGError
from ..utils.files import atomic_file, read_json, write_json
from ..utils.fingerprints import hash_file


MANIFEST, SUMMARY, REFUSED, DONE, LOCK = "_manifest.json", "_summary.json", "_refused", "_done", "_lock"
NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)  # what a file system says that has none

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class BatchReport:
    """What came of the rows. Every row of the input is one of the ranked or one of the refused.

    Args:
        rows (`int`): of the input.
        ranked (`int`): rows with a ranked list.
        refused (`int`): rows that could not be ranked; they and their reasons are in `_refused`.
        items (`int`): rows of the output.
        left_out (`int`): unknown ids that were left out of histories and candidates, where that was asked for.
        first_reason (`str`): why the first refused row was refused; empty where none was.
    """

    rows: int = 0
    ranked: int = 0
    refused: int = 0
    items: int = 0
    left_out: int = 0
    first_reason: str = ""

    def __str__(self) -> str:
        told = [f"{self.ranked:,} of {self.rows:,} rows ranked, {self.items:,} items."]
        if self.left_out:
            told.append(f"{self.left_out:,} unknown item id(s) left out.")
        if self.refused:
            told.append(f"{self.refused:,} row(s) refused, see {REFUSED}; the first: {self.first_reason}")
        return " ".join(told)

    def __add__(self, other: BatchReport) -> BatchReport:
        summed = {
            field.name: getattr(self, field.name) + getattr(other, field.name)
            for field in fields(self)
            if field.name != "first_reason"
        }
        return BatchReport(**summed, first_reason=self.first_reason or other.first_reason)


@dataclass(frozen=True)
class RankedRows:
    """A slice of the input, ranked: the tables of its two files and what stands in them."""

    ranked: pa.Table
    refused: pa.Table
    report: BatchReport


class Shards:
    """The output folder of `rows` input rows, `shard_rows` in each shard."""

    def __init__(self, folder: str | Path, rows: int, shard_rows: int):
        self.folder, self.rows, self.shard_rows = Path(folder), rows, shard_rows
        self.count = max(1, -(-rows // shard_rows))  # an empty input gives an empty table

    def bounds(self, number: int) -> tuple[int, int]:
        """The slice of the input that a shard covers."""
        return number * self.shard_rows, min(self.rows, (number + 1) * self.shard_rows)

    def path(self, number: int) -> Path:
        """In the order of names shards are in the order of rows, however many there are."""
        return self.folder / f"part-{number:0{max(6, len(str(self.count - 1)))}d}.parquet"

    def _refused(self, number: int) -> Path:
        return self.folder / REFUSED / self.path(number).name

    def _record(self, number: int) -> Path:
        return self.folder / DONE / f"{self.path(number).stem}.json"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Nobody else writes to the folder within the block; the lock of a killed process is gone with it. Where the
        file system has no locks, that is said.

        Raises:
            LKGError: another process has the lock, or the folder cannot be written to.
        """
        lock = FileLock(self.folder / LOCK)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
        except Timeout as error:
            raise LKGError(f"Another process is ranking into {self.folder}. Wait for it, or end it.") from error
        except (OSError, NotImplementedError) as error:
            if isinstance(error, OSError) and error.errno not in NO_LOCKS:
                raise LKGError(
                    f"Nothing can be written into {self.folder} ({error}). Make room there or see to the rights, or "
                    "give a folder elsewhere."
                ) from error
            logger.warning(
                f"The file system of {self.folder} has no locks ({error}), so nothing keeps a second process from "
                "ranking into it. See to it that there is none."
            )
        try:
            yield
        finally:
            lock.release()

    def begin(self, about: Mapping[str, Mapping[str, Any]]) -> None:
        """Take an empty folder, or one that was begun with the same input, model and settings; what a killed process
        left half-written goes.

        Raises:
            LKGError: the folder was begun with others, or holds something else.
        """
        shards = [f"{folder}.part-*.part" for folder in ("", f"{REFUSED}/", f"{DONE}/")]
        for pattern in (*shards, f".{MANIFEST}.*.part", f".{SUMMARY}.*.part"):
            for path in self.folder.glob(pattern):
                path.unlink(missing_ok=True)
        manifest = self.folder / MANIFEST
        if manifest.exists():
            _require_same(self.folder, read_json(manifest), about)
            (self.folder / SUMMARY).unlink(missing_ok=True)  # it says that everything is there
            return
        there = sorted(path.name for path in self.folder.iterdir() if path.name != LOCK)
        if there:
            raise LKGError(
                f"{self.folder} is not empty ({', '.join(there[:3])}) and has no {MANIFEST}. Give a new folder."
            )
        write_json(manifest, dict(about))

    def done(self) -> dict[int, BatchReport]:
        """What stands in each shard that is done. One that is not, byte for byte, what was written is done no more."""
        found = {}
        for number in range(self.count):
            if not (record := self._record(number)).exists():
                continue
            try:
                told = read_json(record)
                if told["hashes"] != self._hashes(number):
                    raise ValueError("it is not what was written")
                found[number] = BatchReport(**told["counts"])
            except (LKGError, OSError, KeyError, TypeError, ValueError) as error:
                logger.warning(f"{self.path(number)} is damaged or gone ({error}), and its rows are ranked again.")
                record.unlink()
        return found

    def _hashes(self, number: int) -> list[str | None]:
        """Of a shard and of its refused rows, where there are some."""
        return [hash_file(path) if path.exists() else None for path in (self.path(number), self._refused(number))]

    def wait_for(self, numbers: Iterable[int], seconds: float) -> None:
        """Until all of these shards are done, looking every so many seconds."""
        left = list(numbers)
        while left := [number for number in left if not self._record(number).exists()]:
            time.sleep(seconds)

    def write(self, number: int, content: RankedRows) -> None:
        """The shard of a slice. Its refused rows are there before it and its record comes last."""
        if len(content.refused):
            _write_table(content.refused, self._refused(number))
        else:
            self._refused(number).unlink(missing_ok=True)
        _write_table(content.ranked, self.path(number))
        write_json(self._record(number), {"hashes": self._hashes(number), "counts": asdict(content.report)})

    def finish(self, reports: Mapping[int, BatchReport]) -> BatchReport:
        """The sum of all shards' counts, written down."""
        report = sum((reports[number] for number in sorted(reports)), BatchReport())
        write_json(self.folder / SUMMARY, asdict(report))
        return report


def _write_table(table: pa.Table, path: Path) -> None:
    with atomic_file(path) as temporary:
        with open(temporary, "wb") as stream:
            pq.write_table(table, stream)
            stream.flush()
            os.fsync(stream.fileno())  # else a machine that loses power may keep the name without the content
    with suppress(OSError, AttributeError):  # and a later name without this one; not every system can
        folder = os.open(path.parent, os.O_DIRECTORY)
        os.fsync(folder)
        os.close(folder)


def require_alike(abouts: Sequence[Mapping[str, Mapping[str, Any]]]) -> None:
    """Raise `LKGError` unless input, model and settings of all machines are those of the first."""
    for about in abouts[1:]:
        if differing := _differing(abouts[0], about, "on the main machine", "on another"):
            raise LKGError(
                f"Machines rank different things ({differing}). Copy the input and the folder of the model to all of "
                "them, or give a Hub id, and start the same command on each."
            )


def _require_same(folder: Path, begun: Any, about: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise `LKGError` unless what a folder was begun with is what is asked for."""
    if differing := _differing(begun, json.loads(json.dumps(about)), "then", "now"):
        raise LKGError(
            f"{folder} was begun with something else ({differing}). Go on with the same input, model and settings, or "
            "give a new folder."
        )


def _differing(one: Any, other: Mapping[str, Mapping[str, Any]], when_one: str, when_other: str) -> str:
    """What differs between two inputs, models and settings; empty where nothing does."""
    found = []
    for part, second in other.items():
        first = {}
        with suppress(KeyError, TypeError):
            first = dict(one[part])
        names = sorted(name for name in {*first, *second} if first.get(name) != second.get(name))
        found += [
            f"{part} {name}: {first.get(name)!r} {when_one}, {second.get(name)!r} {when_other}" for name in names
        ]
    return "; ".join(found)
