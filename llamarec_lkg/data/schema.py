"""The vocabulary every part speaks: column names, and frozen records that their `from_*` constructors check."""

from __future__ import annotations

import ast
import contextlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ..utils.errors import LKGError


if TYPE_CHECKING:
    from .interactions import Interactions


USER_ID = "user_id"
ITEM_ID = "item_id"
RATING = "rating"
TIMESTAMP = "timestamp"
TITLE = "title"
HEAD = "head"
RELATION = "relation"
TAIL = "tail"
RATED = "RATED"  # user -> item, dated: only in graphs built with users, as the published one
CO_RATED = "CO_RATED"  # item - item: how strongly people tie two items, summed over people
PADDING_ITEM = 0  # dense item ids start at 1
UNKNOWN_USER = 0  # dense user ids start at 1; 0 is the average user


def require_columns(frame: Any, columns: Sequence[str], table: str) -> None:
    """Raise `LKGError` unless `frame`, which has `columns`, has every one of those."""
    missing = [column for column in columns if column not in frame.columns]
    if missing:
        raise LKGError(
            f"The {table} table has columns {list(map(str, frame.columns))} but lacks {missing}. It needs "
            f"{list(columns)}: rename the matching column."
        )


def _refuse_reserved(relations: Iterable[str], remedy: str) -> None:
    """Raise `LKGError` where data bring a relation under a name that the library gives to interactions."""
    taken = sorted({RATED, CO_RATED} & set(relations))
    if taken:
        raise LKGError(f"A relation is called {taken[0]!r}, the name for what interactions say. {remedy}")


def _require_present(frame: pd.DataFrame, columns: Sequence[str], table: str) -> None:
    for column in columns:
        absent = frame[column].isna().to_numpy()
        if absent.any():
            raise LKGError(
                f"Column '{column}' of the {table} table has {int(absent.sum())} missing value(s), the first in row "
                f"{int(absent.argmax())}. Every row needs one: drop those rows or fill them in."
            )


def spell_id(value: Any) -> str | None:
    """A raw id in its one spelling: 862, 862.0 and "862" are one; None where there is none (a blank, None, NaN)."""
    text = text_of(value).strip()
    return _WHOLE.sub(r"\1", text) or None


_WHOLE = re.compile(r"^(-?\d+)\.0+$")


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
        raise LKGError(f"{repr(value)[:80]} stands where one text is needed. Give one, or leave the cell empty.")
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
    if value is None or value == {}:
        return {}
    if not isinstance(value, dict):
        raise LKGError(f"{repr(value)[:80]} stands where a record with named fields is needed. Mend or leave it out.")
    return value


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


