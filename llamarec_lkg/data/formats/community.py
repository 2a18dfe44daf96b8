"""Data sets that recommenders are often compared on, as they are downloaded: which files they are, and what their
fields mean.

Ratings are those of the source, also where 0 says that there is none (Goodreads, Book-Crossing) and where they count
plays (Last.fm). A file that says who people are is not read.
"""

from __future__ import annotations

import html
import logging
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from sys import intern
from typing import Any

import pandas as pd

from ...utils.errors import LKGError
from ..engine import Connection, Relation, connect, csv_relation, frame
from ..engine import name as sql_name
from ..interactions import typed_interactions
from ..ledger import Ledger
from ..raw_dataset import Catalogue, Format, RawDataset, folder_of, paired_files
from ..readers import read_table, record_relation, records
from ..schema import ITEM_ID, RATING, TIMESTAMP, TITLE, USER_ID, ItemTable, require_columns
from ..values import inside, records_of, spell_id, text_of, texts_of


# citation and licence
YELP_SOURCE = (
    "Yelp Inc. Yelp Open Dataset. https://www.yelp.com/dataset",
    "Yelp Dataset terms: academic use, the data may not be passed on",
)
GOODREADS_SOURCE = (
    "Mengting Wan and Julian McAuley. 2018. Item Recommendation on Monotonic Behavior Chains. RecSys 2018.\n\n"
    "Mengting Wan, Rishabh Misra, Ndapa Nakashole and Julian McAuley. 2019. Fine-Grained Spoiler Detection from "
    "Large-Scale Review Corpora. ACL 2019.",
    "UCSD Book Graph terms: academic use, no commercial use, the data may not be passed on",
)
STEAM_SOURCE = (
    "Wang-Cheng Kang and Julian McAuley. 2018. Self-Attentive Sequential Recommendation. ICDM 2018.",
    "",
)
BOOK_CROSSING_SOURCE = (
    "Cai-Nicolas Ziegler, Sean M. McNee, Joseph A. Konstan and Georg Lausen. 2005. Improving Recommendation Lists "
    "Through Topic Diversification. WWW 2005.",
    "",
)
MIND_SOURCE = (
    "Fangzhao Wu et al. 2020. MIND: A Large-scale Dataset for News Recommendation. ACL 2020.",
    "Microsoft Research license terms: research, no commercial use",
)
LASTFM_2K_SOURCE = (
    "Ivan Cantador, Peter Brusilovsky and Tsvi Kuflik. 2011. 2nd Workshop on Information Heterogeneity and Fusion in "
    "Recommender Systems (HetRec 2011). RecSys 2011.",
    "Last.fm terms: no commercial use",
)
LASTFM_1K_SOURCE = (
    "Oscar Celma. 2010. Music Recommendation and Discovery: The Long Tail, Long Fail, and Long Play in the Digital "
    "Music Space. Springer.",
    "Last.fm terms: no commercial use",
)

logger = logging.getLogger(__name__)


def yelp(path: Path) -> RawDataset:
    """`yelp_academic_dataset_review.json` and `yelp_academic_dataset_business.json`."""
    files = paired_files(path, _YELP, _json("yelp_academic_dataset_business"))
    fields = {USER_ID: "user_id", ITEM_ID: "business_id", RATING: "stars", TIMESTAMP: "date"}
    attributes = {"CATEGORY": ("categories", _commas), "CITY": ("city", _texts), "STATE": ("state", _texts)}
    return _of_records("yelp", files, fields, _Items("business_id", ("name",), attributes), YELP_SOURCE)


def goodreads(path: Path) -> RawDataset:
    """`goodreads_interactions_X.json.gz` and `goodreads_books_X.json.gz` of one genre, or those of all. An interaction
    is a book put on a shelf; its rating is 0 where it got none. Authors and series are the ids of the release."""
    files = paired_files(path, _GOODREADS, _json("goodreads_books_{}") + _json("goodreads_books"))
    fields = {USER_ID: "user_id", ITEM_ID: "book_id", RATING: "rating", TIMESTAMP: "date_added"}
    attributes = {
        "AUTHOR": ("authors", _each("author_id")),
        "SHELF": ("popular_shelves", _shelves),
        "SERIES": ("series", _texts),
        "PUBLISHER": ("publisher", _texts),
    }
    items = _Items("book_id", ("title",), attributes)
    return _of_records(f"goodreads-{files[1]}", files, fields, items, GOODREADS_SOURCE)


