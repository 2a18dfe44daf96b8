"""Every refusal of data names the cause that was found, and what its message tells one to do helps.

A case has what is refused, what is said of it, and what is done instead, each remedy that the message offers alone.
All formats have the same small world in them here, which is what comes of every remedy.
"""

import ast
import gzip
import json
import shutil
import traceback
import types
import zipfile
from pathlib import Path
from typing import NamedTuple

import datasets
import networkx as nx
import pandas as pd
import pyarrow as pa
import pytest
import tiny

from llamarec_lkg import data as package
from llamarec_lkg.data import known_datasets, sources
from llamarec_lkg.data.convert import convert, open_raw
from llamarec_lkg.data.engine import connect, gathered
from llamarec_lkg.data.examples import as_examples
from llamarec_lkg.data.facts import as_triples
from llamarec_lkg.data.hidden_items import hide_items
from llamarec_lkg.data.interactions import Interactions
from llamarec_lkg.data.k_core import filtered
from llamarec_lkg.data.schema import DatasetBundle, ItemTable, RankingExample, Triples, raw_id_list
from llamarec_lkg.data.sequences import PreprocessingSettings, SequenceDataset, prepare_dataset
from llamarec_lkg.data.sources import load_dataset_bundle, stream_interactions
from llamarec_lkg.utils.errors import LKGError
from llamarec_lkg.utils.files import cache_dir
from llamarec_lkg.utils.fingerprints import hash_file


class Case(NamedTuple):
    refused: object  # what is called
    says: tuple  # parts of the message, in their order
    remedies: tuple  # what is called instead
    gives: object  # what comes of each


# What every format holds: one user, who took three items.
WORLD = ({"1": ["5", "6", "7"]}, {"5": "A", "6": "B", "7": "C"})
EVENTS = {"user_id": [1, 1, 1], "item_id": [5, 6, 7], "timestamp": [1, 2, 3]}
ITEMS = {"item_id": [5, 6, 7], "title": ["A", "B", "C"]}
FACTS = {"head": ["5"], "relation": ["MADE_BY"], "tail": ["x"]}


def case(refused, says, *remedies, gives=WORLD):
    return Case(refused, says.split(" ... "), remedies, gives)


def world(data):
    """What each user took, in the order of time, and the titles."""
    if isinstance(data, SequenceDataset):
        users = [data.user_ids[user - 1] for user in data.user_of(range(len(data.labels)))]
        events = pd.DataFrame({"user_id": users, "item_id": [data.items.ids[i - 1] for i in data.item_sequence]})
    else:
        events = data.interactions.to_frame().sort_values("timestamp", kind="stable")
    return (
        events.groupby("user_id")["item_id"].agg(list).to_dict(),
        dict(zip(data.items.ids, data.items.titles, strict=True)),
    )


# -- folders of files -------------------------------------------------------------------------------------------------


def write(path, content):
    """A file of a text, bytes or a table; None for none, {} for a folder."""
    if isinstance(content, pd.DataFrame):
        content.to_parquet(path)
    elif isinstance(content, dict):
        path.mkdir()
    elif content is not None:
        content = content.encode() if isinstance(content, str) else content
        path.write_bytes(content)


def without_schema(table):
    """The bytes of a parquet file whose schema, which lies before the last eight bytes, is overwritten."""
    content = table.to_parquet()
    length = int.from_bytes(content[-8:-4], "little")
    return content[: -8 - length] + b"\xff" * length + content[-8:]


def reading(files):
    """What makes readers of these files, some of them changed, in the current folder."""

    def changed(change=None, load=lambda: convert(".")):
        def read():
            for path in Path().iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            for name, content in {**files, **(change or {})}.items():
                write(Path(name), content)
            return world(load())

        return read

    return changed


def lines(*records):
    return "".join(f"{record if isinstance(record, str) else json.dumps(record)}\n" for record in records)


def tabs(text):
    return text.replace(",", "\t")


def rows(*cells, header=None):
    """Lines of csv, the columns of which are given: one cell for all rows, or one for each."""
    columns = [[cell] * 3 if isinstance(cell, str) else cell for cell in cells]
    return lines(*[header] * (header is not None), *(",".join(map(str, row)) for row in zip(*columns, strict=True)))


IDS, NAMES, TIMES = (5, 6, 7), ("A", "B", "C"), (1, 2, 3)
INTERACTIONS = rows("1", IDS, TIMES, header="user_id,item_id,timestamp")
TABLE = rows(IDS, NAMES, header="item_id,title")
INTER = tabs(rows("1", IDS, TIMES, header="user_id:token,item_id:token,timestamp:float"))
RATED_INTER = tabs(rows("1", IDS, "3", TIMES, header="user_id:token,item_id:token,rating:float,timestamp:float"))
ITEM = tabs(rows(IDS, NAMES, header="item_id:token,title:token_seq"))
KG = tabs(lines("head_id:token,relation_id:token,tail_id:token", "m.5,R,x"))
LINK = tabs(lines("item_id:token,entity_id:token", "5,m.5"))
RATINGS, FILMS = rows("1", IDS, "3", TIMES), rows(IDS, NAMES, "Drama")
PRODUCTS = [{"asin": str(raw), "title": title} for raw, title in zip(IDS, NAMES, strict=True)]
BUSINESSES = [{"business_id": str(raw), "name": title} for raw, title in zip(IDS, NAMES, strict=True)]
REVIEWS = [{"user_id": "1", "business_id": str(raw), "stars": 5, "date": f"2018-07-0{raw} 22:09:11"} for raw in IDS]
SHOWN = rows(IDS, "1", [f"11/15/2019 9:00:0{raw} AM" for raw in IDS], "", [f"{raw}-1 9-0" for raw in IDS])
REVIEW, BUSINESS = "yelp_academic_dataset_review.json", "yelp_academic_dataset_business.json"

