"""Co-ratings: what the interactions of all people together say about pairs of items. None of the people is in it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from scipy import sparse

from ..data.engine import connect, frame
from ..data.sequences import SequenceDataset
from ..utils.errors import LKGError


MIN_PEOPLE, PER_ITEM = 5, 50
DECIMALS = 3
BLOCK = 512  # items whose pairs are held at a time
PAIRS = 1 << 22  # pairs that are summed up at a time, within a window


@dataclass(frozen=True)
class CoRatings:
    """How strongly people tie pairs of items.

    Args:
        items, others (`np.ndarray` of `int64`, shape (M,)): dense items; each pair stands once, the smaller first.
        weights (`np.ndarray` of `float32`, shape (M,)): in (0, 1].
    """

    items: np.ndarray
    others: np.ndarray
    weights: np.ndarray

    def __len__(self) -> int:
        return len(self.weights)


def co_ratings(
    dataset: SequenceDataset, *, min_people: int = MIN_PEOPLE, per_item: int = PER_ITEM, window: int | None = None
) -> CoRatings:
    """Sum up the training interactions of `dataset` for each pair of items.

    A person ties the items that he or she interacted with, the more strongly the fewer they are (inverse document
    frequency); an item's ties to people have length 1, so that weights are cosines. Few people make no weight, and no
    weight is exact. This is aggregation, not differential privacy: who knows what was published before and after one
    person's interactions came may still learn something of them.

    Args:
        dataset: only its training positions count; see `SequenceDataset.without_users`.
        min_people: a pair that fewer people interacted with is left out.
        per_item: how many others each item is tied to, the strongest first, ties by item id; the ties of others to it
            come on top.
        window: a person ties two items that are at most so many places apart in the order in which he or she first
            took them; None ties all of a person's items. With a window the work grows with interactions times window,
            not with the squares of histories, and is spilled to disk where it has to be.

    Raises:
        LKGError: `min_people`, `per_item` or `window` is below 1.
    """
    if min_people < 1 or per_item < 1 or (window is not None and window < 1):
        raise LKGError(
            f"min_people is {min_people}, per_item is {per_item} and window is {window}; they are whole numbers "
            "from 1 up (window may be None)."
        )
    positions = dataset.positions("train")
    if window is not None:
        return _near(dataset, positions, window, min_people, per_item)
    shape = (dataset.num_items + 1, dataset.num_users + 1)
    cells = (dataset.item_sequence[positions].astype(np.int64), dataset.user_of(positions))
    by_item = sparse.csr_array((np.ones(len(positions)), cells), shape=shape)
    by_item.data[:] = 1.0  # an item that somebody took twice is one tie
    of_people = np.bincount(by_item.indices, minlength=shape[1])
    ties = by_item.copy()
    ties.data *= np.log1p(dataset.num_items / of_people[ties.indices])
    lengths = np.sqrt((ties * ties).sum(axis=1))
    ties = sparse.csr_array(sparse.diags_array(1.0 / np.maximum(lengths, 1e-12)) @ ties)
    people, to_people = by_item.T.tocsr(), ties.T.tocsr()
    found: list[np.ndarray] = []
    for start in range(0, shape[0], BLOCK):
        block = slice(start, start + BLOCK)
        enough = by_item[block] @ people >= min_people
        pairs = (ties[block] @ to_people).multiply(enough).tocoo()
        other = pairs.row + start != pairs.col
        rows, columns, values = pairs.row[other], pairs.col[other], pairs.data[other].round(DECIMALS)
        order = np.lexsort((columns, -values, rows))
        rows, columns, values = rows[order], columns[order], values[order]
        rank = np.arange(len(rows)) - np.searchsorted(rows, rows)
        kept = (rank < per_item) & (values > 0)
        found.append(np.stack([rows[kept] + start, columns[kept], values[kept]]))
    items, others, weights = np.concatenate(found, axis=1)
    pairs = np.sort(np.stack([items, others]).astype(np.int64), axis=0)
    (items, others), first = np.unique(pairs, axis=1, return_index=True)
    return CoRatings(items, others, weights[first].astype(np.float32))


def _near(dataset: SequenceDataset, positions: np.ndarray, window: int, min_people: int, per_item: int) -> CoRatings:
    """`co_ratings` of items that are near each other in somebody's history."""
    positions = positions[~dataset.repeated(positions)]
    numbers = np.arange(1, dataset.num_users + 1, dtype=np.int32)
    users = np.repeat(numbers, np.diff(dataset.offsets))[positions]
    items = dataset.item_sequence[positions]
    del positions
    of_people = np.bincount(users, minlength=dataset.num_users + 1)
    squares = np.log1p(dataset.num_items / np.maximum(of_people, 1)) ** 2  # of a person's ties
    lengths = np.zeros(dataset.num_items + 1)
    for start in range(0, len(users), PAIRS):
        block = slice(start, start + PAIRS)
        lengths += np.bincount(items[block], weights=squares[users[block]], minlength=len(lengths))
    lengths = np.sqrt(lengths)
    connection = connect()
    connection.execute("CREATE TABLE parts (item INTEGER, other INTEGER, weight DOUBLE, people BIGINT)")
    for apart in range(1, window + 1):
        for start in range(0, len(users) - apart, PAIRS):
            first = slice(start, min(start + PAIRS, len(users) - apart))
            second = slice(first.start + apart, first.stop + apart)
            same = users[first] == users[second]
            ends = items[first][same], items[second][same]
            columns = {"item": np.minimum(*ends), "other": np.maximum(*ends), "weight": squares[users[first][same]]}
            part = connection.from_arrow(pa.table(columns))
            part.aggregate("item, other, sum(weight), count(*)", "item, other").insert_into("parts")
    known = connection.from_arrow(pa.table({"of": np.arange(len(lengths), dtype=np.int32), "length": lengths}))
    known.create("lengths")
    found = frame(
        connection.sql(
            f"""
            WITH sums AS (
                SELECT item, other, sum(weight) AS weight FROM parts
                GROUP BY item, other HAVING sum(people) >= {min_people}
            ), pairs AS (
                SELECT item, other, round(weight / (a.length * b.length), {DECIMALS}) AS weight
                FROM sums JOIN lengths a ON a.of = item JOIN lengths b ON b.of = other
            ), ends AS (
                SELECT item AS one, other AS two, * FROM pairs UNION ALL SELECT other AS one, item AS two, * FROM pairs
            ), ranked AS (
                SELECT *, row_number() OVER (PARTITION BY one ORDER BY weight DESC, two) AS rank
                FROM ends WHERE weight > 0
            )
            SELECT DISTINCT item, other, weight FROM ranked WHERE rank <= {per_item} ORDER BY item, other
            """
        ),
        "co-ratings",
    )
    pairs = (found[name].to_numpy(np.int64) for name in ("item", "other"))
    return CoRatings(*pairs, found["weight"].to_numpy(np.float32))
