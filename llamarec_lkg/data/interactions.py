"""Interactions as they come, checked and typed: ids in one spelling, ratings as numbers, times in whole units."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from pandas.api.types import is_object_dtype

from ..utils.errors import LKGError
from .engine import Relation, connect, frame, literal, name, reading
from .ledger import Ledger
from .schema import ITEM_ID, RATING, TIMESTAMP, USER_ID, require_columns
from .values import BLANKS, spell_id, text_of


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Interactions:
    """Who interacted with what, how much they liked it, and when. All arrays are aligned, in file order.

    Args:
        users, items (`np.ndarray` of `str`, shape (N,)): raw ids.
        ratings (`np.ndarray` of `float32`, shape (N,)): as given; 1.0 for implicit feedback.
        timestamps (`np.ndarray` of `int64`, shape (N,)): seconds, or any integer that orders the events.
        changed (`dict[str, int]`): how many are not as they came, and what about them ([`Ledger`]).
    """

    users: np.ndarray
    items: np.ndarray
    ratings: np.ndarray
    timestamps: np.ndarray
    changed: Mapping[str, int] = field(default_factory=dict, compare=False)

    @classmethod
    def from_frame(cls, table: pd.DataFrame) -> Interactions:
        """Take a table with `user_id`, `item_id`, `timestamp` and, optionally, `rating`; see `typed_interactions`."""
        require_columns(table, [USER_ID, ITEM_ID, TIMESTAMP], "interactions")
        table = table[[column for column in COLUMNS if column in table.columns]].reset_index(drop=True)
        for column in table.columns:
            if is_object_dtype(table[column]):  # which may hold anything
                read = spell_id if column in (USER_ID, ITEM_ID) else text_of
                table[column] = [read(value) for value in table[column]]
            if isinstance(table[column].dtype, pd.DatetimeTZDtype):  # of which the engine takes no nanoseconds
                table[column] = table[column].dt.tz_convert(None)
        ledger = Ledger()
        typed = typed_interactions(connect().from_df(table), "the interactions table", ledger)
        return cls.from_relation(typed, ledger.changed)

    @classmethod
    def from_relation(cls, typed: Relation, changed: Mapping[str, int]) -> Interactions:
        """Read what `typed_interactions` gives."""
        found = frame(typed.project(AS_TEXT), "the interactions table")
        users, items = (found[column].to_numpy(dtype=object) for column in (USER_ID, ITEM_ID))
        return cls(users, items, found[RATING].to_numpy(np.float32), found[TIMESTAMP].to_numpy(np.int64), changed)

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
CUT = "with times that have more digits than 64 bits hold, which are cut"
_INTEGERS = ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER")
_CLOCKS = ("", *(f"{mark}{clock}" for mark in " T" for clock in ("%H:%M", "%H:%M:%S", "%H:%M:%S.%f")),
           " %I:%M %p", " %I:%M:%S %p")  # fmt: skip
_DATES = ("%Y-%m-%d", "%b %d, %Y", "%B %d, %Y", "%m %d, %Y", "%d %b %Y", "%d %B %Y")
_ORDERS = {"day_first": "%d/%m/%Y", "month_first": "%m/%d/%Y"}
_DAY_OR_MONTH = r"^(\d{1,2})[/.-](\d{1,2})[/.-](\d{2}|\d{4})(\D|$)"
_NUMBER = "TRY_CAST(given_time AS DECIMAL(38,18))"
_DIGITS = f"length(rtrim(split_part(CAST({_NUMBER} AS VARCHAR), '.', 2), '0'))"


def spelled_id(column: str, kind: str) -> str:
    """SQL for an id in its one spelling: 862, 862.0 and "862" are one, a blank is none; see `values.spell_id`."""
    text = f"decode({name(column)})" if kind == "BLOB" else f"CAST({name(column)} AS VARCHAR)"
    if kind in _INTEGERS:
        return text
    if kind in ("FLOAT", "DOUBLE"):
        text = f"CASE WHEN isnan({name(column)}) THEN NULL ELSE {text} END"
    text = f"trim({text}, {literal(BLANKS)})"
    return rf"nullif(regexp_replace({text}, '^(-?\d+)\.0+$', '\1'), '')"


def typed_interactions(relation: Relation, place: str, ledger: Ledger) -> Relation:
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
    given = relation.project(
        f"{_id(USER_ID, kinds)} AS {USER_ID}, {_id(ITEM_ID, kinds)} AS {ITEM_ID}, {rating} AS given_rating, "
        f"TRY_CAST({rating} AS DOUBLE) AS {RATING}, {_given_time(kinds[TIMESTAMP])} AS given_time, "
        f"row_number() OVER () - 1 AS {ROW}"
    )

    def ask(*facts: str) -> dict[str, Any]:
        with reading(place):
            return given.aggregate(", ".join(facts)).to_arrow_table().to_pylist()[0]

    found = ask(
        "count(*) AS rows",
        *(_count(f"{column} IS NULL", column) for column in (USER_ID, ITEM_ID, "given_rating", "given_time")),
        _count(
            f"NOT coalesce(isfinite(TRY_CAST({RATING} AS FLOAT)), given_rating IS NULL)", "odd_rating", "given_rating"
        ),
        *(f"bool_and({_whole(column, kinds)}) AS whole_{column}" for column in (USER_ID, ITEM_ID, TIMESTAMP)),
    )
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
    time, cut = _time(kinds[TIMESTAMP], found, ask)
    if cut:
        ledger.change(CUT, cut)
        logger.warning("%s: %d interactions are %s.", place, cut, CUT)
    ids = [f"CAST({c} AS BIGINT) AS {c}" if found[f"whole_{c}"] else c for c in (USER_ID, ITEM_ID)]
    return given.project(f"{', '.join(ids)}, CAST({RATING} AS FLOAT) AS {RATING}, {time} AS {TIMESTAMP}, {ROW}")


def _id(column: str, kinds: dict[str, str]) -> str:
    return name(column) if kinds[column] in _INTEGERS else spelled_id(column, kinds[column])


def _whole(column: str, kinds: dict[str, str]) -> str:
    """SQL for whether an id or a time is a whole number as the engine would write it, which takes less time and room
    than its text."""
    given = "given_time" if column == TIMESTAMP else column
    if kinds[column] in _INTEGERS or (column == TIMESTAMP and _is_date(kinds[column])):
        return "FALSE"
    return f"regexp_full_match({given}, '0|-?[1-9]\\d{{0,17}}')"


def _count(condition: str, key: str, value: str = "given_time") -> str:
    """SQL for how many rows there are, the first of them and its value."""
    return (
        f"count(*) FILTER ({condition}) AS {key}_count, min({ROW}) FILTER ({condition}) AS {key}_first, "
        f"arg_min({value}, {ROW}) FILTER ({condition}) AS {key}_value"
    )


def _given_time(kind: str) -> str:
    """SQL for a time as it came, NULL where there is none."""
    if kind in _INTEGERS or _is_date(kind):
        return TIMESTAMP
    text = f"decode({TIMESTAMP})" if kind == "BLOB" else f"CAST({TIMESTAMP} AS VARCHAR)"
    return f"CASE WHEN trim({text}) IN ('', 'nan', 'NaN') THEN NULL ELSE trim({text}) END"


def _is_date(kind: str) -> bool:
    return kind.startswith(("TIMESTAMP", "DATE"))


def _parsed(*dates: str) -> str:
    """SQL for a text as a point in time, by some forms of dates with or without a clock."""
    forms = ", ".join(f"'{date}{clock}'" for date in dates for clock in _CLOCKS)
    return f"CAST(try_strptime(given_time, [{forms}]) AS TIMESTAMPTZ)"


def _ordered(order: str) -> str:
    """The same where day and month are numbers, between slashes, points or dashes, before a year of four digits."""
    plain = rf"regexp_replace(given_time, '{_DAY_OR_MONTH}', '\1/\2/\3\4')"
    found = _parsed(_ORDERS[order]).replace("given_time", plain)
    return f"CASE WHEN regexp_matches({plain}, '^\\d+/\\d+/\\d{{4}}') THEN {found} END"


_TOLD = (
    "coalesce(TRY_CAST(given_time AS TIMESTAMPTZ), "
    f"CAST(try_strptime(given_time, '%a %b %d %H:%M:%S %z %Y') AS TIMESTAMPTZ), {_parsed(*_DATES)})"
)


def _time(kind: str, known: dict[str, Any], ask: Callable[..., dict[str, Any]]) -> tuple[str, int]:
    """SQL for the times as int64, and how many of them lose digits. What tells how they are written is asked for step
    by step: to try all forms of dates takes its time."""
    if kind in _INTEGERS or known[f"whole_{TIMESTAMP}"]:
        return "CAST(given_time AS BIGINT)", 0
    if _is_date(kind):
        return _date("CAST(given_time AS TIMESTAMPTZ)", ask)
    rows = known["rows"]
    found = ask(
        f"count({_NUMBER}) AS numbers, max({_DIGITS}) AS digits, max(abs({_NUMBER})) AS largest",
        _count(f"TRY_CAST(given_time AS DOUBLE) IS NOT NULL AND TRY_CAST({_NUMBER} AS BIGINT) IS NULL", "large"),
        _count(f"{_NUMBER} IS NULL", "no_number"),
    )
    if found["large_count"]:
        raise _odd(found, "large", "too large for a time", "They lie between -9.2e18 and 9.2e18.")
    if found["numbers"] == rows:
        most = next(digits for digits in range(18, -1, -1) if found["largest"] * 10**digits < 2**63 - 1)
        unit = 10 ** min(most, found["digits"])
        cut = ask(f"count(*) FILTER ({_DIGITS} > {most}) AS cut")["cut"] if found["digits"] > most else 0
        return f"CAST(trunc({_NUMBER} * {unit}) AS BIGINT)", cut
    dates = ask(
        f"count({_TOLD}) AS dates",
        *(f"count({_ordered(order)}) AS {order}" for order in _ORDERS),
        _count(f"regexp_matches(given_time, '{_DAY_OR_MONTH}')", "slashed"),
        _count(f"{_NUMBER} IS NULL AND {_TOLD} IS NULL", "odd"),
    )
    if dates["slashed_count"]:
        orders = [order for order in _ORDERS if dates[order] == rows]
        if len(orders) == 1:
            return _date(_ordered(orders[0]), ask)
        what = "dates of which day, month and year cannot be told apart, or that stand beside other times"
        raise _odd(dates, "slashed", what, "Write all as 2024-01-31.")
    if dates["odd_count"]:
        remedy = "Write dates as 2024-01-31 10:00:00, or give seconds since 1970."
        raise _odd(dates, "odd", "neither numbers nor dates that can be read", remedy)
    if dates["dates"] == rows:
        return _date(_TOLD, ask)
    raise _odd(found, "no_number", "dates among numbers", "Write all times one way.")


def _date(point: str, ask: Callable[..., dict[str, Any]]) -> tuple[str, int]:
    """SQL for points in time as int64, in the largest unit that loses nothing, and how many lose digits even so."""
    micro, nano = f"epoch_us({point})", "epoch_ns(TRY_CAST(given_time AS TIMESTAMPTZ_NS))"
    facts = [f"bool_and({micro} % {unit} = 0) AS whole_{unit}" for unit in (10**6, 10**3)]
    found = ask(*facts, f"count(*) FILTER ({nano} % 1000 <> 0) AS fine, count({nano}) = count(*) AS all_nano")
    if found["fine"] and found["all_nano"]:
        return nano, 0
    unit = next((unit for unit in (10**6, 10**3) if found[f"whole_{unit}"]), 1)
    return f"CAST({micro} // {unit} AS BIGINT)", found["fine"]


def _odd(found: dict[str, Any], key: str, what: str, remedy: str) -> LKGError:
    return LKGError(
        f"Column '{TIMESTAMP}' of the interactions table holds {found[f'{key}_count']} value(s) that are {what}, the "
        f"first is {found[f'{key}_value']!r} in row {found[f'{key}_first']}. {remedy}"
    )
