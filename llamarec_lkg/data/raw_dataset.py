"""What every format is opened as: interactions that have not been read yet, and the catalogue of items with the facts
about them."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from huggingface_hub.repocard import RepoCard
from yaml import YAMLError

from ..utils.errors import LKGError
from .arrays import kept
from .engine import Connection, Relation, batches, connect, frame, reading
from .interactions import AS_TEXT, ROW, SCHEMA, Interactions, typed_interactions
from .ledger import Ledger
from .links import checked_links, links_of
from .schema import ITEM_ID, RATING, TIMESTAMP, USER_ID, DatasetBundle, ItemTable, Triples


logger = logging.getLogger(__name__)
CARD = "README.md"  # says what tables are, beside them
Catalogue = tuple[ItemTable, Triples | None]


@dataclass(frozen=True)
class RawDataset:
    """A data set that has been found but not yet read.

    Args:
        name (`str`): of the data set.
        interactions: the interactions in a connection, with `user_id`, `item_id`, `timestamp` and, where the source
            has it, `rating`, as they come.
        catalogue: reads the items and triples. Given a container of raw item ids, only of those; large catalogues
            hold no others in memory.
        citation, license (`str`): of the source; where there are several, with an empty line between them.
        checked: the interactions are those that `typed_interactions` gives.
        changed (`dict[str, int]`): how many of them are not as they came, as far as is known without reading.
    """

    name: str
    interactions: Callable[[Connection], Relation]
    catalogue: Callable[[Container[str] | None], Catalogue]
    citation: str = ""
    license: str = ""
    checked: bool = False
    changed: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def from_bundle(cls, bundle: DatasetBundle) -> RawDataset:
        def catalogue(wanted: Container[str] | None) -> Catalogue:
            return only(bundle.items, wanted), bundle.triples

        table = bundle.interactions.to_arrow()
        changed = bundle.interactions.changed
        source = (bundle.citation, bundle.license)
        return cls(bundle.name, lambda con: con.from_arrow(table), catalogue, *source, changed=changed)

    def typed(self, connection: Connection, ledger: Ledger | None = None) -> Relation:
        """The interactions, checked and typed: see `typed_interactions`."""
        ledger = ledger or Ledger()
        ledger.changed.update(self.changed)
        relation = self.interactions(connection)
        return relation if self.checked else typed_interactions(relation, self.name, ledger)

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The interactions batch by batch, checked: `interactions.SCHEMA`."""
        for batch in batches(self.typed(connect()).project(AS_TEXT), self.name):
            yield batch.cast(SCHEMA).replace_schema_metadata(None)

    def to_bundle(self) -> DatasetBundle:
        """Read everything."""
        ledger = Ledger()
        interactions = Interactions.from_relation(self.typed(connect(), ledger), ledger.changed)
        return DatasetBundle(self.name, interactions, *self.catalogue(None), self.citation, self.license)


_ALIGNED = ("users", "items", "ratings", "timestamps", "rows")


@dataclass
class CodedInteractions:
    """Interactions with users and items as codes from 0 on; arrays are aligned.

    Args:
        users, items (`np.ndarray` of `int32`, shape (N,)): numeric ids in their order, then others in that of text.
        ratings (`np.ndarray` of `float32`, shape (N,)), timestamps, rows (`np.ndarray` of `int64`, shape (N,)).
        user_ids, item_ids (`np.ndarray` of `str`): the raw id of each code.
    """

    users: np.ndarray
    items: np.ndarray
    ratings: np.ndarray
    timestamps: np.ndarray
    rows: np.ndarray
    user_ids: np.ndarray
    item_ids: np.ndarray

    def keep(self, which: np.ndarray) -> None:
        """Keep some rows (`bool`, shape (N,)), in the room that there is."""
        for name in _ALIGNED:
            setattr(self, name, kept(getattr(self, name), which))

    def move(self, places: np.ndarray, rows: np.ndarray) -> None:
        """Put some rows into some places."""
        for name in _ALIGNED:
            array = getattr(self, name)
            array[places] = array[rows]


def coded_interactions(connection: Connection, typed: Relation, place: str, *, order: str) -> CodedInteractions:
    """Typed interactions in memory, ids as codes, in an order: SQL of `user`, `item`, `timestamp` and `row`."""
    with reading(place):
        typed.create("typed")
        ids = {}
        for kind in ("user", "item"):
            connection.execute(
                f"CREATE TABLE {kind}s AS SELECT {kind}_id, CAST(row_number() OVER "
                f"(ORDER BY TRY_CAST({kind}_id AS BIGINT), {kind}_id) - 1 AS INTEGER) AS {kind} "
                f"FROM (SELECT DISTINCT {kind}_id FROM typed)"
            )
            listed = connection.sql(f"SELECT CAST({kind}_id AS VARCHAR) AS id FROM {kind}s ORDER BY {kind}")
            ids[kind] = frame(listed, place)["id"].to_numpy(dtype=object)
        ((count,),) = connection.sql("SELECT count(*) FROM typed").fetchall()
        coded = connection.sql(
            f"SELECT user, item, {RATING}, {TIMESTAMP}, {ROW} FROM typed JOIN users USING ({USER_ID}) "
            f"JOIN items USING ({ITEM_ID}) ORDER BY {order}"
        )
        kinds = (np.int32, np.int32, np.float32, np.int64, np.int64)
        arrays, start = [np.empty(count, kind) for kind in kinds], 0
        for batch in batches(coded, place):
            for array, column in zip(arrays, batch.columns, strict=True):
                array[start : start + len(column)] = column.to_numpy(zero_copy_only=False)
            start += batch.num_rows
        for table in ("typed", "users", "items"):
            connection.execute(f"DROP TABLE {table}")
    return CodedInteractions(*arrays, ids["user"], ids["item"])


