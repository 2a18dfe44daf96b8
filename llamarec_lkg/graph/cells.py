"""Few numbers in place of many columns: a history has to do with hundreds of the millions that an index may have."""

from __future__ import annotations

import numpy as np


class Cells:
    """Numbers the columns that are asked about, list after list.

    The table is as long as the columns are many, and is made once: numbers only grow, so that those of one list are
    told from the ones before, and nothing has to be wiped out.
    """

    def __init__(self, num_columns: int):
        self.last = np.zeros(num_columns, dtype=np.int64)
        self.first = self.next = 1

    def ask(self, *columns: np.ndarray) -> list[np.ndarray]:
        """Begin with a list: a number for each of its columns, which may be told in several parts; equal ones where a
        column comes again."""
        self.first = self.next
        for part in columns:
            self.next += len(part)
            self.last[part] = np.arange(self.next - len(part), self.next)
        return [self.last.take(part) for part in columns]

    def find(self, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which of these columns were asked about in the list at hand, and their numbers."""
        numbers = self.last.take(columns)
        some = (numbers >= self.first).nonzero()[0]
        return some, numbers.take(some)
