"""What histories say of the columns that lists of items hear: looked up once for all that is made of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

from .cells import Cells
from .ranges import joined


if TYPE_CHECKING:
    from .evidence import EvidenceIndex


BLOCK, PLACES = 128, 1 << 14  # lists, and items in them, that are read together
AT_ONCE = 1 << 10  # items of histories whose rows are laid out together: those stay in the cache


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


class TieReader:
    """Looks up what histories say of the columns that their listeners hear.

    Whatever else they say does not matter. Those columns are the cells: the ones of all lists stand in one short
    vector.
    """

    def __init__(self, index: EvidenceIndex):
        self.index, self.cells = index, Cells(len(index.column_relation))

    def read(self, histories: Sequence[np.ndarray], *listeners: Sequence[np.ndarray]) -> Told:
        """Of B histories (dense items) and, of each kind of listeners, B lists of items."""
        index, first, row, num_items = self.index, self.cells.next, 0, 0
        heard = [_rows(index.candidate_rows, lists) for lists in listeners]
        numbers: list[list[np.ndarray]] = [[] for _ in heard]
        said: list[tuple[np.ndarray, ...]] = []
        for lists in _stretches(histories):
            rows, ends = _rows(index.history_rows, lists)
            items = _owners(rows) + num_items
            for start, end in pairwise(ends):
                asked = self.cells.ask(*(theirs.indices[at[row] : at[row + 1]] for theirs, at in heard))
                for own, cells in zip(numbers, asked, strict=True):
                    own.append(cells)
                some, cells = self.cells.find(rows.indices[start:end])
                some += start
                said.append((items.take(some), cells, rows.data.take(some)))
                row += 1
            num_items += rows.shape[0]
        items, cells, weights = map(np.concatenate, zip(*said, strict=True))
        return Told(
            self.cells.next - first,
            Ties(items, cells - first, weights),
            tuple(
                self._heard(rows, np.concatenate(own) - first) for (rows, _), own in zip(heard, numbers, strict=True)
            ),
        )

    def _heard(self, rows: sparse.csr_array, cells: np.ndarray) -> Heard:
        items, num_relations = _owners(rows), self.index.num_relations
        groups = items * num_relations + self.index.column_relation.take(rows.indices)
        return Heard(items, cells, rows.data, groups, (rows.shape[0], num_relations))


def _rows(rows: sparse.csr_array, lists: Sequence[np.ndarray]) -> tuple[sparse.csr_array, list[int]]:
    """The rows of the items of all lists, and where the entries of each list begin, and the last one's end."""
    found = rows[joined(lists, np.int64)]
    return found, found.indptr[np.cumsum([0, *map(len, lists)])].tolist()


def _owners(rows: sparse.csr_array) -> np.ndarray:
    """The row of each entry."""
    return np.arange(rows.shape[0]).repeat(np.diff(rows.indptr))


def _stretches(lists: Sequence[np.ndarray]) -> Iterator[Sequence[np.ndarray]]:
    """Some lists after the others, of `AT_ONCE` items in all, or a single one."""
    start, size = 0, 0
    for row, one in enumerate(lists):
        if row > start and size + len(one) > AT_ONCE:
            yield lists[start:row]
            start, size = row, 0
        size += len(one)
    yield lists[start:]
