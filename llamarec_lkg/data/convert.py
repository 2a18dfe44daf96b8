"""One entry to every format of recommendation data."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from ..utils.errors import LKGError
from .formats import amazon, community, movielens, recbole, tables
from .raw_dataset import Format, RawDataset, folder_of
from .schema import DatasetBundle


# the first whose files are all there is taken
FORMATS: dict[str, Format] = {
    format.name: format for file in (movielens, recbole, tables, amazon, community) for format in file.FORMATS
}


def describe_formats(formats: Iterable[Format] | None = None) -> str:
    """Some formats, or all, and their files, one a line."""
    return "\n".join(f"  {format.name} ({format.reads})" for format in formats or FORMATS.values())


def convert(path: str | Path, format: str | None = None) -> DatasetBundle:
    """Read a raw data set into memory; an `LKGError` says that no format fits, or what is damaged or missing.

    Args:
        path: a folder of raw files, or one of them.
        format (`str`, optional): a name of `FORMATS`. By default the file names tell.
    """
    return open_raw(path, format).to_bundle()


def open_raw(path: str | Path, format: str | None = None) -> RawDataset:
    """Find a raw data set and its format by its file names; the arguments are those of `convert`."""
    path = Path(path)
    if format is not None and format not in FORMATS:
        raise LKGError(f"format={format!r} was given. The formats are:\n{describe_formats()}")
    if not path.exists():
        raise LKGError(f"{path} does not exist. Pass a folder of raw files, or one of them.")
    format = format or _recognise(path)
    if format is None:
        names = sorted(entry.name for entry in folder_of(path).iterdir())
        if path.is_file() and (known := _recognise(path.parent)):
            raise LKGError(f"{path} is no file of interactions; its folder is {known!r}. Pass the folder.")
        halves = [one for one in FORMATS.values() if path.is_dir() and _files_of(one, names)]
        raise LKGError(
            f"{path} is in no known format; its folder holds {names[:12]}. Needed is"
            f"{' what is missing of' if halves else ' one of'}:\n{describe_formats(halves)}"
        )
    return FORMATS[format].opens(path)


def _recognise(path: Path) -> str | None:
    files = [path.name] if path.is_file() else [entry.name for entry in path.iterdir()]
    for name, format in FORMATS.items():
        signs = format.signs[:1] if path.is_file() else format.signs
        if all(any(re.fullmatch(sign, file) for file in files) for sign in signs):
            return name
    return None


def _files_of(format: Format, names: Iterable[str]) -> list[str]:
    return [name for name in names if any(re.fullmatch(sign, name) for sign in format.signs)]