@dataclass(frozen=True)
class ItemTable:
    """Titles and attributes of items.

    Args:
        ids (`tuple[str, ...]`): raw item ids, each once.
        titles (`tuple[str, ...]`): one line each (control characters are replaced by spaces).
        attributes (`dict[str, tuple[tuple[str, ...], ...]]`): relation name -> values of each item, in the order of
            `ids`. An item may have none or several values.
    """

    ids: tuple[str, ...]
    titles: tuple[str, ...]
    attributes: Mapping[str, tuple[tuple[str, ...], ...]] = field(default_factory=dict)

    @classmethod
    def from_frame(cls, frame: pd.DataFrame, attribute_columns: Mapping[str, str] | None = None) -> ItemTable:
        """Take a table with `item_id` and `title`; other columns become attributes. An `LKGError` names what is
        missing or there twice.

        Args:
            frame: attribute cells hold one value, a list of values, or several values separated by "|".
            attribute_columns: column -> relation name. By default every column beside id and title, under its own name
                in capitals; RATED and CO_RATED are the library's.
        """
        require_columns(frame, [ITEM_ID, TITLE], "items")
        _require_present(frame, [ITEM_ID, TITLE], "items")
        ids = as_id_strings(frame[ITEM_ID])
        repeated = pd.Index(ids).duplicated()
        if repeated.any():
            raise LKGError(
                f"Item id {ids[repeated][0]!r} appears more than once in the items table ({int(repeated.sum())} "
                "repeated rows). Keep one row an item."
            )
        if attribute_columns is None:
            attribute_columns = {c: str(c).upper() for c in frame.columns if c not in (ITEM_ID, TITLE)}
        require_columns(frame, list(attribute_columns), "items")
        _refuse_reserved(attribute_columns.values(), "Rename the column of the items table.")
        attributes = {
            relation: tuple(texts_of(cell) for cell in frame[column]) for column, relation in attribute_columns.items()
        }
        titles = [clean_text(text_of(title)) or f"item {raw}" for title, raw in zip(frame[TITLE], ids, strict=True)]
        return cls(tuple(ids), tuple(titles), attributes)

    def to_frame(self) -> pd.DataFrame:
        """The table back, attribute cells as lists (what parquet stores)."""
        return pd.DataFrame(
            {ITEM_ID: self.ids, TITLE: self.titles, **{k: map(list, v) for k, v in self.attributes.items()}}
        )

    def select(self, raw_ids: Sequence[str]) -> ItemTable:
        """The rows of `raw_ids`, in that order."""
        row_of = {raw: row for row, raw in enumerate(self.ids)}
        rows = [row_of[raw] for raw in raw_ids]
        return ItemTable(
            ids=tuple(self.ids[row] for row in rows),
            titles=tuple(self.titles[row] for row in rows),
            attributes={relation: tuple(cells[row] for row in rows) for relation, cells in self.attributes.items()},
        )

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Triples:
    """Facts (head, relation, tail) about entities, with the link that says which entity is which item.

    Args:
        heads, relations, tails (`np.ndarray` of `str`, shape (T,)).
        item_of_entity (`dict[str, str]`): entity id -> raw item id. Entities not named here are attributes.
    """

    heads: np.ndarray
    relations: np.ndarray
    tails: np.ndarray
    item_of_entity: Mapping[str, str]

    @classmethod
    def from_frame(cls, frame: pd.DataFrame, item_of_entity: Mapping[str, str]) -> Triples:
        """Take a table with `head`, `relation` and `tail`; an `LKGError` names what is missing."""
        require_columns(frame, [HEAD, RELATION, TAIL], "triples")
        _require_present(frame, [HEAD, RELATION, TAIL], "triples")
        heads, relations, tails = (as_id_strings(frame[name]) for name in (HEAD, RELATION, TAIL))
        _refuse_reserved(relations, "Rename the relation in the triples; if they say who rated what, leave them out.")
        return cls(heads, relations, tails, item_of_entity=dict(item_of_entity))

    def to_frame(self) -> pd.DataFrame:
        return pd.DataFrame({HEAD: self.heads, RELATION: self.relations, TAIL: self.tails})

    def __len__(self) -> int:
        return len(self.heads)


@dataclass(frozen=True)
class DatasetBundle:
    """What a source delivers: the raw tables, and what a card has to say about where they come from. Where there are
    several sources, their citations have an empty line between them, and so have their licences."""

    name: str
    interactions: Interactions
    items: ItemTable
    triples: Triples | None = None
    citation: str = ""
    license: str = ""


def raw_id_list(name: str, value: Any) -> list[Any]:
    """The raw item ids given as the argument `name`, as a list; an `LKGError` for a single id, and for a set."""
    dimensionless = getattr(value, "shape", None) == ()  # one id, as an array or a tensor
    if isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping | Set) and not dimensionless:
        return list(value)
    hint = f" Give {[str(value)]} for a single one." if isinstance(value, str | int) else ""
    raise LKGError(
        f"{name!r} is {repr(value)[:60]}; it is a list of item ids, such as ['50', '181'] (it may be empty).{hint}"
    )


# the fields of an example: type and number of dimensions
_FIELDS = {"user": (np.int64, 0), "history": (np.int64, 1), "ratings": (np.float32, 1), "candidates": (np.int64, 1),
           "retrieval_scores": (np.float32, 1), "label": (np.int64, 0), "evidence": (np.float32, 2),
           "history_relations": (np.float32, 2), "recent_evidence": (np.float32, 2),
           "popularity": (np.float32, 1)}  # fmt: skip


