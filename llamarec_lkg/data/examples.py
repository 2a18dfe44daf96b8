"""The one entrance for lists to rank, whatever kind of data set they come in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sized
from itertools import islice
from typing import Any

from ..utils.errors import LKGError
from .schema import RankingExample
from .values import inside


def as_examples(dataset: Any, name: str = "examples", most: int | None = None) -> list[RankingExample]:
    """The rows of a data set, each read once.

    Args:
        dataset: what gives [`RankingExample`]s, or mappings with their fields, one after the other (a list, a
            `datasets.Dataset`, a stream) or by number (a map-style data set, such as torch's `Subset`).
        name: what messages call it.
        most: of a stream, so many rows are taken; None takes all.

    Raises:
        LKGError: it is no data set, or several; or a row, named by its number from 0, is no list to rank.
    """
    if isinstance(dataset, Mapping):
        columns = {"history", "candidates"} <= set(dataset)
        remedy = "Make rows of its columns: `datasets.Dataset.from_dict(...)`." if columns else "Give one of them."
        raise LKGError(
            f"{name} is a dictionary with {sorted(map(str, dataset))[:8]}; it needs to be one data set. {remedy} "
            "(Only `eval_dataset` takes several, by name.)"
        )
    numbered = isinstance(dataset, Sized) and hasattr(type(dataset), "__getitem__")
    if isinstance(dataset, str | bytes) or not (isinstance(dataset, Iterable) or numbered):
        raise LKGError(
            f"{name} is {repr(dataset)[:60]}; it needs a data set: a list of RankingExample, a `datasets.Dataset`, or "
            "any other that gives rows one after the other or by number. Load it first, such as with "
            "`datasets.load_dataset(...)`."
        )
    # without __iter__ Python would count up until an IndexError, which map-style data sets need not raise
    rows = dataset if isinstance(dataset, Iterable) else (dataset[number] for number in range(len(dataset)))
    return [_as_example(row, f"Row {number} of {name}") for number, row in enumerate(islice(rows, most))]


def _as_example(row: Any, place: str) -> RankingExample:
    if isinstance(row, RankingExample):
        return row
    if not isinstance(row, Mapping):
        shown = " ".join(repr(row).split())[:60]
        raise LKGError(
            f"{place} is {shown}, a {type(row).__name__}; a row is a RankingExample, or a mapping with "
            "'history' and 'candidates' in dense ids. Of a table, give `datasets.Dataset.from_pandas(table)`; of a "
            "`datasets.Dataset` with a format of its own, `dataset.with_format(None)`."
        )
    with inside(place):
        return RankingExample.from_mapping(row)
