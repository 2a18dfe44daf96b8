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
    if isinstance(value, bool | np.bool_):
        raise LKGError(f"{value} stands where an id is needed; an id is a number or a text. Write it as one.")
    text = text_of(value).strip()
    return _WHOLE.sub(r"\1", text) or None


_WHOLE = re.compile(r"^(-?[0-9]+)\.0+$")
BLANKS = "".join(filter(str.isspace, map(chr, range(0x3001))))  # what `str.strip` takes off an id, for the engine


NOT_UTF_8 = "is bytes that are no text in UTF-8. Write it as text, such as an id by `value.hex()`."


def text_of(value: Any) -> str:
    """A cell as the text it means: bytes are UTF-8, 1995.0 is "1995", what is missing is empty.

    Raises:
        LKGError: it is a list or a record, of which it cannot be told what text is meant, or no text at all: bytes
            that are not in UTF-8, or half of a character.
    """
    if isinstance(value, bytes | bytearray | np.bytes_):
        try:
            return bytes(value).decode("utf-8")
        except UnicodeDecodeError as error:
            raise LKGError(f"{repr(value)[:80]} {NOT_UTF_8}") from error
    if isinstance(value, list | tuple | set | dict | np.ndarray):
        raise LKGError(f"{repr(value)[:80]} stands where one text is needed. Give one.")
    if pd.isna(value):  # None, NaN, NA, NaT
        return ""
    if isinstance(value, float | np.floating) and float(value).is_integer() and abs(value) < 2**53:
        return str(int(value))
    return _whole_characters(str(value))


def _whole_characters(text: str) -> str:
    """Two halves of a character, as Python literals write one, become the character."""
    if text.isascii() or not _HALF.search(text):
        return text
    try:
        return text.encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError:
        raise LKGError(
            f'{text[:80]!a} holds half of a character (a lone surrogate). Write "\\ufffd" in its place.'
        ) from None


_HALF = re.compile("[\ud800-\udfff]")


def texts_of(value: Any, separator: str | None = "|") -> tuple[str, ...]:
    """A cell as the several texts it means, each once: a list, a text that holds one (as a table saved by another tool
    has it), or texts between separators. What says that there is nothing ("None", "[]") gives none.

    Raises:
        LKGError: it is or holds a record, of which it cannot be told what text is meant.
    """
    if isinstance(value, str | bytes | bytearray):
        text = text_of(value).strip()
        if text in _NOTHING:
            return ()
        if _ARRAY.fullmatch(text):  # which Python takes for one text
            value = [one or other for one, other in _QUOTED.findall(text)]
        else:
            written = _literal(text) if text[:1] in "[({" else None
            apart = text.split(separator) if separator else [text]
            value = written if isinstance(written, dict) or _holds_several(written) else apart
    several = value if _holds_several(value) else [value]
    parts = (part for one in several for part in (texts_of(one, None) if _holds_several(one) else [one]))
    texts = (clean_text(text_of(part)) for part in parts)
    return tuple(dict.fromkeys(text for text in texts if text))


_NOTHING = ("", "None", "nan", "NaN", "NaT", "<NA>", "null", "\\N", "N/A", "{}")
_TEXT = r"'([^']*)'|\"([^\"]*)\""
_QUOTED = re.compile(_TEXT)
_ARRAY = re.compile(rf"\[\s*(?:{_TEXT})(?:\s+(?:{_TEXT}))+\s*\]")  # as a cell with numpy's texts is written in csv


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


def of_windows(text: str) -> str:
    """A text that was read as Latin-1, with the letters that Windows has in the place of its control characters."""
    return text.translate(_WINDOWS)


_WINDOWS = {code: letter for code in range(0x80, 0xA0) if (letter := bytes([code]).decode("cp1252", errors="ignore"))}
# controls, marks of width and direction, annotations, invisible letters ("tags"), and halves of letters, which no
# tokenizer takes
_CONTROL = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]+"
)


def clean_text(text: object) -> str:
    """One line of printable text: control and invisible characters become spaces, runs of spaces one."""
    return " ".join(_CONTROL.sub(" ", str(text)).split())