tables = reading({"interactions.csv": INTERACTIONS, "items.csv": TABLE})
atomic = reading({"x.inter": INTER, "x.item": ITEM})
amazon = reading({"ratings_X.csv": RATINGS, "meta_X.json": lines(*PRODUCTS)})
yelp = reading({REVIEW: lines(*REVIEWS), BUSINESS: lines(*BUSINESSES)})
mind = reading({"behaviors.tsv": tabs(SHOWN), "news.tsv": tabs(rows(IDS, "news", "", NAMES, "", "", "", ""))})
ml_1m = reading({"ratings.dat": RATINGS.replace(",", "::"), "movies.dat": FILMS.replace(",", "::")})
ml_100k = reading(
    {"u.data": tabs(RATINGS), "u.item": rows(IDS, NAMES, "", "", "", "1").replace(",", "|"), "u.genre": "Drama|0\n"}
)
ml_latest = reading(
    {"ratings.csv": "userId,movieId,rating,timestamp\n" + RATINGS, "movies.csv": "movieId,title,genres\n" + FILMS}
)


def opened(path=".", format=None, **columns):
    """What loads a data set, of which something is said."""
    return lambda: load_dataset_bundle(path, columns=columns) if columns else convert(path, format)


def records(*lines_of_it):
    """Tables of which the interactions are such lines of json."""
    return tables({"interactions.csv": None, "interactions.jsonl": lines(*lines_of_it)})


def events(**columns):
    """Tables of which some columns of the interactions are these."""
    return tables({"interactions.csv": None, "interactions.parquet": pd.DataFrame({**EVENTS, **columns})})