@dataclass(frozen=True)
class Format:
    """A format that data come in.

    Args:
        name (`str`): by which people ask for it.
        opens: finds the data in a folder, or beside one of its files, without reading them.
        signs (`tuple[str, ...]`): patterns of the names of files that a folder of this format holds, the interactions
            first.
        reads (`str`): which files, in words.
    """

    name: str
    opens: Callable[[Path], RawDataset]
    signs: tuple[str, ...]
    reads: str


def catalogue_of_tables(
    items: pd.DataFrame, triples: pd.DataFrame | None = None, links: pd.DataFrame | None = None
) -> Catalogue:
    """Items and triples from tables in memory. `links` says which entity (`entity_id`) is which item (`item_id`);
    without it, a head or tail that equals an item id is that item."""
    table = ItemTable.from_frame(items)
    if triples is None:
        return table, None
    if links is None:
        facts = Triples.by_item_ids(triples, table.ids)
    else:
        facts = Triples.from_frame(triples, links_of(links, "links"))
    return table, checked_links(facts, table.ids)


def only(items: ItemTable, wanted: Container[str] | None) -> ItemTable:
    """The rows of the items in `wanted`; all where it is None."""
    return items if wanted is None else items.select([raw for raw in items.ids if raw in wanted])


def folder_of(path: Path) -> Path:
    return path if path.is_dir() else path.parent


def paired_files(path: Path, pattern: str, partners: Sequence[str]) -> tuple[Path, str, Path]:
    """The file of interactions in a folder, or the one given; the part of its name that tells it from others (the
    group of the pattern that matched, else ""); and the file of items beside it.

    Args:
        pattern: of the name of the file of interactions.
        partners: names that the file of items may have, the best first, with {} in the place of that part.

    Raises:
        LKGError: there is no file of interactions or several, or no file of items.
    """
    folder = folder_of(path)
    names = [path.name] if path.is_file() else sorted(entry.name for entry in folder.iterdir())
    matches = [match for name in names if (match := re.fullmatch(pattern, name))]
    if not matches:
        raise LKGError(
            f"{names[:12]} of {path}: none is called as the file of interactions of this format. Name its files as "
            "those of the release, or leave out the format."
        )
    if len(matches) > 1:
        raise LKGError(
            f"{path} holds {[match.string for match in matches]}; needed is one file of interactions. Pass its path."
        )
    part = next((group for group in matches[0].groups() if group), "")
    found = [partner.format(part) for partner in partners]
    for partner in found:
        if (folder / partner).exists():
            return folder / matches[0].string, part, folder / partner
    raise LKGError(
        f"{folder} holds {matches[0].string} but no {found[0]}, which has the titles. Download it from the same "
        "release and put it there."
    )


def read_source(card: Path) -> dict[str, str]:
    """Citation and licence from the card (`README.md`) beside some tables, empty where it has none or is absent."""
    if not card.exists():
        return {"citation": "", "license": ""}
    try:
        data = RepoCard(card.read_text(encoding="utf-8"), ignore_metadata_errors=True).data
    except (ValueError, YAMLError) as error:
        raise LKGError(f"The metadata of {card} cannot be read ({error}). Mend or delete the card.") from error
    infos = data.get("dataset_info") or [{}]
    info = infos[0] if isinstance(infos, list) else infos
    return {
        "citation": str(info.get("citation") or ""),
        "license": str(info.get("license") or "") or _license_of(data.to_dict()),
    }


def _license_of(metadata: Mapping[str, Any]) -> str:
    """The licences that the Hub's own fields name; one that the Hub has no name for by the owner's, and its place."""
    ids = metadata.get("license") or []
    ids = [ids] if isinstance(ids, str) else ids
    name, link = metadata.get("license_name"), metadata.get("license_link")
    own = " ".join(str(part) for part in (name, f"({link})" if name and link else link) if part)
    return join_sources(*(own if text == "other" else "" if text == "unknown" else str(text) for text in ids))


def sources_of(text: str) -> tuple[str, ...]:
    """The single citations or licences of a text that names several, with an empty line between them; each once."""
    parts = (part.strip("\n") for part in re.split(r"\n[ \t]*\n", text))
    return tuple(dict.fromkeys(part for part in parts if part.strip()))


def join_sources(*texts: str) -> str:
    """What several sources say as one text that `sources_of` takes apart."""
    return "\n\n".join(sources_of("\n\n".join(texts)))
