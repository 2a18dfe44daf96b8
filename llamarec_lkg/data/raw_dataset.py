"""What every format is opened as: interactions that can be read batch by batch, and the catalogue of items with the
facts about them."""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from huggingface_hub.repocard import RepoCard
from yaml import YAMLError

from ..utils.errors import LKGError
from .links import checked_links
from .readers import BATCH_ROWS
from .schema import (
    HEAD,
    ITEM_ID,
    RATING,
    RELATION,
    TAIL,
    TIMESTAMP,
    USER_ID,
    DatasetBundle,
    Interactions,
    ItemTable,
    Triples,
    as_id_strings,
    require_columns,
)


INTERACTION_COLUMNS = (USER_ID, ITEM_ID, RATING, TIMESTAMP)
ENTITY_ID = "entity_id"
CARD = "README.md"  # says what tables are, beside them

# ids are text: read as numbers, the ISBN 0205616461 would lose its zero
ID_TYPES = {USER_ID: str, ITEM_ID: str, HEAD: str, RELATION: str, TAIL: str, ENTITY_ID: str}
Catalogue = tuple[ItemTable, Triples | None]


@dataclass(frozen=True)
class RawDataset:
    """A data set that has been found but not yet read.

    Args:
        name (`str`): of the data set.
        batches: reads the interactions anew, as frames with `user_id`, `item_id`, `timestamp` and, where the source
            has it, `rating`.
        catalogue: reads the items and triples. Given a container of raw item ids, only of those; large catalogues
            hold no others in memory.
        citation, license (`str`): of the source; where there are several, with an empty line between them.
    """

    name: str
    batches: Callable[[], Iterator[pd.DataFrame]]
    catalogue: Callable[[Container[str] | None], Catalogue]
    citation: str = ""
    license: str = ""

    @classmethod
    def from_bundle(cls, bundle: DatasetBundle) -> RawDataset:
        def batches() -> Iterator[pd.DataFrame]:
            frame = bundle.interactions.to_frame()
            return (frame.iloc[start : start + BATCH_ROWS] for start in range(0, len(frame), BATCH_ROWS))

        def catalogue(wanted: Container[str] | None) -> Catalogue:
            return only(bundle.items, wanted), bundle.triples

        return cls(bundle.name, batches, catalogue, bundle.citation, bundle.license)

    def to_bundle(self) -> DatasetBundle:
        """Read everything."""
        frames = list(self.batches())
        frame = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=list(INTERACTION_COLUMNS))
        return DatasetBundle(
            self.name, Interactions.from_frame(frame), *self.catalogue(None), self.citation, self.license
        )


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


def links_of(frame: pd.DataFrame, table: str) -> dict[str, str]:
    """Entity id -> raw item id, from a table with `item_id` and `entity_id`."""
    require_columns(frame, [ITEM_ID, ENTITY_ID], table)
    return dict(zip(as_id_strings(frame[ENTITY_ID]), as_id_strings(frame[ITEM_ID]), strict=True))


INTERACTIONS_SCHEMA = pa.schema(
    [(USER_ID, pa.string()), (ITEM_ID, pa.string()), (RATING, pa.float32()), (TIMESTAMP, pa.int64())]
)


def record_batches(frames: Iterator[pd.DataFrame]) -> Iterator[pa.RecordBatch]:
    """Frames of interactions, checked, as record batches of one schema."""
    start = 0
    for frame in frames:
        if frame.empty:
            continue
        try:
            checked = Interactions.from_frame(frame)
        except LKGError as error:
            raise LKGError(f"{error} (Rows are counted from row {start} of the source.)") from error
        batch = pa.RecordBatch.from_pandas(checked.to_frame(), INTERACTIONS_SCHEMA, preserve_index=False)
        yield batch.replace_schema_metadata(None)
        start += len(frame)


def hash_ids(batch: pa.RecordBatch, column: str) -> np.ndarray:
    """A 64-bit number for each id of a column, the same for equal ids."""
    return pd.util.hash_array(batch.column(column).to_numpy(zero_copy_only=False))