EVENT_RECORDS = pd.DataFrame(EVENTS).to_dict("records")
FOLDERS = {
    # a file
    "absent": case(atomic({"x.kg": KG}), "x.link does not exist. Put it there", atomic({"x.kg": KG, "x.link": LINK})),
    "in another folder": case(
        tables(load=opened(format="movielens-1m")),
        "ratings.dat does not exist ... or pass the folder that holds it",
        ml_1m(load=opened(format="movielens-1m")),
    ),
    "a folder": case(
        tables({"interactions.csv": {}}),
        "interactions.csv is a folder; needed is a file. Join what is in it",
        tables(),
    ),
    "empty": case(tables({"items.csv": " \n"}), "items.csv is empty. Make or copy it again", tables()),
    "empty records": case(records(), "interactions.jsonl is empty. Make or copy it again", records(*EVENT_RECORDS)),
    "not packed": case(
        tables({"items.csv": None, "items.csv.gz": TABLE}),
        "items.csv.gz is not packed. Take the .gz off its name, or copy it again",
        tables(),
        tables({"items.csv": None, "items.csv.gz": gzip.compress(TABLE.encode())}),
    ),
    "cut off": case(
        tables({"items.csv": None, "items.csv.gz": gzip.compress(TABLE.encode())[:-5]}),
        "items.csv.gz cannot be read: it is damaged or cut off ... Make or copy it again",
        tables({"items.csv": None, "items.csv.gz": gzip.compress(TABLE.encode())}),
    ),
    "a parquet that is none": case(
        tables({"interactions.csv": None, "interactions.parquet": "PAR1"}),
        "interactions.parquet cannot be read: ... Parquet ... Make or copy it again",
        events(),
    ),
    "a parquet without its schema": case(
        tables({"interactions.csv": None, "interactions.parquet": without_schema(pd.DataFrame(EVENTS))}),
        "interactions.parquet cannot be read: ... thrift ... Make or copy it again",
        events(),
    ),
    "items in a parquet that is none": case(
        tables({"items.csv": None, "items.parquet": "PAR1"}),
        "items.parquet cannot be read: ... Make or copy it again",
        tables({"items.csv": None, "items.parquet": pd.DataFrame(ITEMS)}),
    ),
    # csv
    "a row without its last cell": case(
        tables({"interactions.csv": INTERACTIONS + "1,8\n"}),
        "interactions.csv cannot be read: ... Line: 5 ... 1,8 ... Columns: 3 Found: 2. Mend that place",
        tables(),
    ),
    "an open quotation mark": case(
        tables({"items.csv": TABLE + '8,"D\n'}), 'items.csv cannot be read: ... 8,"D ... unterminated quote', tables()
    ),
    "a name too few": case(
        tables({"interactions.csv": INTERACTIONS.replace("user_id,", "", 1)}),
        "interactions.csv has 2 names, its first row 3 fields: ['item_id', 'timestamp'] above ['1', '5', '1']. "
        "Give each column one name",
        tables(),
    ),
    "a comma in a title": case(
        tables({"items.csv": TABLE.replace("A", "A,")}),
        "items.csv has 2 names, its first row 3 fields: ... put what holds the separator in quotation marks",
        tables({"items.csv": TABLE.replace("A", '"A"')}),
    ),
    "a cell too few": case(
        tables({"items.csv": TABLE.replace("5,A", "5")}),
        "items.csv has 2 names, its first row 1 fields: ... above ['5']. Give the row all its fields",
        tables(),
    ),
    "a first row with an open quotation mark": case(
        tables({"items.csv": TABLE.replace("5", '"5')}), "end what a quotation mark begins by another", tables()
    ),
    "bars for commas": case(
        tables({"items.csv": TABLE.replace(",", "|")}),
        "The header of items.csv is one name, 'item_id|title'. Put commas between names and between cells",
        tables(),
    ),
    "commas for tabs": case(
        tables({"items.csv": None, "items.tsv": TABLE}),
        "The header of items.tsv is one name, 'item_id,title'. Put tabs between",
        tables({"items.csv": None, "items.tsv": tabs(TABLE)}),
    ),
    "one name twice": case(
        tables({"items.csv": "item_id,title,Title\n5,A,\n6,B,\n7,C,\n"}),
        "items.csv has columns ['Title', 'title'], which are one name here. Rename or drop all but one",
        tables({"items.csv": "item_id,title,subtitle\n5,A,\n6,B,\n7,C,\n"}),
        tables(),
    ),
    # records
    "a list of records": case(
        records(EVENT_RECORDS),
        """interactions.jsonl begins with b'[{"user_id": ... needed is a record with named fields on each line, """
        "without brackets around all. Write it so, such as with `table.to_json(path, orient='records', lines=True)`",
        records(*pd.DataFrame(EVENTS).to_json(orient="records", lines=True).splitlines()),
    ),
    "records over several lines": case(
        records(json.dumps(EVENT_RECORDS[0], indent=1)), "interactions.jsonl begins with b'{'", records(*EVENT_RECORDS)
    ),
    "a line that is no json": case(
        records(*EVENT_RECORDS, '{"user_id"'),
        """line 4 of ... interactions.jsonl is no json ... b'{"user_id"\\n'. Mend or leave out that line""",
        records(*EVENT_RECORDS),
    ),
    "half of a character": case(
        records(*EVENT_RECORDS, '{"user_id": 1, "item_id": "\\ud800"}'),
        "line 4 of ... interactions.jsonl is no json ... surrogates ... Mend or leave out that line",
        records(*EVENT_RECORDS),
    ),
    "a line that is no record": case(
        amazon({"meta_X.json": lines(*PRODUCTS, "[8]")}),
        "Line 4 of meta_X.json is a list, not a record with named fields. Mend or leave out that line",
        amazon(),
        amazon({"meta_X.json": lines(*PRODUCTS, {})}),
    ),
    "fields of another release": case(
        yelp({REVIEW: lines(*REVIEWS).replace("business_id", "item")}),
        f"The records of {REVIEW} have fields ['date', 'item', 'stars', 'user_id'] but lack ['business_id']. Rename "
        "the fields, or take the file of another release",
        yelp(),
    ),
    "a list for a text": case(
        amazon({"meta_X.json": lines(*PRODUCTS[1:], {"asin": "5", "title": ["A", "B"]})}),
        "Item '5' of meta_X.json: ['A', 'B'] stands where one text is needed. Give one",
        amazon(),
    ),
    "a text for a record": case(
        amazon({"meta_X.json": lines(*PRODUCTS[1:], {**PRODUCTS[0], "related": "none"})}),
        "Item '5' of meta_X.json: 'none' stands where a record with named fields is needed. Mend or leave it out",
        amazon({"meta_X.json": lines(*PRODUCTS[1:], {**PRODUCTS[0], "related": {}})}),
        amazon(),
    ),
    # interactions
    "another name of a column": case(
        tables({"interactions.csv": INTERACTIONS.replace("user_id", "user")}),
        "The interactions table has columns ['user', 'item_id', 'timestamp'] but lacks ['user_id'] ... rename the "
        "matching columns, or name them in `data.columns`",
        tables(),
        tables({"interactions.csv": INTERACTIONS.replace("user_id", "user")}, opened(user_id="user")),
    ),
    "a name of no column": case(
        tables({"interactions.csv": INTERACTIONS.replace("user_id", "user")}, opened(user_id="people")),
        "have no column ['people']; they have ['item_id', 'timestamp', 'title', 'user']. Name those",
        tables({"interactions.csv": INTERACTIONS.replace("user_id", "user")}, opened(user_id="user")),
    ),
    "no rows": case(
        tables({"interactions.csv": "user_id,item_id,timestamp\n"}),
        "The interactions table has no rows. At least one user with three interactions is needed",
        tables(),
    ),
    "ids that are none": case(
        events(user_id=[True] * 3),
        "Column 'user_id' of the interactions table is BOOLEAN; an id is a number or a text. Write it as one",
        events(),
        events(user_id=["1"] * 3),
    ),
    "a missing value": case(
        events(rating=[1, None, 3]),
        "Column 'rating' of the interactions table has 1 missing value(s), the first in row 1. Every row needs one: "
        "drop those rows or fill them in",
        events(rating=[1, 2, 3]),
    ),
    "a row without a time": case(
        tables({"interactions.csv": INTERACTIONS + "2,5,\n"}),
        "Column 'timestamp' of the interactions table has 1 missing value(s), the first in row 3",
        tables(),
    ),
    "a rating that is no number": case(
        events(rating=["1", "good", "2"]),
        "Column 'rating' of the interactions table holds 1 value(s) that are not numbers, the first is 'good' in row "
        "1. Leave the column out, or mend them",
        events(),
        events(rating=["1", "5", "2"]),
    ),
    "a rating too large": case(
        events(rating=[1, 1e300, 2]),
        "1 value(s) that are not numbers, the first is '1e+300' in row 1. Leave the column out, or mend them",
        events(),
        events(rating=[1, 5, 2]),
    ),
    "day or month": case(
        events(timestamp=["01/02/2024", "02/02/2024", "03/02/2024"]),
        "dates of which day, month and year cannot be told apart ... '01/02/2024' in row 0. Write all as 2024-01-31",
        events(timestamp=["2024-02-01", "2024-02-02", "2024-02-03"]),
    ),
    "dates in two orders": case(
        events(timestamp=["2024-01-31", "31/12/2024", "2025-01-01"]),
        "or that stand beside other times, the first is '31/12/2024' in row 1. Write all as 2024-01-31",
        events(timestamp=["2024-01-31", "2024-12-31", "2025-01-01"]),
    ),
    "a time too large": case(
        events(timestamp=["1", "2", "1e30"]),
        "1 value(s) that are too large for a time, the first is '1e30' in row 2. Times lie between -9.2e18 and 9.2e18",
        events(timestamp=["1", "2", "1e18"]),
    ),
    "a time without end": case(
        events(timestamp=pd.Series([1, 2, 2**63 - 1]).astype(pd.ArrowDtype(pa.timestamp("us")))),
        "1 value(s) that are no points in time, the first is 'infinity' in row 2. Leave those rows out, or give their",
        events(timestamp=["2024-01-31", "2024-02-01", "2024-02-02"]),
    ),
    "a word for a time": case(
        events(timestamp=["1", "soon", "3"]),
        "1 value(s) that are neither numbers nor dates that can be read, the first is 'soon' in row 1. Write dates as "
        "2024-01-31 10:00:00, or give seconds since 1970",
        events(timestamp=[f"2024-01-31 10:00:0{second}" for second in range(3)]),
        events(timestamp=["1", "2", "3"]),
    ),
    "dates among numbers": case(
        events(timestamp=["1", "2", "2024-01-31"]),
        "1 value(s) that are dates among numbers, the first is '2024-01-31' in row 2. Write all times one way",
        events(timestamp=["1", "2", "1706659200"]),
    ),
    "bounds that nobody meets": case(
        tables(load=lambda: filtered(open_raw("."), 4, 1).to_bundle()),
        "No interaction of 3 is left after dropping users with fewer than 4 or items with fewer than 1 interactions. "
        "Lower those bounds",
        tables(load=lambda: filtered(open_raw("."), 3, 1).to_bundle()),
    ),
    # which files
    "a place that is not there": case(
        tables(load=opened("nowhere", "tables")), "nowhere does not exist. Pass a folder of raw files", tables()
    ),
    "a format that is not known": case(
        tables(load=opened(format="csv")),
        "format='csv' was given. The formats are:\n ... tables (interactions and items",
        tables(load=opened(format="tables")),
    ),
    "half of a format": case(
        ml_1m({"movies.dat": None}),
        "is in no known format; its folder holds ['ratings.dat']. Needed is what is missing of:\n ... and movies.dat",
        ml_1m(),
    ),
    "the file of items": case(
        ml_1m(load=opened("movies.dat")),
        "movies.dat is no file of interactions; its folder is 'movielens-1m'. Pass the folder",
        ml_1m(),
    ),
    "several files of interactions": case(
        amazon({"reviews_X_5.json": "{}\n"}),
        "holds ['ratings_X.csv', 'reviews_X_5.json']; needed is one file of interactions. Pass its path",
        amazon({"reviews_X_5.json": "{}\n"}, opened("ratings_X.csv")),
    ),
    "a name of its own": case(
        yelp({REVIEW: None, "reviews.json": lines(*REVIEWS)}, opened(format="yelp")),
        "['reviews.json', 'yelp_academic_dataset_business.json'] of .: none is called as the file of interactions of "
        "this format. Name its files as those of the release",
        yelp(load=opened(format="yelp")),
    ),
    "a format of other files": case(
        tables(load=opened(format="yelp")), "none is called as ... or leave out the format", tables()
    ),
    "no file of items": case(
        yelp({BUSINESS: None}, opened(REVIEW)),
        f"holds {REVIEW} but no {BUSINESS}.gz, which has the titles. Download it from the same release",
        yelp({BUSINESS: None, f"{BUSINESS}.gz": gzip.compress(lines(*BUSINESSES).encode())}, opened(REVIEW)),
    ),
    "tables without items": case(
        tables({"items.csv": None}, opened(format="tables")),
        ". holds no items table (items.parquet, items.csv, items.tsv, items.jsonl)",
        tables(load=opened(format="tables")),
    ),
    "a card with torn metadata": case(
        tables({"README.md": "---\nlicense: [\n---\n"}),
        "The metadata of README.md cannot be read ... Mend or delete the card",
        tables(),
        tables({"README.md": "---\nlicense: mit\n---\n"}),
    ),
    # formats
    "a film without its fields": case(
        ml_1m({"movies.dat": lines("5::A", "6::B::", "7::C::")}),
        "Line 1 of movies.dat is '5::A'; needed is id::title::genres. Mend that line, or copy the file again",
        ml_1m({"movies.dat": lines("5::A::", "6::B::", "7::C::")}),
        ml_1m(),
    ),
    "genres of another release": case(
        ml_100k({"u.genre": lines("Drama|0", "Horror|1")}),
        "Line 1 of u.item has 6 fields; needed are 5 and one for each of the 2 genres. Mend that line, or take "
        "u.genre of the same release",
        ml_100k({"u.genre": lines("Drama|0", "Horror|1"), "u.item": lines("5|A||||1|0", "6|B||||0|1", "7|C||||0|0")}),
        ml_100k(),
    ),
    "people of one film twice": case(
        ml_latest({"movies_metadata.csv": "movieId,directors,actors\n5,Ann,\n5,Bob,\n"}),
        "movies_metadata.csv has movieId '5' more than once. Keep one row a film",
        ml_latest({"movies_metadata.csv": "movieId,directors,actors\n5,Ann|Bob,\n"}),
    ),
    "products of another release": case(
        amazon({"meta_X.json": lines({"parent_asin": "5", "title": "A"})}),
        "meta_X.json has no record with 'asin'. Take both files from one release and category",
        amazon(),
    ),
    "books without their id": case(
        yelp({BUSINESS: '{"id": "5", "name": "A"}\n'}),
        f"{BUSINESS} has no row with 'business_id'. Take both files from one release",
        yelp(),
    ),
    "the test part of MIND": case(
        mind({"behaviors.tsv": tabs(SHOWN).replace("-1", "").replace("-0", "")}),
        "behaviors.tsv tells of no click (N1-1), as the test part. Pass the folder of another part",
        mind(),
    ),
    "no atomic interactions": case(
        atomic({"x.inter": None}, opened(format="recbole")),
        ". holds no *.inter file. RecBole data needs one, and an *.item file",
        atomic(load=opened(format="recbole")),
    ),
    "no atomic items": case(
        atomic({"x.item": None}),
        "holds no x.item, which has the titles. It needs item_id:token and one of ('title', 'item_name', 'name')",
        atomic(),
        atomic({"x.item": ITEM.replace("title:", "name:")}),
    ),
    "several atomic data sets": case(
        atomic({"y.inter": INTER}),
        "holds several data sets: ['x', 'y']. Pass the path of one .inter file",
        atomic({"y.inter": INTER}, opened("x.inter")),
    ),
    "atomic parts that differ": case(
        atomic({"x.inter": None, "x.train.inter": INTER, "x.test.inter": RATED_INTER}),
        "['x.train.inter', 'x.test.inter'] have different columns. Give all of them the same",
        atomic({"x.inter": None, "x.train.inter": INTER, "x.test.inter": INTER.partition("\n")[0]}),
        atomic({"x.inter": None, "x.train.inter": RATED_INTER, "x.test.inter": RATED_INTER.partition("\n")[0]}),
    ),
    "atomic interactions without times": case(
        atomic({"x.inter": tabs("user_id:token,item_id:token\n1,5\n1,6\n1,7\n")}),
        "x.inter has columns ['user_id', 'item_id'], of which none is timestamp. Add ['timestamp']; without times, "
        "number the rows in their order",
        atomic(),
    ),
    "atomic items without titles": case(
        atomic({"x.item": ITEM.replace("title:", "label:")}),
        "x.item has columns ['item_id', 'label']; needed are an id ... and a title ... Rename the columns",
        atomic(),
    ),
}