def _numbers(name: str, values: Any, dtype: type, ndim: int) -> np.ndarray:
    """What a field of an example holds, as an array; an `LKGError` says what of it is no number of that kind."""
    if isinstance(values, np.ndarray) and values.dtype == dtype and values.ndim == ndim:
        return values
    whole = dtype is np.int64
    try:
        found = np.asarray(values)
        kinds = {type(value) for value in found.flat} if found.dtype.kind == "O" else {found.dtype.type}
        if whole and any(issubclass(kind, str | bytes) for kind in kinds):
            raise LKGError(
                f"{name!r} is {repr(values)[:60]}: text, which is a raw id and never a dense one. Examples hold dense "
                "numbers: items 1, 2, ... of the catalogue, users 1, 2, ..., and as label the index of a candidate, "
                "from 0. Let `processor.example(history, candidates, user=..., label=...)` make them of raw ids."
            )
        with np.errstate(invalid="ignore"):
            numbers = found.astype(dtype)
        fits = found.dtype.kind not in "mM" and type(None) not in kinds
        fits &= not whole or (found.dtype.kind != "b" and bool((numbers == found).all()))
        fits &= numbers.ndim == ndim or (ndim == 2 and not numbers.size)
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        if isinstance(error, LKGError):
            raise
        fits = False
    if not fits:
        form = ("a single {}number", "a flat list of {}numbers", "a table of {}numbers")[ndim]
        raise LKGError(f"{name!r} is {repr(values)[:60]}; it is {form.format('whole ' if whole else '')}, no gaps.")
    return numbers


@dataclass(frozen=True)
class RankingExample:
    """One list to rank, in dense ids. None is "not given", in every field but `history` and `candidates`.

    Args:
        user (`int`): dense user, 0 unknown.
        history (`np.ndarray`, shape (H,)): dense items, oldest first.
        ratings (`np.ndarray`, shape (H,)): of the history; shown in the published prompt style. 1 where not given.
        candidates (`np.ndarray`, shape (C,)): dense items; the first is letter A.
        retrieval_scores (`np.ndarray`, shape (C,)): 0 where not given.
        label (`int`): index of the target among the candidates, -1 where it is not one or is not known.
        evidence, history_relations (`np.ndarray` of `float32`, shapes (C, R) and (R, S), optional): what the graph
            says of the candidates and of the history (`retrieval.candidates.with_features`).
        recent_evidence (`np.ndarray` of `float32`, shape (C, R), optional): the same as evidence, from the last items
            of the history alone.
        popularity (`np.ndarray` of `float32`, shape (C,), optional): log(1 + training interactions) of the candidates.
            Of these four the processor reads those that are absent.

    Raises:
        LKGError: a field is no number, or no list of numbers, of its kind; text is never a dense id.
    """

    user: int
    history: np.ndarray
    ratings: np.ndarray
    candidates: np.ndarray
    retrieval_scores: np.ndarray
    label: int = -1
    evidence: np.ndarray | None = None
    history_relations: np.ndarray | None = None
    recent_evidence: np.ndarray | None = None
    popularity: np.ndarray | None = None

    def __post_init__(self) -> None:
        given = {name: getattr(self, name) for name in _FIELDS}
        needed = ("history", "candidates")
        read = {n: _numbers(n, v, *_FIELDS[n]) for n, v in given.items() if v is not None or n in needed}
        read.setdefault("ratings", np.ones(len(read["history"]), dtype=np.float32))
        read.setdefault("retrieval_scores", np.zeros(len(read["candidates"]), dtype=np.float32))
        read |= {"user": int(read.get("user", UNKNOWN_USER)), "label": int(read.get("label", -1))}
        for name, value in read.items():
            object.__setattr__(self, name, value)

    @classmethod
    def from_mapping(cls, row: Mapping[str, Any]) -> RankingExample:
        """A row of a `datasets.Dataset`, whose columns are the arguments; `history` and `candidates` are needed. None,
        and the NaN that pandas has for it, are as if the column was absent."""
        given = {name: row[name] for name in _FIELDS if name in row}
        given = {name: v for name, v in given.items() if not (pd.api.types.is_scalar(v) and pd.isna(v))}
        missing = [name for name in ("history", "candidates") if name not in given]
        if missing:
            raise LKGError(f"A ranking example has {sorted(row)} but lacks {missing}, columns of dense item ids.")
        return cls(**{**dict.fromkeys(("user", "ratings", "retrieval_scores")), **given})