def steam(path: Path) -> RawDataset:
    """`steam_reviews.json.gz` and `steam_games.json.gz`, whose lines are Python dictionaries. A review is an
    interaction without a rating; the hours played, which many reviews lack, are not read."""
    files = paired_files(path, _STEAM, _json("steam_games"))
    fields = {USER_ID: "username", ITEM_ID: "product_id", TIMESTAMP: "date"}
    named = {"GENRE": "genres", "TAG": "tags", "DEVELOPER": "developer", "PUBLISHER": "publisher"}
    attributes = {relation: (key, _texts) for relation, key in named.items()}
    return _of_records("steam", files, fields, _Items("id", ("app_name", "title"), attributes), STEAM_SOURCE)


def book_crossing(path: Path) -> RawDataset:
    """`BX-Book-Ratings.csv` and `BX-Books.csv`. There are no times. A rating of 0 is a book without a rating."""
    ratings, _, books = paired_files(path, _BOOK_CROSSING, ("BX-Books.csv", "BX_Books.csv", "Books.csv"))
    fields = {USER_ID: "User-ID", ITEM_ID: "ISBN", RATING: "Book-Rating"}
    author, year, publisher = described = ("Book-Author", "Year-Of-Publication", "Publisher")

    def rows() -> pd.DataFrame:
        table = read_table(books, short_rows=True)
        require_columns(table, ["ISBN", "Book-Title", *described], books.name)
        # a few rows have title and author in one field, and all that follows in the field before its own
        shifted = ~table[year].str.fullmatch(r"\d+", na=True).astype(bool)
        table.loc[shifted, list(described)] = None
        table[year] = table[year].where(table[year] != "0")  # not known
        return table

    attributes = {"AUTHOR": (author, _texts), "YEAR": (year, _texts), "PUBLISHER": (publisher, _texts)}
    items = _Items("ISBN", ("Book-Title",), attributes)
    return _of_tables("book-crossing", (ratings, books), fields, rows, items, BOOK_CROSSING_SOURCE)


def lastfm_2k(path: Path) -> RawDataset:
    """`user_artists.dat` and `artists.dat` of HetRec 2011. There are no times. The rating is the number of plays."""
    plays, _, artists = paired_files(path, _LASTFM_2K, ("artists.dat",))
    fields = {USER_ID: "userID", ITEM_ID: "artistID", RATING: "weight"}

    def rows() -> pd.DataFrame:
        return read_table(artists, **_TABS)

    items = _Items("id", ("name",))
    return _of_tables("lastfm-2k", (plays, artists), fields, rows, items, LASTFM_2K_SOURCE, **_TABS)


def lastfm_1k(path: Path) -> RawDataset:
    """`userid-timestamp-artid-artname-traid-traname.tsv`. Each play is an interaction with its artist, who is known by
    the id of MusicBrainz or, where that is blank, by name."""
    plays, _, _ = paired_files(path, _LASTFM_1K, ("userid-timestamp-artid-artname-traid-traname.tsv{}",))

    def interactions(connection: Connection) -> Relation:
        names = (USER_ID, TIMESTAMP, "artist_id", "artist", "track_id", "track")
        given = csv_relation(connection, plays, names=names, **_TABS)
        return given.project(
            f"{USER_ID}, coalesce(nullif(trim(artist_id), ''), artist) AS {ITEM_ID}, {TIMESTAMP}, artist"
        )

    def rows() -> pd.DataFrame:
        numbered = interactions(connect()).project(f"{ITEM_ID}, artist, row_number() OVER () AS row")
        artists = numbered.aggregate(f"{ITEM_ID}, arg_min(artist, row) AS artist, min(row) AS row").order("row")
        return frame(artists, plays)

    return _dataset("lastfm-1k", interactions, plays, rows, _Items(ITEM_ID, ("artist",)), LASTFM_1K_SOURCE)