# -- what is in memory ------------------------------------------------------------------------------------------------


def items(attribute_columns=None, **columns):
    """The world with an items table of which some columns are these."""

    def take():
        frame = pd.DataFrame({**ITEMS, **columns})
        return world(
            DatasetBundle(
                "", Interactions.from_frame(pd.DataFrame(EVENTS)), ItemTable.from_frame(frame, attribute_columns)
            )
        )

    return take


ITEM_TABLE = ItemTable.from_frame(pd.DataFrame(ITEMS))
FACT = [["5", "MADE_BY", "x"]]


def facts(**columns):
    return lambda: Triples.by_item_ids(pd.DataFrame({**FACTS, **columns}), ITEM_TABLE.ids).to_frame().values.tolist()


def graph(**attributes):
    source = nx.DiGraph()
    source.add_edge("5", "x", **attributes)
    return lambda: as_triples(source, ITEM_TABLE).to_frame().values.tolist()


def facts_in(name, content):
    def take():
        write(Path(name), content)
        return as_triples(name, ITEM_TABLE).to_frame().values.tolist()

    return take


def linked(head, links=None):
    """The item that a fact in a folder of tables is about, by its name or by a table of links."""
    files = {"triples.parquet": pd.DataFrame({**FACTS, "head": [head]})}
    if links is not None:
        files["links.parquet"] = pd.DataFrame(links, columns=["entity_id", "item_id"], dtype=str)

    def take():
        tables(files)()
        triples = convert(".").triples
        return triples.item_of_entity[triples.heads[0]]

    return take


