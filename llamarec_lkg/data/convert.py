"""One entry to every format of recommendation data."""

from __future__ import annotations

import re
from pathlib import Path

from ..utils.errors import LKGError
from .formats import amazon, movielens, recbole, tables
from .raw_dataset import Format, RawDataset, folder_of
from .schema import DatasetBundle


# the first whose files are all there is taken
FORMATS: dict[str, Format] = {
    format.name: format for file in (movielens, recbole, tables, amazon) for format in file.FORMATS
}


def describe_formats() -> str:
    """The formats and their files, one a line."""
    return "\n".join(f"  {name} ({format.reads})" for name, format in FORMATS.items())


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
        raise LKGError(
            f"{path} is in no known format; its folder holds {names[:12]}. Needed is one of:\n{describe_formats()}"
        )
    return FORMATS[format].opens(path)


def _recognise(path: Path) -> str | None:
    files = [path.name] if path.is_file() else [entry.name for entry in path.iterdir()]
    for name, format in FORMATS.items():
        signs = format.signs[:1] if path.is_file() else format.signs
        if all(any(re.fullmatch(sign, file) for file in files) for sign in signs):
            return name
    return None