def mind(path: Path) -> RawDataset:
    """`behaviors.tsv` and `news.tsv` of one part of MIND. Each click on what was shown is an interaction, at the time
    of the impression.

    A user's `history`, which is one in all of their rows, was clicked before the part began and has no times. It is
    taken in its order, a second apart, before the first click of the part: its order is true, its times are not.
    """
    behaviors, _, news = paired_files(path, _MIND, ("news.tsv",))

    def interactions(connection: Connection) -> Relation:
        names = ("impression_id", USER_ID, TIMESTAMP, "history", "impressions")
        given = csv_relation(connection, behaviors, names=names, **_TABS)
        if not given.filter(r"regexp_matches(impressions, '-1\b')").limit(1).fetchall():
            raise LKGError(f"{behaviors} tells of no click (N1-1), as the test part. Pass the folder of another part.")
        clicked = rf"unnest(regexp_extract_all(impressions, '(\S+)-1\b', 1)) AS {ITEM_ID}"
        typed = typed_interactions(given.project(f"{USER_ID}, {clicked}, {TIMESTAMP}"), behaviors.name, Ledger())
        clicks = typed.project(f"{USER_ID}, {ITEM_ID}, {TIMESTAMP}")
        ((first,),) = clicks.aggregate(f"min({TIMESTAMP})").fetchall()
        logger.warning("The history in %s has no times: it is put in its order before the first click.", behaviors)
        past = given.project(rf"{USER_ID}, regexp_extract_all(history, '\S+') AS items, row_number() OVER () AS row")
        past = past.aggregate(f"{USER_ID}, arg_min(items, row) AS items, min(row) AS row")
        place = f"{first} - len(items) + unnest(range(len(items))) AS {TIMESTAMP}"
        past = past.project(f"{USER_ID}, unnest(items) AS {ITEM_ID}, {place}, row").order(f"row, {TIMESTAMP}")
        return past.project(f"{USER_ID}, {ITEM_ID}, {TIMESTAMP}").union(clicks)

    def rows() -> pd.DataFrame:
        names = "news_id category subcategory title abstract url title_entities abstract_entities".split()
        return read_table(news, names=names, **_TABS)

    attributes = {
        "CATEGORY": ("category", _texts),
        "SUBCATEGORY": ("subcategory", _texts),
        "MENTIONS": ("title_entities", _each("Label")),
    }
    name = f"mind-{folder_of(path).resolve().name}"
    return _dataset(name, interactions, news, rows, _Items("news_id", ("title",), attributes), MIND_SOURCE)


@dataclass(frozen=True)
class _Items:
    """What the fields of items mean.

    Args:
        id (`str`): the field with the id.
        titles: fields with a title; the first that is not blank counts.
        attributes: relation -> its field, and what takes the texts out of a cell of it.
    """

    id: str
    titles: tuple[str, ...]
    attributes: Mapping[str, tuple[str, Callable[[Any], Sequence[str]]]] = field(default_factory=dict)

    def table(self, rows: Iterable[Mapping[str, Any]], wanted: Container[str] | None, place: Path) -> ItemTable:
        """The items of some rows; of one given twice the first counts."""
        found: dict[str, dict[str, Any]] = {}
        for row in rows:
            raw = spell_id(row.get(self.id))
            if raw is None or raw in found or (wanted is not None and raw not in wanted):
                continue
            with inside(f"Item {raw!r} of {place}"):
                title = next((text for key in self.titles if (text := text_of(row.get(key)).strip())), "")
                texts = {relation: take(row.get(key)) for relation, (key, take) in self.attributes.items()}
            found[raw] = {ITEM_ID: raw, TITLE: html.unescape(title)}
            found[raw] |= {
                relation: [intern(html.unescape(text)) for text in some] for relation, some in texts.items()
            }
        if not found:
            raise LKGError(
                f"{place} has no row with {self.id!r}{' of an item with interactions' if wanted is not None else ''}. "
                "Take both files from one release."
            )
        return ItemTable.from_frame(pd.DataFrame(list(found.values())))


def _dataset(
    name: str,
    interactions: Callable[[Connection], Relation],
    place: Path,
    rows: Callable[[], pd.DataFrame | Iterable[Mapping[str, Any]]],
    items: _Items,
    source: tuple[str, str],
) -> RawDataset:
    """A data set from what reads its interactions and what reads the rows of its items."""

    def catalogue(wanted: Container[str] | None) -> Catalogue:
        found = rows()
        return items.table(found.to_dict("records") if isinstance(found, pd.DataFrame) else found, wanted, place), None

    return RawDataset(name, interactions, catalogue, *source)