def in_memory_items(titles):
    items = {"item_id": list(ITEMS["item_id"]), "title": titles}
    return world(load_dataset_bundle({"interactions": EVENTS, "items": items}))


def in_memory(interactions):
    return lambda: world(load_dataset_bundle({"interactions": interactions, "items": ITEMS}))


def prepared(taken=EVENTS, titled=ITEMS, **settings):
    settings = {"min_user_interactions": 1, "min_item_interactions": 1, **settings}
    interactions = Interactions.from_frame(pd.DataFrame(taken))
    bundle = DatasetBundle("small", interactions, ItemTable.from_frame(pd.DataFrame(titled)))
    return lambda: SequenceDataset.from_bundle(bundle, PreprocessingSettings(**settings))


def of(make):
    return lambda: world(make())


def saved(*changes):
    """Prepared data that were kept, and then changed."""

    def take():
        shutil.rmtree(cache_dir() / "prepared", ignore_errors=True)
        bundle = DatasetBundle("small", Interactions.from_frame(pd.DataFrame(EVENTS)), ITEM_TABLE)
        settings = PreprocessingSettings(min_user_interactions=1, min_item_interactions=1)
        prepare_dataset(bundle, settings)
        (folder,) = (cache_dir() / "prepared").iterdir()
        for change in changes:
            change(folder)
        return world(prepare_dataset(bundle, settings))

    return take


def torn(folder):
    (folder / "sequences.safetensors").write_bytes(b"")


def older(folder):
    description = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps({**description, "format_version": 1}))


LATE = {"user_id": [1, 1, 1, 2], "item_id": [5, 6, 7, 5], "timestamp": [1, 2, 3, 9]}


def settings(**given):
    return lambda: bool(PreprocessingSettings(**given))


def hidden(share):
    return lambda: int(hide_items(prepared()(), share)[1].sum())


def lists(given):
    return lambda: [example.candidates.tolist() for example in as_examples(given)]


def of_raw_ids():
    """What the message on text among dense ids says to call."""
    dataset = prepared()()
    return [tiny.processor(dataset).example(["5"], ["6", "7"]).candidates.tolist()]


LIST = {"history": [1], "candidates": [2, 3]}
LISTS = datasets.Dataset.from_list([LIST])


def hub(configs=("interactions", "items"), error=None, load=lambda: load_dataset_bundle("owner/data")):
    """A data set with such configs on the Hub, or what its absence raises; nothing is fetched."""

    def answer(repo, name=None, **how):
        if error:
            raise error
        return types.SimpleNamespace(to_pandas=lambda: pd.DataFrame({"interactions": EVENTS, "items": ITEMS}[name]))

    def take():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("datasets.get_dataset_config_names", lambda repo, **how: error and answer(repo) or configs)
            patch.setattr("datasets.load_dataset", answer)
            patch.setattr(sources, "_fetch_card", lambda repo, **how: {})
            return world(load())

    return take


def streamed(source):
    """What is streamed, as a data set."""
    table = pd.concat([batch.to_pandas() for batch in stream_interactions(source)])
    return DatasetBundle("", Interactions.from_frame(table), ITEM_TABLE)


def downloaded(change="", load=lambda: load_dataset_bundle("ml-latest-small")):
    """ml-latest-small, which is the small world here, with changed files in the archive that the cache holds."""

    def take():
        ml_latest()()
        sums = {name: hash_file(name, text=True) for name in ("ratings.csv", "movies.csv")}
        archive = cache_dir() / "downloads" / "ml-latest-small.zip"
        archive.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(archive, "w") as zipped:
            for name in sums:
                zipped.writestr(f"ml-latest-small/{name}", Path(name).read_text() + change)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(known_datasets, "ML_LATEST_SMALL_SHA256", sums)
            return world(load())

    return take


