"""Interactions too many for memory: read batch by batch, and filtered while only two numbers of each are held."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pyarrow as pa
from huggingface_hub.errors import HTTPError

from ..utils.errors import LKGError
from .convert import open_raw
from .k_core import _filtered
from .known_datasets import KNOWN_DATASETS
from .raw_dataset import RawDataset, record_batches
from .readers import BATCH_ROWS
from .sources import HUB_ID, load_dataset_bundle


def stream_interactions(
    name_or_path: str | Path,
    *,
    format: str | None = None,
    revision: str | None = None,
    min_user_interactions: int = 1,
    min_item_interactions: int = 1,
    token: str | bool | None = None,
) -> Iterator[pa.RecordBatch]:
    """Iterate over the interactions of a data set without ever holding them all.

    ```python
    for batch in stream_interactions("path/to/Books.jsonl.gz"):
        print(batch.to_pandas())
    ```

    Args:
        name_or_path: as `load_dataset_bundle` takes it; a Hub data set is read over the network as it is needed.
        format: a name of `converters.FORMATS`; by default the file names tell.
        revision: branch, tag or commit of a Hub data set.
        min_user_interactions, min_item_interactions: leave out users and items with fewer, repeatedly, as
            `PreprocessingSettings` does; the source is then read twice, and sixteen bytes an interaction are held.
        token: for a private Hub data set, as `huggingface_hub` takes it; by default that of the login.

    Yields:
        Batches of up to `raw_files.BATCH_ROWS` rows in file order: `user_id` and `item_id` (string), `rating`
        (float32), `timestamp` (int64).

    Raises:
        LKGError: nothing is found there, a file is damaged, or a row lacks a value.
    """
    name = str(name_or_path)
    if Path(name_or_path).exists() or format is not None:
        batches = open_raw(name_or_path, format).batches
    elif HUB_ID.fullmatch(name) and name not in KNOWN_DATASETS:

        def batches() -> Iterator[pd.DataFrame]:
            return _hub_batches(name, revision, token)
    else:
        batches = RawDataset.from_bundle(load_dataset_bundle(name)).batches
    if max(min_user_interactions, min_item_interactions) > 1:
        batches, _ = _filtered(batches, min_user_interactions, min_item_interactions)
    return record_batches(batches())


def open_source(
    name_or_path: str | Path,
    *,
    format: str | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
) -> RawDataset:
    """A data set whose interactions need not be in memory; the arguments are those of `stream_interactions`. Only a
    known name or a Hub data set is loaded here, whole.

    Raises:
        LKGError: as `load_dataset_bundle`.
    """
    if Path(name_or_path).exists() or format is not None:
        return open_raw(name_or_path, format)
    return RawDataset.from_bundle(load_dataset_bundle(name_or_path, revision=revision, token=token))


def _hub_batches(repo_id: str, revision: str | None, token: str | bool | None = None) -> Iterator[pd.DataFrame]:
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    try:
        rows = load_dataset(repo_id, "interactions", split="train", revision=revision, token=token, streaming=True)
        for table in rows.with_format("arrow").iter(BATCH_ROWS):
            yield table.to_pandas()
    except (OSError, ValueError, HTTPError, DatasetsError) as error:
        raise LKGError(
            f"The interactions of the Hub data set {repo_id!r} could not be read ({error}). Check the id, the "
            "network and, for a private one, your login (`hf auth login`) or `token`; or pass a local folder."
        ) from error
