"""The Amazon Reviews releases of 2014 and 2023 as they are downloaded: who bought what, and what goes together."""

from __future__ import annotations

import html
from collections.abc import Callable, Container
from pathlib import Path
from sys import intern
from typing import Any

import pandas as pd

from ...utils.errors import LKGError
from ..engine import Connection, Relation, csv_relation
from ..interactions import COLUMNS
from ..raw_dataset import Catalogue, Format, RawDataset, paired_files
from ..readers import record_relation, records
from ..schema import HEAD, ITEM_ID, RELATION, TAIL, TITLE, ItemTable, Triples
from ..values import inside, record_of, text_of, texts_of


AMAZON_2014_CITATION = (
    "Julian McAuley, Christopher Targett, Qinfeng Shi and Anton van den Hengel. 2015. Image-Based Recommendations on "
    "Styles and Substitutes. SIGIR 2015."
)

AMAZON_2023_CITATION = (
    "Yupeng Hou, Jiacheng Li, Zhankui He, An Yan, Xiusi Chen and Julian McAuley. 2024. Bridging Language and Items "
    "for Retrieval and Recommendation. arXiv preprint arXiv:2403.03952."
)

BRAND, CATEGORY = "BRAND", "CATEGORY"
RELATED = {"also_bought": "ALSO_BOUGHT", "also_viewed": "ALSO_VIEWED", "bought_together": "BOUGHT_TOGETHER"}


def amazon_2014(path: Path) -> RawDataset:
    """`ratings_X.csv` (no header) or `reviews_X_5.json.gz`, with `meta_X.json.gz`, whose lines are Python
    dictionaries.

    Brands and all levels of all category paths are attributes of the items; also_bought, also_viewed and
    bought_together become triples, whose tails may be products of other departments.
    """
    reviews, category, meta = paired_files(path, _REVIEWS_2014, ("meta_{}.json.gz", "meta_{}.json"))

    def interactions(connection: Connection) -> Relation:
        if ".csv" in reviews.suffixes:
            return csv_relation(connection, reviews, names=COLUMNS, separator=",")
        fields = ("reviewerID", "asin", "overall", "unixReviewTime")
        return record_relation(connection, reviews, dict(zip(COLUMNS, fields, strict=True)))

    def describe(record: dict[str, Any]) -> dict[str, Any]:
        related = record_of(record.get("related"))
        return {
            TITLE: record.get("title"),
            BRAND: record.get("brand"),
            CATEGORY: record.get("categories"),
            **{relation: related.get(field) for field, relation in RELATED.items()},
        }

    return RawDataset(
        f"amazon-2014-{category}", interactions, lambda wanted: _catalogue(meta, "asin", describe, wanted),
        AMAZON_2014_CITATION,
    )  # fmt: skip


def amazon_2023(path: Path) -> RawDataset:
    """`X.jsonl.gz` and `meta_X.jsonl.gz`. An item is a `parent_asin`: its colours and sizes are one item. Times are
    milliseconds. The release has bought_together alone of the three relations."""
    reviews, category, meta = paired_files(path, _REVIEWS_2023, ("meta_{}.jsonl.gz", "meta_{}.jsonl"))

    def interactions(connection: Connection) -> Relation:
        fields = ("user_id", "parent_asin", "rating", "timestamp")
        return record_relation(connection, reviews, dict(zip(COLUMNS, fields, strict=True)))

    def describe(record: dict[str, Any]) -> dict[str, Any]:
        details = record_of(record.get("details"))
        brand = details.get("Brand") or details.get("Brand Name") or record.get("store")
        return {
            TITLE: record.get("title"),
            BRAND: brand,
            CATEGORY: texts_of(record.get("categories"), None) or record.get("main_category"),
            **{relation: record.get(field) for field, relation in RELATED.items()},
        }

    return RawDataset(
        f"amazon-2023-{category}", interactions, lambda wanted: _catalogue(meta, "parent_asin", describe, wanted),
        AMAZON_2023_CITATION,
    )  # fmt: skip


def _catalogue(
    meta: Path, id_field: str, describe: Callable[[dict[str, Any]], dict[str, Any]], wanted: Container[str] | None
) -> Catalogue:
    """Items and their relations from the records of products; of a product given twice the first record counts."""
    rows: dict[str, tuple[str, list[str], list[str]]] = {}
    facts: list[tuple[str, str, str]] = []
    for record in records(meta):
        raw = str(record.get(id_field) or "")
        if not raw or raw in rows or (wanted is not None and raw not in wanted):
            continue
        with inside(f"Item {raw!r} of {meta}"):
            found = describe(record)
            rows[raw] = (html.unescape(text_of(found[TITLE])), _texts(found[BRAND]), _texts(found[CATEGORY]))
            for relation in RELATED.values():
                facts += [(raw, relation, intern(other)) for other in texts_of(found[relation], None)]
    if not rows:
        raise LKGError(
            f"{meta} has no record with {id_field!r}{' of an item with interactions' if wanted is not None else ''}. "
            "Take both files from one release and category."
        )
    columns = [ITEM_ID, TITLE, BRAND, CATEGORY]
    table = ItemTable.from_frame(pd.DataFrame([(raw, *row) for raw, row in rows.items()], columns=columns))
    if not facts:
        return table, None
    frame = pd.DataFrame(facts, columns=[HEAD, RELATION, TAIL])
    return table, Triples.by_item_ids(frame, table.ids)


def _texts(value: Any) -> list[str]:
    return [intern(html.unescape(text)) for text in texts_of(value, None)]


_REVIEWS_2014 = r"(?:ratings_(.+)\.csv|reviews_(.+?)(?:_\d+)?\.json)(?:\.gz)?"
_REVIEWS_2023 = r"(?!meta_)(.+)\.jsonl(?:\.gz)?"
_SIGNS_2014 = (_REVIEWS_2014, r"meta_.+\.json(\.gz)?")
_SIGNS_2023 = (_REVIEWS_2023, r"meta_.+\.jsonl(\.gz)?")

FORMATS = (
    Format("amazon-2014", amazon_2014, _SIGNS_2014, "ratings_X.csv or reviews_X_5.json.gz, with meta_X.json.gz"),
    Format("amazon-2023", amazon_2023, _SIGNS_2023, "X.jsonl.gz, with meta_X.jsonl.gz"),
)
