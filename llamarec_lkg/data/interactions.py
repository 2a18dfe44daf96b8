"""Interactions as they come, checked and typed: ids in one spelling, ratings as numbers, times in whole units."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from pandas.api.types import is_object_dtype

from ..utils.errors import LKGError
from .engine import Relation, connect, frame, name, reading
from .schema import ITEM_ID, RATING, TIMESTAMP, USER_ID, require_columns
from .values import text_of


@dataclass(frozen=True)
class Interactions:
    """Who interacted with what, how much they liked it, and when. All arrays are aligned, in file order.

    Args:
        users, items (`np.ndarray` of `str`, shape (N,)): raw ids.
        ratings (`np.ndarray` of `float32`, shape (N,)): as given; 1.0 for implicit feedback.
        timestamps (`np.ndarray` of `int64`, shape (N,)): seconds, or any integer that orders the events.
    """

    users: np.ndarray
    items: np.ndarray
    ratings: np.ndarray
    timestamps: np.ndarray

    @classmethod
    def from_frame(cls, table: pd.DataFrame) -> Interactions:
        """Take a table with `user_id`, `item_id`, `timestamp` and, optionally, `rating`; see `typed_interactions`."""
        require_columns(table, [USER_ID, ITEM_ID, TIMESTAMP], "interactions")
        table = table[[column for column in COLUMNS if column in table.columns]].reset_index(drop=True)
        for column in filter(lambda column: is_object_dtype(table[column]), table.columns):  # which may hold bytes
            table[column] = [text_of(value) if isinstance(value, bytes) else value for value in table[column]]
        return cls.from_relation(typed_interactions(connect().from_df(table), "the interactions table"))

    @classmethod
    def from_relation(cls, typed: Relation) -> Interactions:
        """Read what `typed_interactions` gives."""
        found = frame(typed.project(AS_TEXT), "the interactions table")
        users, items = (found[column].to_numpy(dtype=object) for column in (USER_ID, ITEM_ID))
        return cls(users, items, found[RATING].to_numpy(np.float32), found[TIMESTAMP].to_numpy(np.int64))

    def to_arrow(self) -> pa.Table:
        return pa.table([self.users, self.items, self.ratings, self.timestamps], schema=SCHEMA)

    def to_frame(self) -> pd.DataFrame:
        return pd.DataFrame(
            {USER_ID: self.users, ITEM_ID: self.items, RATING: self.ratings, TIMESTAMP: self.timestamps}
        )

    def __len__(self) -> int:
        return len(self.users)


COLUMNS = (USER_ID, ITEM_ID, RATING, TIMESTAMP)
SCHEMA = pa.schema([(USER_ID, pa.string()), (ITEM_ID, pa.string()), (RATING, pa.float32()), (TIMESTAMP, pa.int64())])
AS_TEXT = f"CAST({USER_ID} AS VARCHAR) AS {USER_ID}, CAST({ITEM_ID} AS VARCHAR) AS {ITEM_ID}, {RATING}, {TIMESTAMP}"
ROW = "row"  # the place of an interaction in its source, from 0 on
_INTEGERS = ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER")
_CLOCKS = ("", " %H:%M", " %H:%M:%S", " %H:%M:%S.%f", " %I:%M %p", " %I:%M:%S %p")
_DATES = ("%Y-%m-%d", "%b %d, %Y", "%B %d, %Y", "%m %d, %Y", "%d %b %Y", "%d %B %Y")
_FORMATS = ("%a %b %d %H:%M:%S %z %Y", *(date + clock for date in _DATES for clock in _CLOCKS))
_DAY_OR_MONTH = r"^\s*(\d{1,2})[/.-](\d{1,2})[/.-](\d{4}|\d{2})\b"
_MOST_DIGITS = 9  # of a fraction of a time


def spelled_id(column: str, kind: str) -> str:
    """SQL for an id in its one spelling: 862, 862.0 and "862" are one, a blank is none; see `values.spell_id`."""
    text = f"decode({name(column)})" if kind == "BLOB" else f"CAST({name(column)} AS VARCHAR)"
    if kind in _INTEGERS:
        return text
    if kind in ("FLOAT", "DOUBLE"):
        text = f"CASE WHEN isnan({name(column)}) THEN NULL ELSE {text} END"
    text = rf"regexp_replace({text}, '^\s+|\s+$', '', 'g')"
    return rf"nullif(regexp_replace({text}, '^(-?\d+)\.0+$', '\1'), '')"


def typed_interactions(relation: Relation, place: str) -> Relation:
    """`user_id` and `item_id` (text, or integers where the source has integers), `rating` (float32, 1 where the source
    has none), `timestamp` (int64) and `row`, in the order of the source.

    Times stay as exact as they came: numbers with a fraction are counted in the unit of the finest one, dates in
    seconds or, where one has a fraction, in the unit of the finest, down to what the source holds.

    Raises:
        LKGError: a column or a value is missing, a rating is no number, a time is no number and no date, does not fit
            into 64 bits, or could be day first or month first.
    """
    require_columns(relation, [USER_ID, ITEM_ID, TIMESTAMP], "interactions")
    relation = relation.project(", ".join(column for column in COLUMNS if column in relation.columns))
    kinds = {column: str(kind) for column, kind in zip(relation.columns, relation.types, strict=True)}
    for column in (USER_ID, ITEM_ID):
        if kinds[column].endswith("]") or kinds[column].startswith(("STRUCT", "MAP", "BOOLEAN")):
            raise LKGError(
                f"Column '{column}' of the interactions table is {kinds[column]}; an id is a number or a text. "
                "Write it as one."
            )
    rating = "'1'"
    if RATING in kinds:
        number = f"CAST({RATING} AS TINYINT)" if kinds[RATING] == "BOOLEAN" else RATING
        rating = f"nullif(nullif(trim(CAST({number} AS VARCHAR)), 'nan'), '')"
    time = _Times(kinds[TIMESTAMP])
    given = relation.project(
        f"{_id(USER_ID, kinds)} AS {USER_ID}, {_id(ITEM_ID, kinds)} AS {ITEM_ID}, {rating} AS given_rating, "
        f"TRY_CAST({rating} AS DOUBLE) AS {RATING}, {time.given} AS given_time, row_number() OVER () - 1 AS {ROW}"
    )
    facts = ["count(*) AS rows"]
    facts += [_count(f"{column} IS NULL", column) for column in (USER_ID, ITEM_ID, "given_rating", "given_time")]
    odd = f"given_rating IS NOT NULL AND ({RATING} IS NULL OR NOT isfinite({RATING}))"
    facts += [_count(odd, "odd_rating", "given_rating"), *time.facts()]
    with reading(place):
        found = given.aggregate(", ".join(facts)).to_arrow_table().to_pylist()[0]
    if not found["rows"]:
        raise LKGError("The interactions table has no rows. At least one user with three interactions is needed.")
    keys = {USER_ID: USER_ID, ITEM_ID: ITEM_ID, RATING: "given_rating", TIMESTAMP: "given_time"}
    for column, key in keys.items():
        if count := found[f"{key}_count"]:
            raise LKGError(
                f"Column '{column}' of the interactions table has {count} missing value(s), the first in row "
                f"{found[f'{key}_first']}. Every row needs one: drop those rows or fill them in."
            )
    if count := found["odd_rating_count"]:
        raise LKGError(
            f"Column '{RATING}' of the interactions table holds {count} value(s) that are not numbers, the first is "
            f"{found['odd_rating_value']!r} in row {found['odd_rating_first']}. Leave the column out, or mend them."
        )
    return given.project(
        f"{USER_ID}, {ITEM_ID}, CAST({RATING} AS FLOAT) AS {RATING}, {time.expression(found)} AS {TIMESTAMP}, {ROW}"
    )


def _id(column: str, kinds: dict[str, str]) -> str:
    return name(column) if kinds[column] in _INTEGERS else spelled_id(column, kinds[column])


def _count(condition: str, key: str, value: str | None = None) -> str:
    """SQL for how many rows there are, the first of them and, where asked for, its value."""
    parts = [f"count(*) FILTER ({condition}) AS {key}_count", f"min({ROW}) FILTER ({condition}) AS {key}_first"]
    if value:
        parts.append(f"arg_min({value}, {ROW}) FILTER ({condition}) AS {key}_value")
    return ", ".join(parts)


@dataclass(frozen=True)
class _Times:
    """How a column of times of some type is read."""

    kind: str

    @property
    def is_date(self) -> bool:
        return self.kind.startswith(("TIMESTAMP", "DATE"))

    @property
    def given(self) -> str:
        if self.kind in _INTEGERS or self.is_date:
            return TIMESTAMP
        text = f"decode({TIMESTAMP})" if self.kind == "BLOB" else f"CAST({TIMESTAMP} AS VARCHAR)"
        return f"CASE WHEN trim({text}) IN ('', 'nan', 'NaN') THEN NULL ELSE trim({text}) END"

    @property
    def units(self) -> tuple[int, ...]:
        """How many of `date` are a second, a millisecond, and so on."""
        return (10**9, 10**6, 10**3) if self.kind == "TIMESTAMP_NS" else (10**6, 10**3)

    @property
    def number(self) -> str:
        return f"TRY_CAST(given_time AS DECIMAL(38,{_MOST_DIGITS}))"

    @property
    def date(self) -> str:
        """SQL for microseconds since 1970, of nanoseconds for these."""
        if self.kind == "TIMESTAMP_NS":
            return "epoch_ns(given_time)"
        if self.is_date:
            return "epoch_us(CAST(given_time AS TIMESTAMPTZ))"
        formats = ", ".join(f"'{one}'" for one in _FORMATS)
        return (
            "epoch_us(coalesce(TRY_CAST(given_time AS TIMESTAMPTZ), "
            f"CAST(try_strptime(given_time, [{formats}]) AS TIMESTAMPTZ)))"
        )

    def facts(self) -> list[str]:
        """SQL for what has to be known of the whole column."""
        if self.kind in _INTEGERS:
            return []
        facts = [f"bool_and({self.date} % {unit} = 0) AS whole_{unit}" for unit in self.units]
        if self.is_date:
            return facts
        digits = "length(rtrim(split_part(CAST({} AS VARCHAR), '.', 2), '0'))"
        slashed = f"regexp_matches(given_time, '{_DAY_OR_MONTH}')"
        parts = [f"TRY_CAST(regexp_extract(given_time, '{_DAY_OR_MONTH}', {group}) AS INTEGER)" for group in (1, 2)]
        large = f"TRY_CAST(given_time AS DOUBLE) IS NOT NULL AND TRY_CAST({self.number} AS BIGINT) IS NULL"
        return [
            *facts,
            f"count({self.number}) AS numbers",
            f"count({self.date}) AS dates",
            f"max({digits.format(self.number)}) AS digits",
            f"count(*) FILTER ({slashed}) AS slashed, max({parts[0]}) AS first_part, max({parts[1]}) AS second_part",
            f"arg_min(given_time, {ROW}) FILTER ({slashed}) AS slashed_value",
            f"min(length(regexp_extract(given_time, '{_DAY_OR_MONTH}', 3))) FILTER ({slashed}) AS shortest_year",
            _count(f"{self.number} IS NULL AND {self.date} IS NULL", "odd_time", "given_time"),
            _count(large, "large_time", "given_time"),
            _count(f"{self.number} IS NULL", "no_number", "given_time"),
        ]

    def expression(self, found: dict[str, Any]) -> str:
        """SQL for the times as int64, after what was found of the column."""
        if self.kind in _INTEGERS:
            return "CAST(given_time AS BIGINT)"
        if self.is_date:
            return self._dates(found)
        rows = found["rows"]
        if found["slashed"]:
            return self._day_or_month(found)
        if found["large_time_count"]:
            raise _odd(found, "large_time", "too large for a time", "They lie between -9.2e18 and 9.2e18.")
        if found["odd_time_count"]:
            remedy = "Write dates as 2024-01-31 10:00:00, or give seconds since 1970."
            raise _odd(found, "odd_time", "neither numbers nor dates that can be read", remedy)
        if found["numbers"] == rows:
            digits = found["digits"] or 0
            return f"CAST({self.number} * {10**digits} AS BIGINT)"
        if found["dates"] == rows:
            return self._dates(found)
        raise _odd(found, "no_number", "dates among numbers", "Write all times one way.")

    def _dates(self, found: dict[str, Any]) -> str:
        unit = next((unit for unit in self.units if found[f"whole_{unit}"]), 1)
        return f"CAST({self.date} // {unit} AS BIGINT)"

    def _day_or_month(self, found: dict[str, Any]) -> str:
        day_first, month_first = found["first_part"] > 12, found["second_part"] > 12
        short = found["shortest_year"] == 2
        if found["slashed"] != found["rows"] or day_first == month_first or short:
            raise LKGError(
                f"Column '{TIMESTAMP}' of the interactions table has dates such as {found['slashed_value']!r}, of "
                "which day, month and year cannot be told apart, or beside other times. Write all as 2024-01-31."
            )
        order = "%d/%m/%Y" if day_first else "%m/%d/%Y"
        formats = ", ".join(f"'{order}{clock}'" for clock in _CLOCKS)
        plain = "regexp_replace(given_time, '^(\\d{1,2})[/.-](\\d{1,2})[/.-]', '\\1/\\2/')"
        return f"CAST(epoch(strptime({plain}, [{formats}])) AS BIGINT)"


def _odd(found: dict[str, Any], key: str, what: str, remedy: str) -> LKGError:
    return LKGError(
        f"Column '{TIMESTAMP}' of the interactions table holds {found[f'{key}_count']} value(s) that are {what}, the "
        f"first is {found[f'{key}_value']!r} in row {found[f'{key}_first']}. {remedy}"
    )
