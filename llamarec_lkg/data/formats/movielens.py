"""The MovieLens releases as GroupLens distributes them."""

from __future__ import annotations

from collections.abc import Callable, Container
from pathlib import Path

import pandas as pd

from ...utils.errors import LKGError
from ..engine import Connection, Relation, csv_relation
from ..raw_dataset import Catalogue, Format, RawDataset, folder_of, only
from ..readers import read_lines, read_table
from ..schema import ITEM_ID, RATING, TIMESTAMP, TITLE, USER_ID, ItemTable, require_columns


MOVIELENS_CITATION = (
    "F. Maxwell Harper and Joseph A. Konstan. 2015. The MovieLens Datasets: History and Context. "
    "ACM Transactions on Interactive Intelligent Systems 5, 4: 19:1-19:19."
)

MOVIELENS_LICENSE = "GroupLens terms: research use, acknowledge the source, no commercial use without permission"
GENRE, YEAR, DIRECTOR, ACTOR = "GENRE_IS", "RELEASED_YEAR_IS", "DIRECTED_BY", "HAS_ACTOR"
NO_GENRE = ("(no genres listed)", "unknown")  # what MovieLens writes where it knows none

ML_100K_GENRES = (
    "unknown|Action|Adventure|Animation|Children's|Comedy|Crime|Documentary|Drama|Fantasy|Film-Noir|Horror|Musical|"
    "Mystery|Romance|Sci-Fi|Thriller|War|Western"
).split("|")


def movielens_latest(path: Path) -> RawDataset:
    """GroupLens' `ml-latest*`, `ml-25m` and `ml-32m`: `ratings.csv` and `movies.csv`, with actors and directors where
    a `movies_metadata.csv` (`movieId`, `directors`, `actors`) lies beside them."""
    folder = folder_of(path)

    def interactions(connection: Connection) -> Relation:
        ratings = csv_relation(connection, folder / "ratings.csv")
        require_columns(ratings, ["userId", "movieId", RATING, TIMESTAMP], "ratings.csv")
        return ratings.project(f"userId AS {USER_ID}, movieId AS {ITEM_ID}, {RATING}, {TIMESTAMP}")

    def films() -> pd.DataFrame:
        movies = read_table(folder / "movies.csv")
        require_columns(movies, _FILM, "movies.csv")
        table = _films(movies)
        if not (folder / "movies_metadata.csv").exists():
            return table
        metadata = read_table(folder / "movies_metadata.csv")
        require_columns(metadata, ["movieId", "directors", "actors"], "movies_metadata.csv")
        if (twice := metadata["movieId"].duplicated()).any():
            raise LKGError(
                f"{folder / 'movies_metadata.csv'} has movieId {metadata['movieId'][twice].iloc[0]!r} more than once. "
                "Keep one row a film."
            )
        people = metadata.rename(columns={"movieId": ITEM_ID, "directors": DIRECTOR, "actors": ACTOR})
        return table.merge(people[[ITEM_ID, DIRECTOR, ACTOR]], on=ITEM_ID, how="left")

    return _release(folder, interactions, films)


def movielens_1m(path: Path) -> RawDataset:
    """GroupLens' `ml-1m` and `ml-10m`: `ratings.dat` and `movies.dat`, separated by `::`. `users.dat` is not read: the
    library models users by what they did."""
    folder = folder_of(path)

    def interactions(connection: Connection) -> Relation:
        return csv_relation(connection, folder / "ratings.dat", names=_RATING, separator="::", quotes=False)

    def films() -> pd.DataFrame:
        rows = []
        for number, line in enumerate(read_lines(folder / "movies.dat"), 1):
            raw, _, rest = line.partition("::")
            title, separator, genres = rest.rpartition("::")
            if not separator:
                raise LKGError(
                    f"Line {number} of {folder / 'movies.dat'} is {line[:80]!r}; needed is id::title::genres. Mend "
                    "that line, or copy the file again."
                )
            rows.append((raw, title, genres))
        return _films(pd.DataFrame(rows, columns=_FILM, dtype=str))

    return _release(folder, interactions, films)


def movielens_100k(path: Path) -> RawDataset:
    """GroupLens' `ml-100k`: `u.data` and `u.item`, with the genres of `u.genre` where it is present."""
    folder = folder_of(path)

    def interactions(connection: Connection) -> Relation:
        return csv_relation(connection, folder / "u.data", names=_RATING, separator="\t", quotes=False)

    def films() -> pd.DataFrame:
        genres = ML_100K_GENRES
        if (folder / "u.genre").exists():
            genres = [line.rpartition("|")[0] for line in read_lines(folder / "u.genre")]
        rows = []
        for number, line in enumerate(read_lines(folder / "u.item"), 1):
            fields = line.split("|")
            flags = fields[5:]
            if len(flags) != len(genres):
                raise LKGError(
                    f"Line {number} of {folder / 'u.item'} has {len(fields)} fields; needed are 5 and one for each of "
                    f"the {len(genres)} genres. Mend that line, or take u.genre of the same release or none."
                )
            rows.append((fields[0], fields[1], "|".join(g for g, on in zip(genres, flags, strict=True) if on == "1")))
        return _films(pd.DataFrame(rows, columns=_FILM, dtype=str))

    return _release(folder, interactions, films)


def _release(
    folder: Path, interactions: Callable[[Connection], Relation], films: Callable[[], pd.DataFrame]
) -> RawDataset:
    """A release from what reads its ratings and what reads its films."""

    def catalogue(wanted: Container[str] | None) -> Catalogue:
        return only(ItemTable.from_frame(films()), wanted), None

    return RawDataset(folder.resolve().name, interactions, catalogue, MOVIELENS_CITATION, MOVIELENS_LICENSE)


def _films(movies: pd.DataFrame) -> pd.DataFrame:
    """The items table of a MovieLens release. The year is the last parenthesis of the title, but for a "(V)" that
    marks films made for video."""
    ids, titles, genres = (movies[column] for column in _FILM)
    years = titles.str.extract(r"\((\d{4})\)\s*(?:\(V\)\s*)?$")[0]
    return pd.DataFrame({ITEM_ID: ids, TITLE: titles, GENRE: genres.mask(genres.isin(NO_GENRE)), YEAR: years})


_RATING = (USER_ID, ITEM_ID, RATING, TIMESTAMP)
_FILM = ["movieId", "title", "genres"]
_LATEST = "ml-latest, ml-latest-small, ml-20m, ml-25m, ml-32m"
_CSV = (r"ratings\.csv", r"movies\.csv")
_DAT = (r"ratings\.dat", r"movies\.dat")

FORMATS = (
    Format("movielens-latest", movielens_latest, _CSV, f"{_LATEST}: ratings.csv and movies.csv"),
    Format("movielens-1m", movielens_1m, _DAT, "ml-1m: ratings.dat and movies.dat"),
    Format("movielens-10m", movielens_1m, _DAT, "ml-10m: files as of ml-1m, which the same reader takes"),
    Format("movielens-100k", movielens_100k, (r"u\.data", r"u\.item"), "ml-100k: u.data and u.item"),
)