def _of_records(
    name: str, files: tuple[Path, str, Path], fields: dict[str, str], items: _Items, source: tuple[str, str]
) -> RawDataset:
    """A data set of two files with a record a line. `fields`: column -> its field in the interactions."""
    events, _, place = files

    def interactions(connection: Connection) -> Relation:
        return record_relation(connection, events, fields)

    return _dataset(name, interactions, place, lambda: records(place), items, source)


def _of_tables(
    name: str,
    files: tuple[Path, Path],
    fields: dict[str, str],
    rows: Callable[[], pd.DataFrame],
    items: _Items,
    source: tuple[str, str],
    **options: Any,
) -> RawDataset:
    """A data set of two tables without times; `options` are those of `csv_relation` for the interactions."""
    events, place = files

    def interactions(connection: Connection) -> Relation:
        table = csv_relation(connection, events, **options)
        require_columns(table, list(fields.values()), events.name)
        logger.warning(
            "%s has no times: the order of its rows stands in for them. What was last, and any split by time, means "
            "no more than that order.",
            events,
        )
        columns = [f"{sql_name(old)} AS {new}" for new, old in fields.items()]
        return table.project(", ".join([*columns, f"row_number() OVER () AS {TIMESTAMP}"]))

    return _dataset(name, interactions, place, rows, items, source)


def _texts(cell: Any) -> Sequence[str]:
    """A text, or those of a list."""
    return texts_of(cell, None)


def _commas(cell: Any) -> Sequence[str]:
    return texts_of(cell, ",")


def _each(key: str) -> Callable[[Any], Sequence[str]]:
    """What takes one field of each of several records."""
    return lambda cell: texts_of([record.get(key) for record in records_of(cell)], None)


def _shelves(cell: Any) -> list[str]:
    """The shelves that most people put a book on, without those that say nothing about the book."""
    shelves = [one.get("name") for one in records_of(cell)]  # the most used come first
    return [shelf for shelf in shelves if shelf not in _NO_SUBJECT][:_SHELVES]


def _json(stem: str) -> tuple[str, ...]:
    return (f"{stem}.json.gz", f"{stem}.json")


_SHELVES = 10  # of a book
_NO_SUBJECT = {"to-read", "currently-reading", "read", "owned", "books-i-own", "favorites", "default", "to-buy",
               "library", "wish-list", "my-books", "kindle", "ebook", "ebooks", "owned-books", "i-own"}  # fmt: skip
_TABS = {"separator": "\t", "quotes": False}

_YELP = r"yelp_academic_dataset_review\.json(?:\.gz)?"
_GOODREADS = r"goodreads_interactions_(.+?)\.json(?:\.gz)?"
_STEAM = r"steam_reviews\.json(?:\.gz)?"
_BOOK_CROSSING = r"(?:BX-Book-)?Ratings\.csv"
_MIND = r"behaviors\.tsv"
_LASTFM_2K = r"user_artists\.dat"
_LASTFM_1K = r"userid-timestamp-artid-artname-traid-traname\.tsv(\.gz)?"

_BUSINESSES = r"yelp_academic_dataset_business\.json(\.gz)?"
_BOOKS = r"goodreads_books(_.+)?\.json(\.gz)?"
_BX_BOOKS = r"(?:BX[-_])?Books\.csv"
_GAMES = r"steam_games\.json(\.gz)?"

_YELP_FILES = "yelp_academic_dataset_review.json and yelp_academic_dataset_business.json"
_GOODREADS_FILES = "goodreads_interactions_X.json.gz and goodreads_books_X.json.gz"
_BX_FILES = "BX-Book-Ratings.csv and BX-Books.csv"

FORMATS = (
    Format("yelp", yelp, (_YELP, _BUSINESSES), _YELP_FILES),
    Format("goodreads", goodreads, (_GOODREADS, _BOOKS), _GOODREADS_FILES),
    Format("steam", steam, (_STEAM, _GAMES), "steam_reviews.json.gz and steam_games.json.gz"),
    Format("book-crossing", book_crossing, (_BOOK_CROSSING, _BX_BOOKS), _BX_FILES),
    Format("mind", mind, (_MIND, r"news\.tsv"), "behaviors.tsv and news.tsv"),
    Format("lastfm-2k", lastfm_2k, (_LASTFM_2K, r"artists\.dat"), "user_artists.dat and artists.dat"),
    Format("lastfm-1k", lastfm_1k, (_LASTFM_1K,), "userid-timestamp-artid-artname-traid-traname.tsv"),
)
