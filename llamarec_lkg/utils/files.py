"""Files that are either whole or absent: written under a temporary name, then renamed."""

from __future__ import annotations

import contextlib
import json
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from huggingface_hub.constants import HF_HOME
from safetensors import SafetensorError

from .errors import LKGError


def cache_dir() -> Path:
    """`$LLAMAREC_LKG_CACHE`, else `llamarec_lkg` in the Hugging Face home."""
    return Path(os.environ.get("LLAMAREC_LKG_CACHE") or Path(HF_HOME) / "llamarec_lkg")


def file_name(name: str) -> str:
    """The name of a data set as that of a file: "owner/name" is no folder in another."""
    return re.sub(r"[^\w.-]+", "--", name)


@contextlib.contextmanager
def atomic_folder(target: str | Path) -> Iterator[Path]:
    """A new folder to write into; it takes its name `target` only when the block ends without an error.

    An existing `target` is moved aside just before, so a reader sees the old folder, none, or the new one.
    """
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as temporary:
        new = Path(temporary, "new")
        new.mkdir()
        with _told(target):
            yield new
        _readable(new)
        there = [(target, Path(temporary, "old"))] if target.exists() else []
        _move_all([*there, (new, target)])


@contextlib.contextmanager
def atomic_files(folder: str | Path, key: str = "", replaces: Sequence[str] = ()) -> Iterator[Path]:
    """A new folder to write into; when the block ends without an error, its files move to the same paths in `folder`.

    Other files of `folder` stay. An error, in the block or after it, leaves everything as it was.

    Args:
        key: the file without which nobody reads the others; by default the json files. It goes first and comes last:
            a process that is killed in between leaves a folder that is refused, not a mixture.
        replaces: glob patterns of files that an earlier version may have left, and that go.
    """

    def rank(path: Path) -> tuple[bool, bool, str]:
        return path.as_posix() == key, path.suffix == ".json", path.as_posix()

    folder = Path(folder)
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(prefix=".writing.", dir=folder) as temporary:
            new, old = Path(temporary, "new"), Path(temporary, "old")
            new.mkdir()
            with _told(folder):
                yield new
            _readable(new)
            coming = sorted((path.relative_to(new) for path in new.rglob("*") if path.is_file()), key=rank)
            stale = {path.relative_to(folder) for pattern in replaces for path in folder.glob(pattern)}
            going = sorted(stale.union(path for path in coming if (folder / path).exists()), key=rank, reverse=True)
            moves = [(folder / path, old / path) for path in going] + [(new / path, folder / path) for path in coming]
            try:
                _move_all(moves)
            finally:
                for name in {path.parent for path in (*going, *coming)} - {Path()}:
                    with contextlib.suppress(OSError):  # it is not empty
                        (folder / name).rmdir()
    except BaseException:
        if is_new:
            with contextlib.suppress(OSError):  # something else is in it by now
                folder.rmdir()
        raise


@contextlib.contextmanager
def _told(target: Path) -> Iterator[None]:
    """Inside, a disk that is full is an error of the library from all who write."""
    try:
        yield
    except SafetensorError as error:
        raise LKGError(f"{target} could not be written ({error}). Make room, or give a folder elsewhere.") from error


def _readable(folder: Path) -> None:
    """Weights for whoever may read what is beside them: safetensors writes them for their owner alone."""
    for path in folder.rglob("*.safetensors"):
        path.chmod(folder.stat().st_mode & 0o666)


def _move_all(moves: Sequence[tuple[Path, Path]]) -> None:
    """Rename in this order; an error takes back what was done. No target may exist."""
    try:
        for source, target in moves:
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(source, target)
    except BaseException:
        for source, target in reversed(moves):
            if target.exists() and not source.exists():
                os.replace(target, source)
        raise


@contextlib.contextmanager
def atomic_file(target: str | Path) -> Iterator[Path]:
    """A path to write to; it becomes `target` only when the block ends without an error."""
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        yield temporary
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: str | Path, content: Any) -> None:
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


@contextlib.contextmanager
def whole(name: str) -> Iterator[None]:
    """Inside, where `name` is a folder of this machine, whatever goes wrong in reading it is an `LKGError`: libraries
    have an error of their own for each way in which a file can be damaged."""
    try:
        yield
    except (LKGError, MemoryError, ImportError, PermissionError):  # these say themselves what is wrong
        raise
    except Exception as error:
        beside = "out of memory" in str(error).lower() or "unexpected keyword argument" in str(error)
        if not Path(name).is_dir() or beside:
            raise
        raise LKGError(
            f"{name} cannot be loaded: {str(error)[:300]}. A file is absent, damaged, or of something else. Save or "
            "download it again."
        ) from error


def read_json(path: str | Path) -> Any:
    """The content of a json file; an `LKGError` where it is absent or damaged."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise LKGError(f"{path} does not exist. It is written together with its folder; save that again.") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise LKGError(f"{path} is not readable json ({error}). Delete its folder and make it again.") from error


def read_saved_table(path: str | Path) -> pd.DataFrame:
    """A parquet file that was saved here; a `ValueError` where it is damaged, whatever pyarrow raises."""
    try:
        return pd.read_parquet(path)
    except OSError as error:
        if error.errno:  # of the system
            raise
        raise ValueError(str(error)) from error
