"""What cells of tables mean: ids in one spelling, texts, several texts, records."""

from __future__ import annotations

import ast
import contextlib
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from ..utils.errors import LKGError


@contextlib.contextmanager
def inside(place: str) -> Iterator[None]:
    """Inside, an `LKGError` says at which place it was."""
    try:
        yield
    except LKGError as error:
        raise LKGError(f"{place}: {error}") from error


def spell_id(value: Any) -> str | None:
    """A raw id in its one spelling: 862, 862.0 and "862" are one; None where there is none (a blank, None, NaN)."""
    text = text_of(value).strip()
    return _WHOLE.sub(r"\1", text) or None


_WHOLE = re.compile(r"^(-?\d+)\.0+$")
BLANKS = "".join(filter(str.isspace, map(chr, range(0x3001))))  # what `str.strip` takes off an id, for the engine


def as_id_strings(values: pd.Series) -> np.ndarray:
    """A column of ids that are all there, each in its one spelling (`spell_id`)."""
    return np.array([spell_id(value) for value in values], dtype=object)


def text_of(value: Any) -> str:
    """A cell as the text it means: bytes are UTF-8, 1995.0 is "1995", what is missing is empty.

    Raises:
        LKGError: it is a list or a record; which of its texts is meant cannot be told.
    """
    if isinstance(value, bytes | bytearray | np.bytes_):
        return bytes(value).decode("utf-8", errors="replace")
    if isinstance(value, list | tuple | set | dict | np.ndarray):
        raise LKGError(f"{repr(value)[:80]} stands where one text is needed. Give one.")
    if pd.isna(value):  # None, NaN, NA, NaT
        return ""
    if isinstance(value, float | np.floating) and float(value).is_integer() and abs(value) < 2**53:
        return str(int(value))
    return str(value)


def texts_of(value: Any, separator: str | None = "|") -> tuple[str, ...]:
    """A cell as the several texts it means, each once: a list, a text that holds one (as a table saved by another tool
    has it), or texts between separators. What says that there is nothing ("None", "[]") gives none."""
    if isinstance(value, str | bytes | bytearray):
        text = text_of(value).strip()
        if text in _NOTHING:
            return ()
        written = _literal(text) if text[:1] in "[({" else None
        value = written if isinstance(written, list | tuple | set) else text.split(separator) if separator else [text]
    elif isinstance(value, list | tuple | set | np.ndarray):
        value = [part for one in value for part in (texts_of(one, None) if _holds_several(one) else [one])]
    else:
        value = [value]
    texts = (clean_text(text_of(part)) for part in value)
    return tuple(dict.fromkeys(text for text in texts if text))


_NOTHING = ("", "None", "nan", "NaN", "null")


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and np.isnan(value))


def _holds_several(value: Any) -> bool:
    return isinstance(value, list | tuple | set | np.ndarray)


def record_of(value: Any) -> dict[str, Any]:
    """A cell as the record it means: a dictionary, or a text that holds one; empty where there is none.

    Raises:
        LKGError: it is something else.
    """
    if isinstance(value, str | bytes):
        text = text_of(value).strip()
        found = {} if text in _NOTHING else _literal(text)
        value = text if found is None else found
    if _is_missing(value) or value == {}:
        return {}
    if not isinstance(value, dict):
        raise LKGError(f"{repr(value)[:80]} stands where a record with named fields is needed. Mend or leave it out.")
    return value


def records_of(value: Any) -> list[dict[str, Any]]:
    """A cell as the several records it means: a list of dictionaries, or a text that holds one; none where
    it is blank.

    Raises:
        LKGError: it is something else.
    """
    if isinstance(value, str | bytes):
        text = text_of(value).strip()
        found = [] if text in _NOTHING else _literal(text)
        value = [text] if found is None else found
    several = [] if _is_missing(value) else value if _holds_several(value) else [value]
    return [record_of(one) for one in several]


def _literal(text: str) -> Any:
    """What a text written as json or as a Python literal holds, None where it is neither. Nothing is run."""
    for read in (json.loads, ast.literal_eval):
        with contextlib.suppress(ValueError, SyntaxError, RecursionError, MemoryError):
            return read(text)
    return None


def natural_order(ids: Sequence[str]) -> np.ndarray:
    """The order of distinct ids, as the places they are taken from, shape (N,): numeric when all are whole numbers,
    else that of the text. Dense ids follow it."""
    texts = np.asarray(ids, dtype=object)
    try:
        numbers = texts.astype(np.int64)
    except (ValueError, OverflowError):
        return np.argsort(texts, kind="stable")
    order = np.argsort(numbers, kind="stable")
    if (np.diff(numbers[order]) == 0).any():  # 1 and 01
        order = np.argsort(texts, kind="stable")
        order = order[np.argsort(numbers[order], kind="stable")]
    return order


_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060\ufeff]+")


def clean_text(text: object) -> str:
    """One line of printable text: control and invisible characters become spaces, runs of spaces one."""
    return " ".join(_CONTROL.sub(" ", str(text)).split())
