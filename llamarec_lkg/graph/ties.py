"""What histories say of the columns that lists of items hear: looked up once for all that is made of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .cells import Cells
from .ranges import entries_of, joined, owners


if TYPE_CHECKING:
    from .evidence import EvidenceIndex


BLOCK, PLACES = 128, 1 << 14  # lists, and items in them, that are read together


@dataclass(frozen=True)
class Ties:
    """Ties of N items to columns, T in all, item by item.

    Args:
        items (shape (T,)): which item; those of all lists are counted through.
        cells (shape (T,)): the column's number, which is another one for each list.
        weights (shape (T,)).
    """

    items: np.ndarray
    cells: np.ndarray
    weights: np.ndarray

    def take(self, rows: np.ndarray) -> Ties:
        return Ties(self.items.take(rows), self.cells.take(rows), self.weights.take(rows))


@dataclass(frozen=True)
class Heard(Ties):
    """What items hear.

    Args:
        groups (shape (T,)): item and relation as one number.
        shape: N and R.
    """

    groups: np.ndarray
    shape: tuple[int, int]

    def summed(self, terms: np.ndarray) -> np.ndarray:
        """The terms (T,) of each item along each relation, shape (N, R)."""
        sums = np.bincount(self.groups, terms, minlength=self.shape[0] * self.shape[1])
        return sums.reshape(self.shape).astype(float, copy=False)  # of nothing it is whole numbers


@dataclass(frozen=True)
class Told:
    """What histories say of the columns that are heard, which are numbered from 0 to `num_cells`, and what each kind
    of listeners hears of them."""

    num_cells: int
    said: Ties
    heard: tuple[Heard, ...]


def blocks(lengths: np.ndarray) -> Iterator[np.ndarray]:
    """Rows of lists to read together, of about one length each."""
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        size = max(1, min(BLOCK, PLACES // max(1, int(lengths[order[start]]))))
        yield order[start : start + size]
        start += size


def tell(index: EvidenceIndex, histories: Sequence[np.ndarray], *listeners: Sequence[np.ndarray]) -> Told:
    """What each of B histories (dense items) says of what a list of items of each kind of listeners hears.

    Whatever else it says does not matter. What they hear are few columns, which are numbered: those of all lists stand
    in one short vector.
    """
    said, heard, num_relations = index.history_rows, index.candidate_rows, index.num_relations
    kinds = []
    for lists in listeners:
        lengths, entries = entries_of(heard, joined(lists, np.int64))
        items = owners(lengths)
        ends = np.append(0, lengths.cumsum())[np.cumsum([0, *map(len, lists)])].tolist()
        kinds.append((items, entries, heard.indices.take(entries), ends))
    cells, num_items, parts = Cells(len(index.column_relation)), 0, []
    for row, history in enumerate(histories):
        asked = cells.ask(*(columns[ends[row] : ends[row + 1]] for *_, columns, ends in kinds))
        lengths, entries = entries_of(said, np.asarray(history, dtype=np.int64))
        some, own = cells.find(said.indices.take(entries))
        items = np.arange(num_items, num_items + len(history)).repeat(lengths)
        parts.append((items.take(some), own, said.data.take(entries.take(some)), *asked))
        num_items += len(history)
    items, own, weights, *asked = map(np.concatenate, zip(*parts, strict=True))
    return Told(
        cells.next,
        Ties(items, own, weights),
        tuple(
            Heard(
                items,
                numbers,
                heard.data.take(entries),
                items * num_relations + index.column_relation.take(columns),
                (sum(map(len, lists)), num_relations),
            )
            for lists, numbers, (items, entries, columns, _) in zip(listeners, asked, kinds, strict=True)
        ),
    )
