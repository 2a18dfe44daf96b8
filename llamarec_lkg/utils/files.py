"""Files that are either whole or absent: writing under a temporary name and renaming, and names made of their
content."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub.constants import HF_HOME

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

    An existing `target` is moved aside just before, so a reader sees the old folder, none, or the new one, never a
    part of one.
    """
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield temporary
        temporary.chmod(0o755)  # mkdtemp makes folders private; a cache is shared like its neighbours
        if target.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{target.name}.old.", dir=target.parent))
            os.replace(target, old / target.name)
            os.replace(temporary, target)
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.replace(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def atomic_files(folder: str | Path) -> Iterator[Path]:
    """A new folder to write into; when the block ends without an error its files move into `folder`, json files last.

    Other files of `folder` stay as they are. An interrupted block leaves `folder` as it was.
    """
    folder = Path(folder)
    if not folder.exists():
        with atomic_folder(folder) as temporary:
            yield temporary
        return
    with tempfile.TemporaryDirectory(prefix=".writing.", dir=folder) as temporary:
        yield Path(temporary)
        for path in sorted(Path(temporary).iterdir(), key=lambda path: (path.suffix == ".json", path.name)):
            os.replace(path, folder / path.name)


@contextlib.contextmanager
def exchanged(folder: str | Path, key: str, replaces: Sequence[str] = ()) -> Iterator[Path]:
    """A new folder to write into; when the block ends without an error, what is in it takes its place in `folder`.

    Files of the same paths are replaced, those that `replaces` matches go, all others stay, also in folders that both
    have. An error, in the block or after it, leaves everything as it was. Until the block ends the disk holds the old
    and the new.

    Args:
        key: the file without which nobody reads the others. It goes first and comes last: whoever is killed in between
            leaves a folder that is refused, and not a mixture.
        replaces: patterns of files that an earlier version may have left; "/" parts their folders.
    """
    folder = Path(folder)
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(prefix=".writing.", dir=folder) as temporary:
            new, old = Path(temporary, "new"), Path(temporary, "old")
            new.mkdir()
            old.mkdir()
            yield new
            names = [path.relative_to(new).as_posix() for path in new.rglob("*") if not path.is_dir()]
            coming = sorted(names, key=lambda name: (name == key, name))
            stale = {path.relative_to(folder).as_posix() for each in replaces for path in _matching(folder, each)}
            there = {name for name in coming if os.path.lexists(folder / name)}
            going = sorted(there | stale, key=lambda name: (name != key, name))
            moves = [(folder / name, old / name) for name in going] + [(new / name, folder / name) for name in coming]
            try:
                _move_all(moves)
            finally:
                for name in {*going, *coming}:
                    _remove_empty(folder, Path(name).parent)
    except BaseException:
        if is_new:
            with contextlib.suppress(OSError):  # something else is in it by now
                folder.rmdir()
        raise


def _matching(folder: Path, pattern: str) -> Iterator[Path]:
    """What of a folder a pattern matches, links that lead nowhere included. (`Path.glob` passes over those.)"""
    first, _, rest = pattern.partition("/")
    for path in sorted(folder.iterdir()):
        if path.match(first):
            if not rest:
                yield path
            elif path.is_dir():
                yield from _matching(path, rest)


def _remove_empty(folder: Path, inner: Path) -> None:
    """Remove the folders from `folder / inner` up to, and without, `folder`, so far as nothing is in them."""
    with contextlib.suppress(OSError):  # something is in it, or it is gone
        while inner.name:
            (folder / inner).rmdir()
            inner = inner.parent


def _move_all(moves: Sequence[tuple[Path, Path]]) -> None:
    """Rename in this order; an error takes back what was done. No target may exist."""
    try:
        for source, target in moves:
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(source, target)
    except BaseException:
        for source, target in reversed(moves):
            if os.path.lexists(target) and not os.path.lexists(source):
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


def read_json(path: str | Path) -> Any:
    """The content of a json file.

    Raises:
        LKGError: the file is absent or is not json.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise LKGError(f"{path} does not exist. It is written together with its folder; save that again.") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise LKGError(f"{path} is not readable json ({error}). Delete its folder and make it again.") from error