def remembering(limit):
    """What loads a folder with so much memory."""

    def load():
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("LLAMAREC_LKG_MEMORY", limit)
            return convert(".")

    return load


VALUES = {
    "a memory that is no size": case(
        tables(load=remembering("lots")),
        "LLAMAREC_LKG_MEMORY='lots' is no size. Set it to one such as '4GB'",
        tables(load=remembering("4GB")),
    ),
    "a memory too small": case(
        tables(load=remembering("1MB")),
        "Out of Memory ... Let LLAMAREC_LKG_MEMORY name more memory",
        tables(load=remembering("4GB")),
    ),
    "bytes that are no text": case(
        events(user_id=[b"\xff\x01"] * 3),
        "cannot be read: a column is bytes that are no text in UTF-8. Write it as text, such as an id by "
        "`value.hex()`",
        events(user_id=[b"\xff\x01".hex()] * 3),
        gives=({"ff01": ["5", "6", "7"]}, WORLD[1]),
    ),
    # items
    "a title in bytes that are no text": case(
        items(title=["A".encode("utf-16"), "B", "C"]),
        r"Column 'title' of the items table, row 0: b'\xff\xfeA\x00' is bytes that are no "
        "text in UTF-8. Write it as text",
        items(),
    ),
    "a missing title": case(
        items(item_id=[5, 6, 7, 8], title=["A", "B", "C", None]),
        "Column 'title' of the items table has 1 missing value(s), the first in row 3. Every row needs one: drop "
        "those rows or fill them in",
        items(),
    ),
    "a list for a title": case(
        items(title=["A", ["B", "C"], "C"]),
        "Column 'title' of the items table, row 1: ['B', 'C'] stands where one text is needed. Give one",
        items(),
    ),
    "an item twice": case(
        items(item_id=[5, 6, 7, 7.0], title=["A", "B", "C", "D"]),
        "Item id '7' appears more than once in the items table (1 repeated rows). Keep one row an item",
        items(),
    ),
    "two columns of one relation": case(
        items(Genre=["x"] * 3, genre=["y"] * 3),
        "The columns ['Genre', 'genre'] of the items table both become the relation 'GENRE'. Rename one of them, or "
        "join their values in one column",
        items(Genre=["x"] * 3, mood=["y"] * 3),
        items(genre=["x|y"] * 3),
    ),
    "a column called as what people did": case(
        items(rated=["PG"] * 3),
        "A relation is called 'RATED', the library's name for what interactions say. Rename the column of the items "
        "table, or name its relation otherwise with `attribute_columns`",
        items(certificate=["PG"] * 3),
        items({"rated": "CERTIFICATE"}, rated=["PG"] * 3),
    ),
    "an attribute that is not there": case(
        items({"genre": "GENRE"}),
        "`attribute_columns` names ['genre']; the items table has columns ['item_id', 'title']. Name some of these",
        items({}),
    ),
    # facts
    "a fact called as what people did": case(
        facts(relation=["RATED"]),
        "A relation is called 'RATED', the library's name for what interactions say. Rename the relation in the "
        "triples; if they say who rated what, leave them out",
        facts(relation=["MADE_BY"]),
        gives=FACT,
    ),
    "a fact without its tail": case(
        facts(tail=[None]), "Column 'tail' of the triples table has 1 missing value(s)", facts(), gives=FACT
    ),
    "an edge without a relation": case(
        graph(kind="MADE_BY"),
        "Edge '5' -> 'x' has attributes ['kind'] but no 'relation'. Every edge needs one: `graph.add_edge(a, b, "
        "relation='DIRECTED_BY')`",
        graph(relation="MADE_BY"),
        gives=FACT,
    ),
    "an edge of no relation": case(
        graph(relation=None),
        "Column 'relation' of the triples table has 1 missing value(s)",
        graph(relation="MADE_BY"),
        gives=FACT,
    ),
    "an edge of two relations": case(
        graph(relation=["MADE_BY", "SOLD_BY"]),
        "Column 'relation' of the triples table, row 0: ['MADE_BY', 'SOLD_BY'] stands where one text "
        "is needed. Give one",
        graph(relation="MADE_BY"),
        gives=FACT,
    ),
    "facts in a list": case(
        lambda: as_triples(FACT, ITEM_TABLE),
        "Facts were given as a list. Give a networkx graph, a table (head, relation, tail) or the path of one",
        facts(),
        graph(relation="MADE_BY"),
        facts_in("facts.csv", "head,relation,tail\n5,MADE_BY,x\n"),
        gives=FACT,
    ),
    "facts in a file of no kind": case(
        facts_in("facts.txt", "5 MADE_BY x"),
        "facts.txt is no .csv, .tsv or .parquet (head, relation, tail) nor .graphml by its name. Write the "
        "facts as one of these",
        facts_in("facts.csv", "head,relation,tail\n5,MADE_BY,x\n"),
        facts_in("facts.parquet", pd.DataFrame(FACTS)),
        gives=FACT,
    ),
    "a graph that is cut off": case(
        facts_in("facts.graphml", "<graphml>"),
        "facts.graphml cannot be read as graphml ( ... Make or copy it again",
        facts_in("facts.graphml", "\n".join(nx.generate_graphml(nx.DiGraph([("5", "x", {"relation": "MADE_BY"})])))),
        gives=FACT,
    ),
    "facts that name items otherwise": case(
        linked("m.5"),
        "None of the 1 facts is about an item: they name 'm.5', 'x', the items are '5', '6', '7'. Spell them alike, "
        "or say in a table `links` (`entity_id`, `item_id`) which is which",
        linked("5"),
        linked("m.5", links=[("m.5", "5")]),
        gives="5",
    ),
    "links that are none": case(
        linked("m.5", links=[]), "say in a table `links`", linked("m.5", links=[("m.5", "5")]), gives="5"
    ),
    "links of another edition": case(
        linked("m.5", links=[("n.5", "5")]),
        "links lead from 'n.5' to '5', and the items are '5', '6', '7'. Take facts, links and items of one edition, "
        "spelled alike, or leave out both facts and links",
        linked("n.5", links=[("n.5", "5")]),
        linked("m.5", links=[("m.5", "5")]),
        gives="5",
    ),
    # preparation
    "a split that is not known": case(
        settings(split="random"),
        "split='random' and targets='first' were given; split is 'leave-one-out' or 'time', targets 'first' or 'all'",
        settings(split="time", targets="all"),
        gives=True,
    ),
    "parts that leave nothing": case(
        settings(split="time", test_fraction=1.0),
        "are (0.1, 1.0); neither is below 0, and their sum, here 1.1, must lie between 0 and 1",
        settings(split="time", test_fraction=0.8),
        gives=True,
    ),
    "ties that are not known": case(
        settings(ties="random"),
        "ties='random' was given; it is 'shuffled' (by the seed), 'file' (as in the source) or 'item_id' (as "
        "published)",
        *(settings(ties=ties) for ties in ("shuffled", "file", "item_id")),
        gives=True,
    ),
    "no such rule for repeats": case(
        settings(repeats="yes"),
        "repeats='yes' was given; it is 'excluded' (what is in a history",
        *(settings(repeats=repeats) for repeats in ("excluded", "allowed")),
        gives=True,
    ),
    "several last ones of a time split": case(
        settings(split="time", last=2),
        "last=2 was given with split='time'; it is the number of test targets of each user in leave-one-out, 1 or "
        "more. For a time split, leave it at 1 and set `targets` to 'all'",
        settings(split="time", targets="all"),
        settings(split="leave-one-out", last=2),
        gives=True,
    ),
    "bounds that leave nothing": case(
        of(prepared(min_user_interactions=4)),
        "of 3 interactions 0 are kept. Left out: 3 of users with fewer than 4 ... Lower those bounds",
        of(prepared(min_user_interactions=3)),
    ),
    "items that have no row": case(
        of(prepared(titled={"item_id": [8], "title": ["D"]})),
        "Left out: 3 of items that have no row in the item table. ... complete the item table",
        of(prepared()),
    ),
    "ratings too low": case(
        of(prepared(min_rating=6.0)),
        "Left out: 3 rated below 6.0. ... Lower those bounds",
        of(prepared(min_rating=1.0)),
    ),
    "sequences too short": case(
        lambda: prepared({**EVENTS, "user_id": [1, 1, 2]})().num_users,
        "There is no test target. No user has three interactions, the longest sequence is of 2. Leave-one-out needs "
        "more of some user; or set `split` to 'time'",
        lambda: prepared({**EVENTS, "user_id": [1, 1, 1]})().num_users,
        lambda: prepared({**EVENTS, "user_id": [2, 1, 1]}, split="time")().num_users - 1,
        gives=1,
    ),
    "nobody on both sides of a time": case(
        of(prepared(LATE, split="time")),
        "There is no test target. No user has interactions before the last 10% and in it. Change `test_fraction`, or "
        "set `split` to 'leave-one-out'",
        of(prepared(LATE, split="time", test_fraction=0.5)),
        of(prepared(LATE)),
        gives=({"1": ["5", "6", "7"], "2": ["5"]}, WORLD[1]),
    ),
    "prepared data that are damaged": case(
        saved(torn), "is damaged ( ... Delete the folder and prepare it again", saved(torn, shutil.rmtree)
    ),
    "prepared data of an older version": case(
        saved(older),
        "holds prepared data in format 1; this version reads 6. Prepare the data again",
        saved(older, shutil.rmtree),
    ),
    "nothing to hide": case(
        hidden(0.1),
        "share=0.1 of 3 items are 0. Give a share that hides one item at least, and not all",
        hidden(0.33),
        gives=1,
    ),
    # lists to rank
    "a dictionary of columns": case(
        lists({"history": [[1]], "candidates": [[2, 3]]}),
        "examples is a dictionary with ['candidates', 'history']; it needs to be one data set. Make rows of its "
        "columns: `datasets.Dataset.from_dict(...)`",
        lists(datasets.Dataset.from_dict({"history": [[1]], "candidates": [[2, 3]]})),
        gives=[[2, 3]],
    ),
    "a dictionary of data sets": case(
        lists(datasets.DatasetDict(train=LISTS)),
        "a dictionary with ['train'] ... Give one of them",
        lists(LISTS),
        gives=[[2, 3]],
    ),
    "a name of a data set": case(
        lists("lists.json"),
        "examples is 'lists.json'; it needs a data set: a list of RankingExample, a `datasets.Dataset` ... Load it",
        lists(LISTS),
        lists([RankingExample.from_mapping(LIST)]),
        gives=[[2, 3]],
    ),
    "a table": case(
        lists(LISTS.to_pandas()),
        "Row 0 of examples is 'history', a str; a row is a RankingExample, or a mapping with 'history' and "
        "'candidates' in dense ids. Of a table, give `datasets.Dataset.from_pandas(table)`",
        lists(datasets.Dataset.from_pandas(LISTS.to_pandas())),
        gives=[[2, 3]],
    ),
    "rows in a format of their own": case(
        lists(LISTS.with_format("arrow")),
        "a Table; a row is ... of a `datasets.Dataset` with a format of its own, `dataset.with_format(None)`",
        lists(LISTS.with_format("arrow").with_format(None)),
        gives=[[2, 3]],
    ),
    "a list without candidates": case(
        lists([LIST, {"history": [1]}]),
        "Row 1 of examples: A ranking example has ['history'] but lacks ['candidates'], columns of dense item ids",
        lists([LIST, LIST]),
        gives=[[2, 3]] * 2,
    ),
    "raw ids in a list": case(
        lists([{"history": ["5"], "candidates": ["6", "7"]}]),
        "'history' is ['5']: text, which is a raw id and never a dense one ... Let `processor.example(history, "
        "candidates, user=..., label=...)` make them of raw ids",
        of_raw_ids,
        gives=[[2, 3]],
    ),
    "a gap in a list": case(
        lists([{**LIST, "candidates": [2, None, 3]}]),
        "'candidates' is [2, None, 3]; it is a flat list of whole numbers, no gaps",
        lists([LIST]),
        gives=[[2, 3]],
    ),
    "one id for a list of them": case(
        lambda: raw_id_list("history", "50"),
        "'history' is '50'; it is a list of item ids, such as ['50', '181'] ... Give ['50'] for a single one",
        lambda: raw_id_list("history", ["50"]),
        gives=["50"],
    ),
    # where data come from
    "a name that is not known": case(
        lambda: world(load_dataset_bundle("ml-1b")),
        "No data set 'ml-1b': it is no folder here, no Hub id (owner/name), and none of the known names ['ml-100k', "
        "'ml-latest-small']",
        tables(load=lambda: load_dataset_bundle(".")),
        hub(),
        downloaded(),
    ),
    "a download of another release": case(
        downloaded("\n"),
        "ratings.csv has SHA-256 ... Delete ... downloads/ml-latest-small.zip to download it again; to use another "
        "release, pass its unpacked folder",
        downloaded(),
        ml_latest(),
    ),
    "half of a character in memory": case(
        lambda: in_memory_items(["A\ud83d", "B", "C"]),
        "'A\\ud83d' holds half of a character (a lone surrogate). Write",
        lambda: in_memory_items(["A", "B", "C"]),
    ),
    "tables in memory without items": case(
        lambda: load_dataset_bundle({"interactions": EVENTS}),
        "Tables ['interactions'] were given; needed of ['interactions', 'items', 'triples', 'links'] are the first "
        "two",
        in_memory(EVENTS),
    ),
    "columns of a data set of the library": case(
        lambda: load_dataset_bundle("ml-100k", columns={"item_id": "film"}),
        "columns={'item_id': 'film'} was given; 'ml-100k' has the library's own. Leave it out",
        in_memory(EVENTS),
    ),
    "a truth for an id": case(
        lambda: load_dataset_bundle({"interactions": EVENTS, "items": {"item_id": [True], "title": ["A"]}}),
        "True stands where an id is needed; an id is a number or a text. Write it as one",
        in_memory(EVENTS),
    ),
    "no parts": case(
        lambda: gathered(connect(), []),
        "The interactions table has no rows. At least one user with three interactions is needed",
        lambda: len(gathered(connect(), [pa.table(EVENTS)])),
        gives=3,
    ),
    "columns of several lengths": case(
        in_memory({**EVENTS, "item_id": [5, 6]}),
        "The columns of the interactions table do not fit together (All arrays must be of the same length). Give "
        "lists of one length",
        in_memory(EVENTS),
    ),
    "one column twice": case(
        in_memory(pd.concat([pd.DataFrame(EVENTS), pd.DataFrame(EVENTS)[["item_id"]]], axis=1)),
        "A table has more than one column ['item_id']. Rename or drop all but one",
        in_memory(pd.DataFrame(EVENTS)),
    ),
    "all splits of a data set": case(
        in_memory(datasets.DatasetDict(train=datasets.Dataset.from_dict(EVENTS))),
        "The interactions table is a dictionary of ['train']. Give ... a `datasets.Dataset` (one split)",
        in_memory(datasets.Dataset.from_dict(EVENTS)),
    ),
    "months": case(
        in_memory(pd.DataFrame({**EVENTS, "timestamp": pd.period_range("2024-01", periods=3, freq="M")})),
        "the interactions table cannot be read: ... 'period[M]' not recognized. Write it as numbers, dates or text",
        in_memory(pd.DataFrame({**EVENTS, "timestamp": pd.date_range("2024-01", periods=3, freq="MS")})),
        in_memory(pd.DataFrame({**EVENTS, "timestamp": ["2024-01-01", "2024-02-01", "2024-03-01"]})),
    ),
    "no table": case(
        lambda: load_dataset_bundle({"interactions": 3, "items": ITEMS}),
        "The interactions table is int. Give a data frame, a `datasets.Dataset` (one split), an Arrow table or a",
        in_memory(EVENTS),
        in_memory(pd.DataFrame(EVENTS)),
        in_memory(datasets.Dataset.from_dict(EVENTS)),
    ),
    "a Hub data set of other tables": case(
        hub(["interactions", "films"]),
        "owner/data has the configs ['interactions', 'films']; it needs 'interactions' and 'items'",
        hub(["interactions", "items", "films"]),
    ),
    "a Hub data set that is not there": case(
        hub(error=OSError("no such place")),
        "The Hub data set 'owner/data' could not be read (no such place). Check the id, the network and, for a "
        "private one, your login (`hf auth login`) or `token`; or pass a local folder",
        hub(),
        tables(),
    ),
    "a stream that is not there": case(
        hub(error=OSError("no such place"), load=lambda: streamed("owner/data")),
        "The Hub data set 'owner/data' could not be read (no such place)",
        tables(load=lambda: streamed(".")),
    ),
}
CASES = {**FOLDERS, **VALUES}
reached = {}


@pytest.mark.parametrize("name", CASES)
def test_what_a_message_tells_one_to_do_helps(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    wrong = CASES[name]
    with pytest.raises(LKGError) as caught:
        wrong.refused()
    reached[name] = set(places(caught.value))
    found = str(caught.value)
    for part in wrong.says:
        _, there, found = found.partition(part)
        assert there, f"{part!r} is not said: {caught.value}"
    assert wrong.remedies
    for remedy in wrong.remedies:
        assert remedy() == wrong.gives


def places(error):
    """The lines that an error was raised on, and those that it passed through."""
    while error is not None:
        yield from ((frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__))
        error = error.__cause__


def test_every_refusal_of_data_has_a_case():
    if reached.keys() != CASES.keys():
        pytest.skip("this looks at what all the cases above reached")
    missed = []
    for path in sorted(Path(package.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            refusal = (
                isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.func.id != "ValueError"
            )
            if refusal and (str(path), node.lineno) not in set.union(*reached.values()):
                missed.append(f"{path.name}:{node.lineno} {ast.unparse(node)[:80]}")
    assert not missed
