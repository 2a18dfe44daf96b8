"""Data sets as others can load them: a folder of parquet tables with a card, and the same folder on the Hub."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from huggingface_hub import CommitInfo

from ..data.anonymize import anonymize_users
from ..data.interactions import SCHEMA
from ..data.links import ENTITY_ID
from ..data.raw_dataset import CARD, RawDataset, join_sources, only, sources_of
from ..data.schema import HEAD, ITEM_ID, RELATION, TAIL, TITLE, USER_ID, DatasetBundle, ItemTable, Triples
from ..data.sources import open_source
from ..utils.errors import LKGError
from ..utils.files import atomic_folder
from ..utils.hub import push_files, whole_id
from .dataset_card import DatasetCard, TableInfo


TABLES = ("interactions", "items", "triples", "links")

RAW_IDS = (
    "User ids are those of the source. Together with times and items they can show who somebody is and what they "
    "like: treat these tables as personal data."
)

NUMBERED_IDS = (
    "User ids were replaced by the numbers from 1 on, in an order that has nothing to do with the source's ids, and "
    "rows were put in the order of these numbers. Ratings, items and times are those of the source, so somebody who "
    "knows part of a person's history from elsewhere can still find the rest: treat the interactions as personal data."
)

NO_USERS = "There are no interactions and no user ids in this repository."


def write_dataset(
    data: DatasetBundle | RawDataset,
    folder: str | Path,
    *,
    overwrite: bool = False,
    include_interactions: bool = True,
    items_with_interactions_only: bool = False,
    dataset_id: str | None = None,
    privacy: str = RAW_IDS,
    license: str | Sequence[str] | None = None,
    citation: str | Sequence[str] | None = None,
    language: str | None = None,
    tags: Sequence[str] = (),
) -> DatasetCard:
    """Write `interactions.parquet`, `items.parquet`, where there are any `triples.parquet` and `links.parquet`, and a
    card: a folder that `load_dataset_bundle` reads to the same data. It appears whole or not at all.

    Args:
        data: in memory, or found by `convert.open_raw`, whose interactions then pass through batch by batch.
        overwrite: replace what this function wrote into the folder before; other files are refused in any case.
        include_interactions: False leaves users out.
        items_with_interactions_only: leave out items that nobody touched.
        dataset_id: what the card's snippets load; by default the folder.
        privacy: what the card says of the users' ids.
        license, citation: in place of what the data say, one for each source. A licence is a name of the Hub
            ("cc-by-4.0") or any text.

    Raises:
        LKGError: the folder is not empty, there are no interactions, or an attribute's name is not in capitals, which
            reading would change.
    """
    target = Path(folder).resolve()
    _require_room(target, overwrite)
    raw = RawDataset.from_bundle(data) if isinstance(data, DatasetBundle) else data
    raw = replace(raw, license=_said(license, raw.license), citation=_said(citation, raw.citation))
    with atomic_folder(target) as temporary:
        num_users, seen = 0, None
        if include_interactions:
            num_users, seen = _write_interactions(raw, temporary / "interactions.parquet")
        items, triples = raw.catalogue(seen if items_with_interactions_only else None)
        pq.write_table(_items_table(items), temporary / "items.parquet")
        if triples is not None:
            _write_triples(triples, items, temporary)
        card = DatasetCard(
            dataset_id=dataset_id or str(folder),
            pretty_name=raw.name,
            tables=tuple(_describe(path) for name in TABLES if (path := temporary / f"{name}.parquet").exists()),
            privacy=privacy if include_interactions else NO_USERS,
            num_users=num_users,
            relations=None if triples is None else dict(Counter(triples.relations.tolist()).most_common()),
            licenses=sources_of(raw.license),
            citations=sources_of(raw.citation),
            language=language,
            tags=tuple(tags),
            changed=raw.ledger.changed,
        )
        (temporary / CARD).write_text(str(card.to_hub_card()), encoding="utf-8")
    return card


def push_dataset(
    data: DatasetBundle | RawDataset | str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    include_interactions: bool = True,
    anonymize: bool = True,
    commit_message: str = "Upload data set with llamarec_lkg",
    token: str | bool | None = None,
    **card: Any,
) -> CommitInfo:
    """Publish a data set, as one commit: a reader finds all of it or what was there before.

    ```python
    push_dataset(load_dataset_bundle("path/to/folder"), "you/name", private=True)
    bundle = load_dataset_bundle("you/name")
    ```

    Args:
        data: a bundle; or what `convert.open_raw` found, or `sources.open_source` finds under this name. Its
            interactions then are never held as text: numbering takes some forty bytes for each, and without it they
            pass through batch by batch.
        repo_id, private, revision, create_pr, commit_message, token: as for [`~utils.hub.push_files`].
        include_interactions: False publishes items and triples only.
        anonymize: replace user ids by numbers (`anonymize_users`); False publishes them as they are. Items and triples
            are published as given in any case: leave people out of them.
        card: `license`, `citation`, `language` and `tags`, as for [`write_dataset`].

    Raises:
        LKGError: the id has not the form owner/name, a public repository of this id should be private, or the upload
            failed, in which case nothing of it is visible.
    """
    repo_id = whole_id(repo_id, token)
    if isinstance(data, str | Path):
        data = open_source(data, token=token)
    raw = RawDataset.from_bundle(data) if isinstance(data, DatasetBundle) else data
    items, triples = raw.catalogue(None)
    raw = replace(raw, catalogue=lambda wanted: (only(items, wanted), triples))  # read once
    if include_interactions and anonymize:
        raw = anonymize_users(raw)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "dataset"
        write_dataset(
            raw,
            folder,
            include_interactions=include_interactions,
            dataset_id=repo_id,
            privacy=NUMBERED_IDS if anonymize else RAW_IDS,
            **card,
        )
        return push_files(
            repo_id,
            {path.name: path for path in sorted(folder.iterdir())},
            repo_type="dataset",
            # a table that this version has no more must not stay behind, least of all the interactions
            replaces=[f"{name}.parquet" for name in TABLES],
            private=private,
            revision=revision,
            create_pr=create_pr,
            commit_message=commit_message,
            token=token,
        )


def _said(given: str | Sequence[str] | None, known: str) -> str:
    """What the user says of the sources, else what the data say."""
    return join_sources(*([known] if given is None else [given] if isinstance(given, str) else given))


def _require_room(target: Path, overwrite: bool) -> None:
    """Raise `LKGError` where writing to `target` would replace what it should not."""
    if target.is_dir():
        found = sorted(path.name for path in target.iterdir())
        others = [name for name in found if name not in (CARD, *(f"{table}.parquet" for table in TABLES))]
        if others:
            raise LKGError(f"{target} holds {others[:12]}, which would be lost. Name a new or an empty folder.")
        if found and not overwrite:
            raise LKGError(
                f"{target} holds a data set already ({found}). Name a new or an empty folder, or replace it with "
                "overwrite=True (on the command line --overwrite)."
            )
    elif target.exists():
        raise LKGError(f"{target} is a file. Name a new or an empty folder.")


def _write_interactions(raw: RawDataset, path: Path) -> tuple[int, set[str]]:
    """Write the interactions batch by batch; returns how many users there are, and the items."""
    users: list[np.ndarray] = []
    items: set[str] = set()
    with pq.ParquetWriter(path, SCHEMA) as writer:
        for batch in raw.batches():
            writer.write_batch(batch)
            ids = batch.column(USER_ID).unique().to_numpy(zero_copy_only=False)
            users.append(pd.util.hash_array(ids))  # two of ten million are the same once in 300,000 times
            items.update(batch.column(ITEM_ID).unique().to_pylist())
    return len(np.unique(np.concatenate(users))), items


def _items_table(items: ItemTable) -> pa.Table:
    changed = sorted(relation for relation in items.attributes if relation != relation.upper())
    if changed:
        raise LKGError(
            f"The items have attributes {changed}; names of columns of items are read in capitals. Name them so: "
            f"`ItemTable.from_frame(frame)` does."
        )
    columns = {ITEM_ID: pa.array(items.ids, pa.string()), TITLE: pa.array(items.titles, pa.string())}
    columns |= {
        relation: pa.array(map(list, cells), pa.list_(pa.string())) for relation, cells in items.attributes.items()
    }
    return pa.table(columns)


def _write_triples(triples: Triples, items: ItemTable, folder: Path) -> None:
    columns = {HEAD: triples.heads, RELATION: triples.relations, TAIL: triples.tails}
    table = pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()})
    pq.write_table(table, folder / "triples.parquet")
    if dict(triples.item_of_entity) != {raw: raw for raw in items.ids}:
        links = triples.item_of_entity
        table = {ENTITY_ID: pa.array(list(links), pa.string()), ITEM_ID: pa.array(links.values(), pa.string())}
        pq.write_table(pa.table(table), folder / "links.parquet")


def _describe(path: Path) -> TableInfo:
    with pq.ParquetFile(path) as file:
        columns = ", ".join(f"`{field.name}`" for field in file.schema_arrow)
        return TableInfo(path.stem, file.metadata.num_rows, path.stat().st_size, columns)
