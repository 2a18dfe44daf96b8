"""The vocabulary every part speaks: column names, and frozen records that their `from_*` constructors check."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ..utils.errors import LKGError
from .values import clean_text, spell_id, text_of, texts_of


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
TYPES = {HEAD: "head_type", TAIL: "tail_type"}  # optional columns of triples: what heads and tails are
USER, ITEM, ENTITY = "user", "item", "entity"  # types of nodes; attributes have one of their own, named as they are
RATED = "RATED"  # user -> item, dated: only in graphs built with users, as the published one
CO_RATED = "CO_RATED"  # item - item: how strongly people tie two items, summed over people
PADDING_ITEM = 0  # dense item ids start at 1
UNKNOWN_USER = 0  # dense user ids start at 1; 0 is the average user

logger = logging.getLogger(__name__)


def require_columns(frame: Any, columns: Sequence[str], table: str) -> None:
    """Raise `LKGError` unless `frame`, which has `columns`, has every one of those."""
    missing = [column for column in columns if column not in frame.columns]
    if missing:
        raise LKGError(
            f"The {table} table has columns {list(map(str, frame.columns))} but lacks {missing}. It needs "
            f"{list(columns)}: rename the matching columns, or name them in `data.columns` (of a folder of tables)."
        )


def _refuse_reserved(names: Iterable[str], reserved: Set[str], remedy: str) -> None:
    """Raise `LKGError` where data bring a relation under a name that the library gives to something else."""
    if taken := sorted(reserved.intersection(names)):
        what = "what interactions say" if taken[0] in (RATED, CO_RATED) else "something else"
        raise LKGError(f"A relation is called {taken[0]!r}, the library's name for {what}. {remedy}")


def _require_present(frame: pd.DataFrame, columns: Sequence[str], table: str) -> None:
    for column in columns:
        absent = frame[column].isna().to_numpy()
        if absent.any():
            raise LKGError(
                f"Column '{column}' of the {table} table has {int(absent.sum())} missing value(s), the first in row "
                f"{int(absent.argmax())}. Every row needs one: drop those rows or fill them in."
            )


def _taken(frame: pd.DataFrame, column: str, take: Callable[[Any], Any], table: str) -> tuple[Any, ...]:
    """What the cells of a column mean; what is the same is one object, as facts name their entities many times."""
    found: list[Any] = []
    same: dict[Any, Any] = {}
    try:
        for cell in frame[column]:
            meant = take(cell)
            found.append(same.setdefault(meant, meant))
    except LKGError as error:
        raise LKGError(f"Column '{column}' of the {table} table, row {len(found)}: {error}") from error
    return tuple(found)


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

    def __post_init__(self) -> None:
        reserved = {RATED, CO_RATED, USER, ITEM, ENTITY, ITEM_ID, TITLE}
        remedy = "Rename the column of the items table, or name its relation otherwise with `attribute_columns`."
        _refuse_reserved(self.attributes, reserved, remedy)

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
        ids = np.array(_taken(frame, ITEM_ID, spell_id, "items"), dtype=object)
        _require_present(frame.assign(**{ITEM_ID: ids}), [ITEM_ID, TITLE], "items")
        repeated = pd.Index(ids).duplicated()
        if repeated.any():
            raise LKGError(
                f"Item id {ids[repeated][0]!r} appears more than once in the items table ({int(repeated.sum())} "
                "repeated rows). Keep one row an item."
            )
        if attribute_columns is None:
            attribute_columns = {c: str(c).upper() for c in frame.columns if c not in (ITEM_ID, TITLE)}
        if absent := [column for column in attribute_columns if column not in frame.columns]:
            raise LKGError(
                f"`attribute_columns` names {absent}; the items table has columns {list(map(str, frame.columns))}. "
                "Name some of these."
            )
        _refuse_shared_names(attribute_columns)
        attributes = {
            relation: _taken(frame, column, texts_of, "items") for column, relation in attribute_columns.items()
        }
        titles = _taken(frame, TITLE, text_of, "items")
        titles = [clean_text(title) or f"item {raw}" for title, raw in zip(titles, ids, strict=True)]
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


def _refuse_shared_names(relation_of: Mapping[str, str]) -> None:
    """Raise `LKGError` where two columns would become one relation, which would keep the values of one."""
    for relation in dict.fromkeys(relation_of.values()):
        columns = [column for column, name in relation_of.items() if name == relation]
        if len(columns) > 1:
            raise LKGError(
                f"The columns {columns} of the items table both become the relation {relation!r}. Rename one of them, "
                "or join their values in one column."
            )


@dataclass(frozen=True)
class Triples:
    """Facts (head, relation, tail) about entities, with the link that says which entity is which item.

    Args:
        heads, relations, tails (`np.ndarray` of `str`, shape (T,)).
        item_of_entity (`dict[str, str]`): entity id -> raw item id. Entities not named here are attributes.
        assumed (`frozenset[str]`): entities that are taken for items as they are called like them; nobody said so.
    """

    heads: np.ndarray
    relations: np.ndarray
    tails: np.ndarray
    item_of_entity: Mapping[str, str]
    assumed: frozenset[str] = field(default=frozenset(), compare=False)

    def __post_init__(self) -> None:
        remedy = "Rename the relation in the triples; if they say who rated what, leave them out."
        _refuse_reserved(self.relations, {RATED, CO_RATED}, remedy)

    @classmethod
    def from_frame(cls, frame: pd.DataFrame, item_of_entity: Mapping[str, str]) -> Triples:
        """Take a table with `head`, `relation` and `tail`; an `LKGError` names what is missing.

        Args:
            frame: may say in `head_type` and `tail_type` what its ends are: "item" (by `item_of_entity`), "user" (the
                fact is left out with a word, for nobody is in the graph), or any other type, such as "person". What
                has a type is taken neither for an item nor for a thing of another type that is called alike.
        """
        return _facts(frame, item_of_entity)[0]

    @classmethod
    def by_item_ids(cls, frame: pd.DataFrame, item_ids: Iterable[str]) -> Triples:
        """The same where nobody says which entity is which item: what is called like an item is that item, unless its
        type says otherwise."""
        triples, untyped = _facts(frame, {raw: raw for raw in item_ids})
        ends = {*triples.heads[untyped[HEAD]], *triples.tails[untyped[TAIL]]}
        return replace(triples, assumed=frozenset(ends.intersection(triples.item_of_entity)))

    def to_frame(self) -> pd.DataFrame:
        return pd.DataFrame({HEAD: self.heads, RELATION: self.relations, TAIL: self.tails})

    def __len__(self) -> int:
        return len(self.heads)


def _facts(frame: pd.DataFrame, item_of_entity: Mapping[str, str]) -> tuple[Triples, pd.DataFrame]:
    """The facts of a table that are not about users, and whether it leaves open what their ends are: `bool`, with
    columns `head` and `tail`."""
    require_columns(frame, [HEAD, RELATION, TAIL], "triples")
    names = (HEAD, RELATION, TAIL)
    ids = pd.DataFrame({name: _taken(frame, name, spell_id, "triples") for name in names}, dtype=object)
    _require_present(ids, names, "triples")
    untyped = pd.DataFrame(True, index=ids.index, columns=list(TYPES))
    if not frame.columns.intersection(list(TYPES.values())).empty:
        types = frame.reindex(columns=list(TYPES.values())).astype(object).set_axis(list(TYPES), axis=1)
        types = types.where(types.notna(), "").set_axis(ids.index).map(lambda kind: str(kind).strip().lower())
        people = (types == USER).any(axis=1)
        if people.any():
            first = " ".join(map(repr, ids[people].iloc[0]))
            logger.warning(
                f"{int(people.sum())} of {len(ids)} facts are about users, {first} is the first. The graph is of "
                "items and what they share, and nobody is in it: these facts are left out."
            )
        types = types[~people]
        ids, untyped = _told_apart(ids[~people], types, item_of_entity), types == ""
    return Triples(*(ids[name].to_numpy(dtype=object) for name in ids), item_of_entity=dict(item_of_entity)), untyped


def _told_apart(ids: pd.DataFrame, types: pd.DataFrame, items: Iterable[str]) -> pd.DataFrame:
    """Ids with their type in front, "genre:7", where things of another type, or `items`, are called alike."""
    said = pd.concat([pd.DataFrame({"id": ids[end], "type": types[end]}) for end in TYPES])
    said = said[said["type"] != ""].drop_duplicates()
    alike = set(said["id"][said["id"].duplicated()]) | set(items)
    changed = {}
    for end in TYPES:
        other = ~types[end].isin(["", ITEM]) & ids[end].isin(alike)
        changed[end] = ids[end].where(~other, types[end] + ":" + ids[end])
    return ids.assign(**changed)


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
    hint = f" Give {[str(value)[:60]]} for a single one." if isinstance(value, str | int) else ""
    raise LKGError(
        f"{name!r} is {repr(value)[:60]}; it is a list of item ids, such as ['50', '181'] (it may be empty).{hint}"
    )


# the fields of an example: type and number of dimensions
_FIELDS = {"user": (np.int64, 0), "history": (np.int64, 1), "ratings": (np.float32, 1), "candidates": (np.int64, 1),
           "retrieval_scores": (np.float32, 1), "label": (np.int64, 0), "evidence": (np.float32, 2),
           "history_relations": (np.float32, 2), "recent_evidence": (np.float32, 2),
           "popularity": (np.float32, 1), "shown": (np.int64, 0)}  # fmt: skip


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
        shown (`int`, optional): how many of the history's last items the prompt shows, where these are fewer than the
            processor's `history_length`; features are of the whole history.

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
    shown: int | None = None

    def __post_init__(self) -> None:
        given = {name: getattr(self, name) for name in _FIELDS}
        needed = ("history", "candidates")
        read = {n: _numbers(n, v, *_FIELDS[n]) for n, v in given.items() if v is not None or n in needed}
        read.setdefault("ratings", np.ones(len(read["history"]), dtype=np.float32))
        read.setdefault("retrieval_scores", np.zeros(len(read["candidates"]), dtype=np.float32))
        read |= {"user": int(read.get("user", UNKNOWN_USER)), "label": int(read.get("label", -1))}
        read |= {"shown": int(read["shown"])} if "shown" in read else {}
        for name, value in read.items():
            object.__setattr__(self, name, value)

    @classmethod
    def from_mapping(cls, row: Mapping[str, Any]) -> RankingExample:
        """A row of a `datasets.Dataset`, whose columns are the arguments; `history` and `candidates` are needed. None,
        and the NaN that pandas has for it, are as if the column was absent."""
        given = {name: row[name] for name in _FIELDS if name in row}
        given = {name: v.item() if getattr(v, "shape", None) == () else v for name, v in given.items()}
        given = {name: v for name, v in given.items() if not (pd.api.types.is_scalar(v) and pd.isna(v))}
        missing = [name for name in ("history", "candidates") if name not in given]
        if missing:
            raise LKGError(f"A ranking example has {sorted(row)} but lacks {missing}, columns of dense item ids.")
        return cls(**{**dict.fromkeys(("user", "ratings", "retrieval_scores")), **given})
