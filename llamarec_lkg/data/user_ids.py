"""Who of all that is named in graphs, items and facts is a person: found by the ids of the users, so that nothing goes
out as free of people that has not been searched for them."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..utils.errors import LKGError
from .schema import ITEM_ID, TITLE


USER, ITEM, ENTITY = "user", "item", "entity"


PERSON = "person"  # what facts or attributes name, and is named like a user


OTHER_NAMES = "give entities names that no user has, 'entity:7' in place of '7' for example"


_SHORT_NUMBER = re.compile(r"[+-]?\d{1,9}")


MOST = 0.9  # of the nodes of a type, from which on the type is one of people


FEW = 0.1  # of the items, up to which they are named like users by chance


def telling(user_ids: Iterable[str]) -> set[str]:
    """The ids that mean a user wherever they stand: all but numbers of up to nine digits.

    A user called "1995" and the year 1995 cannot be told apart by name; and such a number says nothing about anybody
    without the table of users, which stays at home. Longer ones are phone numbers and the like.
    """
    return {raw for raw in user_ids if not _SHORT_NUMBER.fullmatch(raw)}


def names_one_of(text: str, ids: Collection[str]) -> bool:
    """Whether a text is one of the ids, or several texts joined with "|" of which one is."""
    return text in ids or ("|" in text and any(part in ids for part in text.split("|")))


def nodes_like_users(
    labels: Sequence[np.ndarray],
    types: np.ndarray,
    entity_types: Sequence[str],
    attributes: Collection[str],
    dated: np.ndarray,
    user_ids: Sequence[str],
) -> np.ndarray:
    """Which nodes of a graph are users by their names, shape (N,); see [`~KnowledgeGraph.people`] for the rules.

    Args:
        labels: arrays of texts of shape (N,), of which any may be an id: keys and names.
        types (`np.ndarray`, shape (N,)): index into `entity_types`; -1 for what is no person in any case.
        attributes: types whose nodes are values of attributes of items.
        dated (`np.ndarray`, shape (N,)): whether a node has edges with a date.
        user_ids: of the users.
    """
    users = set(user_ids)

    def named(node: int, ids: Collection[str]) -> bool:
        return any(names_one_of(str(texts[node]), ids) for texts in labels)

    alike = np.fromiter((kind >= 0 and named(node, users) for node, kind in enumerate(types.tolist())), dtype=bool)
    sure, meaning = alike & dated, telling(users)
    for node in np.flatnonzero(alike & ~dated):
        sure[node] = named(node, meaning)
    people = sure.copy()
    for code, kind in enumerate(entity_types):
        members = types == code
        if kind == ENTITY:
            people |= members & alike & (USER not in entity_types)
        elif kind not in attributes and alike[members].sum() >= MOST * max(members.sum(), 1):
            if sure[members].any() or 2 * alike[members].sum() >= len(users):
                people |= members
    return people


def refuse_people(folder: str | Path, user_ids: Iterable[str], instead: str = "") -> None:
    """Search every table (`*.parquet`) of a folder that is to be published for the ids of known users.

    Sought are texts, also in lists, that are exactly a user's id, but for short numbers (see [`telling`]). A few items
    may be called like users, as the film and the user "Up" are; ids with an "@" never are by chance.

    Args:
        folder: with all tables, in any depth; among them `items.parquet` where there are items.
        user_ids: of all users, in any order and any number of times; read once.
        instead: a further remedy for the error.

    Raises:
        LKGError: a table names a user; with the file and the column.
    """
    folder = Path(folder)
    texts = {
        (path.relative_to(folder).as_posix(), column): found
        for path in sorted(folder.rglob("*.parquet"), key=lambda path: (path.name != "items.parquet", path))
        for column, found in _texts(path).items()
    }
    users = telling(raw for raw in user_ids if any(raw in found for found in texts.values()))
    by_chance: set[str] = set()
    for column in (ITEM_ID, TITLE):
        called = texts.get(("items.parquet", column), set())
        alike = users & called
        if len(alike) <= FEW * len(called):
            by_chance |= {raw for raw in alike if "@" not in raw}
    for (path, column), found in texts.items():
        people = (users - by_chance) & found
        if people:
            raise LKGError(
                f"{path}, which is to be published, names {len(people)} of the known users in its column {column!r}, "
                f"{min(people)!r} for example. Nothing was published. Make it without them; if they are no users, "
                f"{OTHER_NAMES}{instead}."
            )


def _texts(path: Path) -> dict[str, set[str]]:
    """The distinct texts of each column of a table that may tell who somebody is, and their parts between "|"."""
    with pq.ParquetFile(path) as file:
        found: dict[str, set[str]] = {field.name: set() for field in file.schema_arrow if _holds_text(field.type)}
        for batch in file.iter_batches(columns=list(found)) if found else ():
            for name, texts in found.items():
                values = batch.column(name)
                while pa.types.is_nested(values.type):
                    values = pc.list_flatten(values)
                texts.update(telling(pc.unique(values).drop_null().to_pylist()))
    for texts in found.values():
        texts.update([part for text in texts if "|" in text for part in text.split("|")])
    return found


def _holds_text(kind: pa.DataType) -> bool:
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_dictionary(kind):
        return _holds_text(kind.value_type)
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)
