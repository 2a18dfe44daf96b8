"""The formats that recommendation data comes in, each opened by one function as a `RawDataset`: interactions that can
be read batch by batch, and the catalogue of items with the facts about them."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from huggingface_hub.repocard import RepoCard
from yaml import YAMLError

from .raw_files import BATCH_ROWS, csv_batches, parquet_batches, read_lines, read_table
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

        return cls(
            bundle.name,
            batches,
            lambda wanted: (only(bundle.items, wanted), bundle.triples),
            bundle.citation,
            bundle.license,
        )

    def to_bundle(self) -> DatasetBundle:
        """Read everything.

        Raises:
            LKGDataError: a file is damaged, or a table lacks what it needs.
        """
        frames = list(self.batches())
        frame = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=list(INTERACTION_COLUMNS))
        items, triples = self.catalogue(None)
        return DatasetBundle(
            self.name, Interactions.from_frame(frame), items, triples, citation=self.citation, license=self.license
        )


# -- plain tables -----------------------------------------------------------------------------------------------------


def tables(path: Path) -> RawDataset:
    """`interactions`, `items` and, if any, `triples` and `links` tables, each as parquet or csv: what `convert` of
    the command line and `push_dataset` write. Citation and licence are those of the card beside them."""
    folder = folder_of(path)
    interactions = _table(folder, "interactions", needed=True)

    def batches() -> Iterator[pd.DataFrame]:
        if interactions.suffix == ".parquet":
            yield from parquet_batches(interactions, (USER_ID, ITEM_ID, TIMESTAMP), optional=(RATING,))
        else:
            yield from map(_plain_ids, csv_batches(interactions, dtype=ID_TYPES))

    def catalogue(wanted: Container[str] | None) -> Catalogue:
        found = {name: _table(folder, name, needed=name == "items") for name in ("items", "triples", "links")}
        frames = {name: _plain_ids(read_table(file, dtype=ID_TYPES)) for name, file in found.items() if file}
        items, triples = catalogue_of_tables(**frames)
        return only(items, wanted), triples

    return RawDataset(folder.resolve().name, batches, catalogue, **read_source(folder / CARD))


def catalogue_of_tables(
    items: pd.DataFrame, triples: pd.DataFrame | None = None, links: pd.DataFrame | None = None
) -> Catalogue:
    """Items and triples from tables in memory. `links` says which entity (`entity_id`) is which item (`item_id`);
    without it, a head or tail that equals an item id is that item."""
    table = ItemTable.from_frame(items)
    if triples is None:
        return table, None
    if links is None:
        return table, Triples.from_frame(triples, {raw: raw for raw in table.ids})
    return table, Triples.from_frame(triples, _links(links, "links"))


def only(items: ItemTable, wanted: Container[str] | None) -> ItemTable:
    """The rows of the items in `wanted`; all where it is None."""
    return items if wanted is None else items.select([raw for raw in items.ids if raw in wanted])


def folder_of(path: Path) -> Path:
    return path if path.is_dir() else path.parent


def read_source(card: Path) -> dict[str, str]:
    """Citation and licence from the card (`README.md`) beside some tables, empty where it has none or is absent.

    Raises:
        LKGDataError: the card's metadata is no YAML.
    """
    if not card.exists():
        return {"citation": "", "license": ""}
    try:
        data = RepoCard(card.read_text(encoding="utf-8"), ignore_metadata_errors=True).data
    except (ValueError, YAMLError) as error:
        raise LKGDataError(f"The metadata of {card} cannot be read ({error}). Mend or delete the card.") from error
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


def _table(folder: Path, name: str, needed: bool = False) -> Path | None:
    found = next((path for suffix in ("parquet", "csv") if (path := folder / f"{name}.{suffix}").exists()), None)
    if needed and found is None:
        raise LKGDataError(f"{folder} holds no {name}.parquet or {name}.csv. Put the table there.")
    return found


def _plain_ids(frame: pd.DataFrame) -> pd.DataFrame:
    """Ids that a table writer turned into floats ("7.0") as they were ("7")."""
    for column in ID_TYPES.keys() & set(frame.columns):
        values = frame[column]
        if pd.api.types.is_string_dtype(values) and values.str.fullmatch(r"-?\d+\.0", na=False).all():
            frame[column] = values.str.removesuffix(".0")
    return frame


def _links(frame: pd.DataFrame, table: str) -> dict[str, str]:
    require_columns(frame, [ITEM_ID, ENTITY_ID], table)
    return dict(zip(as_id_strings(frame[ENTITY_ID]), as_id_strings(frame[ITEM_ID]), strict=True))


# -- RecBole ----------------------------------------------------------------------------------------------------------


def recbole_atomic(path: Path, name: str | None = None) -> RawDataset:
    """RecBole atomic files: `*.inter`, `*.item`, optionally `*.kg` and `*.link`. `token_seq` columns other than the
    title hold several values, separated by spaces.

    Args:
        path: the folder, or its `.inter` file.
        name: the files' common name; by default that of the first `.inter` file.
    """
    folder = folder_of(path)
    files = [path] if path.is_file() else sorted(folder.glob("*.inter"))
    if name is None and not files:
        raise LKGDataError(f"{folder} holds no *.inter file. RecBole data needs one, and an *.item file.")
    name = name or files[0].stem

    def catalogue(wanted: Container[str] | None) -> Catalogue:
        items = _atomic(read_table(folder / f"{name}.item", **_ATOMIC))
        title_column = next((column for column in items.columns if column.endswith("title")), None)
        if title_column is None:
            raise LKGDataError(f"{name}.item has columns {list(items.columns)}; one must end with 'title'.")
        renames = {"class": GENRE, "release_year": YEAR}
        attributes = {c: renames.get(c, c.upper()) for c in items.columns if c not in (ITEM_ID, title_column)}
        table = ItemTable.from_frame(items.rename(columns={title_column: TITLE}), attributes)
        triples = None
        if (folder / f"{name}.kg").exists():
            links = _links(_atomic(read_table(folder / f"{name}.link", **_ATOMIC)), f"{name}.link")
            facts = _atomic(read_table(folder / f"{name}.kg", **_ATOMIC))
            names = {"head_id": HEAD, "relation_id": RELATION, "tail_id": TAIL}
            triples = Triples.from_frame(facts.rename(columns=names), links)
        return only(table, wanted), triples

    return RawDataset(name, lambda: map(_atomic, csv_batches(folder / f"{name}.inter", **_ATOMIC)), catalogue)


# tab separated, whose header reads `column:type`; a quotation mark is a letter like any other
_ATOMIC = {"sep": "\t", "dtype": str, "na_values": None, "quoting": csv.QUOTE_NONE}


def _atomic(frame: pd.DataFrame) -> pd.DataFrame:
    for column in frame.columns:
        if column.endswith(":token_seq") and not column.startswith(("title", "movie_title")):
            frame[column] = frame[column].str.replace(" ", "|")
    frame.columns = [column.split(":")[0] for column in frame.columns]
    return frame


# -- MovieLens --------------------------------------------------------------------------------------------------------


def movielens_latest(path: Path) -> RawDataset:
    """GroupLens' `ml-latest*`, `ml-25m` and `ml-32m`: `ratings.csv` and `movies.csv`, with actors and directors where
    a `movies_metadata.csv` (`movieId`, `directors`, `actors`) lies beside them."""
    folder = folder_of(path)
    columns = {"userId": USER_ID, "movieId": ITEM_ID}

    def batches() -> Iterator[pd.DataFrame]:
        for frame in csv_batches(folder / "ratings.csv", dtype=dict.fromkeys(columns, str)):
            yield frame.rename(columns=columns)

    def catalogue(wanted: Container[str] | None) -> Catalogue:
        movies = read_table(folder / "movies.csv", dtype={"movieId": str})
        require_columns(movies, ["movieId", "title", "genres"], "movies.csv")
        items = _films(movies["movieId"], movies["title"], movies["genres"])
        relations = [GENRE, YEAR]
        if (folder / "movies_metadata.csv").exists():
            metadata = read_table(folder / "movies_metadata.csv", dtype={"movieId": str})
            require_columns(metadata, ["movieId", "directors", "actors"], "movies_metadata.csv")
            people = metadata.rename(columns={"movieId": ITEM_ID, "directors": DIRECTOR, "actors": ACTOR})
            items = items.merge(people[[ITEM_ID, DIRECTOR, ACTOR]], on=ITEM_ID, how="left")
            relations += [DIRECTOR, ACTOR]
        return only(ItemTable.from_frame(items, {relation: relation for relation in relations}), wanted), None

    return RawDataset(folder.resolve().name, batches, catalogue, MOVIELENS_CITATION, MOVIELENS_LICENSE)


def movielens_1m(path: Path) -> RawDataset:
    """GroupLens' `ml-1m` and `ml-10m`: `ratings.dat` and `movies.dat`, separated by `::`. What `users.dat` says about
    people is not read: the library models users by what they did."""
    folder = folder_of(path)

    def batches() -> Iterator[pd.DataFrame]:
        # four numbers, so that splitting at each ":" is right and three times as fast as at "::"
        yield from csv_batches(
            folder / "ratings.dat", sep=":", header=None, usecols=[0, 2, 4, 6],
            names=[USER_ID, "_1", ITEM_ID, "_2", RATING, "_3", TIMESTAMP], dtype=ID_TYPES,
        )  # fmt: skip

    def catalogue(wanted: Container[str] | None) -> Catalogue:
        rows = []
        for number, line in enumerate(read_lines(folder / "movies.dat"), 1):
            raw, _, rest = line.partition("::")
            title, separator, genres = rest.rpartition("::")
            if not separator:
                raise LKGDataError(
                    f"Line {number} of {folder / 'movies.dat'} is {line[:80]!r}; needed is id::title::genres. Is the "
                    "file whole? Make or copy it again."
                )
            rows.append((raw, title, genres))
        return only(ItemTable.from_frame(_films(*_columns(rows)), {GENRE: GENRE, YEAR: YEAR}), wanted), None

    return RawDataset(folder.resolve().name, batches, catalogue, MOVIELENS_CITATION, MOVIELENS_LICENSE)


def movielens_100k(path: Path) -> RawDataset:
    """GroupLens' `ml-100k`: `u.data` and `u.item`, with the genres of `u.genre` where it is present. What `u.user`
    says about people is not read, as in `movielens_1m`."""
    folder = folder_of(path)

    def catalogue(wanted: Container[str] | None) -> Catalogue:
        genres = ML_100K_GENRES
        if (folder / "u.genre").exists():
            genres = [line.rpartition("|")[0] for line in read_lines(folder / "u.genre")]
        rows = []
        for number, line in enumerate(read_lines(folder / "u.item"), 1):
            fields = line.split("|")
            flags = fields[5:]
            if len(flags) != len(genres):
                raise LKGDataError(
                    f"Line {number} of {folder / 'u.item'} has {len(fields)} fields; needed are 5 and one for each of "
                    f"the {len(genres)} genres. Is the file whole? Make or copy it again."
                )
            rows.append((fields[0], fields[1], "|".join(g for g, on in zip(genres, flags, strict=True) if on == "1")))
        return only(ItemTable.from_frame(_films(*_columns(rows)), {GENRE: GENRE, YEAR: YEAR}), wanted), None

    return RawDataset(
        folder.resolve().name,
        lambda: csv_batches(
            folder / "u.data", sep="\t", header=None, names=[USER_ID, ITEM_ID, RATING, TIMESTAMP], dtype=ID_TYPES
        ),
        catalogue,
        MOVIELENS_CITATION,
        MOVIELENS_LICENSE,
    )


def _columns(rows: list[tuple[str, ...]]) -> list[pd.Series]:
    frame = pd.DataFrame(rows, columns=["id", "title", "genres"], dtype=str)
    return [frame[column] for column in frame.columns]


def _films(ids: pd.Series, titles: pd.Series, genres: pd.Series) -> pd.DataFrame:
    """The items table of a MovieLens release. The year is the last parenthesis of the title, but for a "(V)" that
    marks films made for video."""
    years = titles.str.extract(r"\((\d{4})\)\s*(?:\(V\)\s*)?$")[0]
    return pd.DataFrame({ITEM_ID: ids, TITLE: titles, GENRE: genres.mask(genres.isin(NO_GENRE)), YEAR: years})
