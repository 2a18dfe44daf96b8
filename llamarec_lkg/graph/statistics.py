"""What a history says about each relation: how evidence moved it from item to item."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import signal

from .cells import Cells
from .ranges import entries_of, joined, ranges


if TYPE_CHECKING:
    from .evidence import EvidenceIndex


# The first four are logarithms of 1 + evidence, a mean over the items that gave it: how long a history is stands by
# itself.
STATISTICS = (
    "recent",  # mean evidence that earlier items gave to the ones that followed, recent steps counting more
    "mean",  # the same, all steps alike
    "last",  # of the last step
    "expected",  # evidence that the history gives to an average item of the catalogue
    "tied",  # share of steps from an item to one it is tied to
    "lift",  # log of mean over expected: how far above chance the user keeps to the relation
    "length",  # of the history, the same for all relations
)
RECENT_STEPS = 10.0  # half-life of "recent"
BLOCK, PLACES = 128, 1 << 14  # histories, and places in them, that are read at once


def statistics_of(index: EvidenceIndex, histories: Sequence[np.ndarray]) -> np.ndarray:
    """As [`EvidenceIndex.statistics`] says."""
    result = np.zeros((len(histories), index.num_relations, len(STATISTICS)), dtype=np.float32)
    reader = _Reader(index)
    for rows in _blocks(np.array([len(history) for history in histories], dtype=np.int64)):
        result[rows] = reader.read([histories[row] for row in rows]).summed()
    return result


def statistics_along(index: EvidenceIndex, history: np.ndarray) -> np.ndarray:
    """As [`EvidenceIndex.statistics_along`] says."""
    return _Reader(index).read([history]).along()


def _blocks(lengths: np.ndarray) -> Iterator[np.ndarray]:
    """Rows of histories to read together, of about one length each."""
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        size = max(1, min(BLOCK, PLACES // max(1, int(lengths[order[start]]))))
        yield order[start : start + size]
        start += size


@dataclass(frozen=True)
class _Steps:
    """The places of B histories, one history behind the other, P in all.

    Args:
        lengths (shape (B,)).
        strength (shape (P, R)): evidence that the items before gave to each, a mean over them; 0 at first places.
        tied (`bool`, shape (P, R)): whether the item just before gave any.
        expected (shape (P, R)): evidence that each item gives to an average one.
        decay (`float`): how much an item of the history fades at each place.
    """

    lengths: np.ndarray
    strength: np.ndarray
    tied: np.ndarray
    expected: np.ndarray
    decay: float

    def summed(self) -> np.ndarray:
        """The statistics of each history, `float32`, shape (B, R, len(STATISTICS))."""
        ends = self.lengths.cumsum()
        ago = np.repeat(ends, self.lengths) - np.arange(len(self.strength)) - 1  # places that follow
        fade, fading = _fade(), self.decay ** ago[:, None]
        steps = np.maximum(self.lengths - 1, 0)
        recent = self._sum(self.strength * fade ** ago[:, None]) / _mass(fade, steps)
        last = np.zeros_like(recent)
        last[steps > 0] = self.strength[ends[steps > 0] - 1]
        expected = self._sum(self.expected * fading) / _mass(self.decay, self.lengths)
        mean, tied = (self._sum(values) / np.maximum(steps, 1)[:, None] for values in (self.strength, self.tied))
        return _statistics(self.lengths, recent, mean, last, expected, tied)

    def along(self) -> np.ndarray:
        """The statistics of every beginning of the one history, `float32`, shape (P + 1, R, len(STATISTICS))."""
        lengths = np.arange(len(self.strength) + 1)
        strength, tied, expected = (
            np.concatenate([np.zeros((1, values.shape[1])), values])
            for values in (self.strength, self.tied, self.expected)
        )
        steps, fade = np.maximum(lengths - 1, 0), _fade()
        count = np.maximum(steps, 1)[:, None]
        return _statistics(
            lengths,
            signal.lfilter([1.0], [1.0, -fade], strength, axis=0) / _mass(fade, steps),
            strength.cumsum(axis=0) / count,
            strength,
            signal.lfilter([1.0], [1.0, -self.decay], expected, axis=0) / _mass(self.decay, lengths),
            tied.cumsum(axis=0) / count,
        )

    def _sum(self, values: np.ndarray) -> np.ndarray:
        """Of each history's places, shape (B, R)."""
        sums = np.zeros((len(self.lengths), values.shape[1]))
        some = np.flatnonzero(self.lengths)
        if len(some):
            sums[some] = np.add.reduceat(values, (self.lengths.cumsum() - self.lengths)[some], dtype=float)
        return sums


class _Reader:
    """Reads histories together, place by place.

    What an item says of a column matters only where its own history hears of that column. The columns that a history
    hears of are its cells: those of all histories stand in one short vector, in which the past fades.
    """

    def __init__(self, index: EvidenceIndex):
        self.index, self.cells = index, Cells(len(index.column_relation))

    def read(self, histories: Sequence[np.ndarray]) -> _Steps:
        """The steps of some histories."""
        index, decay = self.index, 0.5 ** (1.0 / self.index.half_life)
        lengths = np.array([len(history) for history in histories], dtype=np.int64)
        items = joined(histories, np.int64)
        shape = len(items), index.num_relations
        ends, first_cell = lengths.cumsum(), self.cells.next
        ties = [self._ties(items[end - length : end]) for end, length in zip(ends, lengths, strict=True)]
        heard, said = (_Ties.of_all(part, first_cell) for part in zip(*ties, strict=True))
        evidence, is_tied = _walk(heard, said, self.cells.next - first_cell, decay)

        starts = np.repeat(ends - lengths, [len(part.places) for part, _ in ties])[heard.order]
        sums = (starts + heard.places) * shape[1] + index.column_relation[heard.columns]
        strength, tied = (
            np.bincount(sums, heard.weights * terms, minlength=shape[0] * shape[1]).astype(float).reshape(shape)
            for terms in (evidence, is_tied)
        )
        _, places = ranges(np.zeros(len(lengths), np.int64), lengths)
        strength /= _mass(decay, places) * index.mean_scale
        return _Steps(lengths, strength, tied > 0, index.expected[items] / index.mean_scale, decay)

    def _ties(self, history: np.ndarray) -> tuple[_Ties, _Ties]:
        """What one history hears, and what it says of that."""
        rows = self.index.candidate_rows
        places, entries = entries_of(rows, history)
        columns = rows.indices.take(entries)
        heard = _Ties(places, self.cells.ask(columns), rows.data.take(entries), columns)
        rows = self.index.history_rows
        places, entries = entries_of(rows, history)
        some, cells = self.cells.find(rows.indices.take(entries))
        return heard, _Ties(places.take(some), cells, rows.data.take(entries.take(some)))


@dataclass(frozen=True)
class _Ties:
    """What items of histories have to do with columns, T in all.

    Args:
        places (shape (T,)): of the item in its history.
        cells, weights (shape (T,)): of the histories that are read together, and how much.
        columns (shape (T,), optional): of the index.
        order (shape (T,), optional): where each stood before they were ordered by place.
    """

    places: np.ndarray
    cells: np.ndarray
    weights: np.ndarray
    columns: np.ndarray | None = None
    order: np.ndarray | None = None

    @classmethod
    def of_all(cls, parts: Sequence[_Ties], first_cell: int) -> _Ties:
        """Those of several histories, ordered by place; cells are numbered from 0."""
        places = np.concatenate([part.places for part in parts])
        if places.max(initial=0) < 1 << 16:
            places = places.astype(np.uint16)  # numpy sorts those by counting
        order = places.argsort(kind="stable")
        cells, weights = (np.concatenate([getattr(part, name) for part in parts]) for name in ("cells", "weights"))
        columns = None if parts[0].columns is None else np.concatenate([part.columns for part in parts]).take(order)
        return cls(places.take(order), cells.take(order) - first_cell, weights.take(order), columns, order)


def _walk(heard: _Ties, said: _Ties, num_cells: int, decay: float) -> tuple[np.ndarray, np.ndarray]:
    """What has been said of each column by the time it is heard of, by recency, and whether by the item just before;
    each of shape (T,) of `heard`."""
    evidence, tied = np.zeros(len(heard.places)), np.zeros(len(heard.places), dtype=bool)
    longest = int(heard.places.max(initial=0)) + 1
    hears, says = (np.bincount(ties.places, minlength=longest).cumsum().tolist() for ties in (heard, said))
    # in place of letting the past fade at each step, what comes is weighed more: by `growth`
    profile, growth = np.zeros(num_cells), 1.0
    newest = np.full(num_cells, -2, dtype=np.int32)  # where each was last spoken of
    speaks = None if said.weights.all() else said.weights != 0  # an edge of weight 0 ties nothing
    first_heard = first_said = 0
    for place, (past_heard, past_said) in enumerate(zip(hears, says, strict=False)):
        part, first_heard = slice(first_heard, past_heard), past_heard
        cells = heard.cells[part]
        np.divide(profile.take(cells), growth, out=evidence[part])
        np.equal(newest.take(cells), place - 1, out=tied[part])
        growth /= decay
        if growth > 1e100:
            profile /= growth
            growth = 1.0
        part, first_said = slice(first_said, past_said), past_said
        cells = said.cells[part]
        profile[cells] += growth * said.weights[part]
        newest[cells if speaks is None else cells[speaks[part]]] = place
    return evidence, tied


def _statistics(
    lengths: np.ndarray,
    recent: np.ndarray,
    mean: np.ndarray,
    last: np.ndarray,
    expected: np.ndarray,
    tied: np.ndarray,
) -> np.ndarray:
    """The statistics from means of shape (B, R), zeros but for the length where there was no step."""
    values = np.zeros((*mean.shape, len(STATISTICS)), dtype=np.float32)
    values[..., :4] = np.log1p(np.stack([recent, mean, last, expected], axis=-1))
    values[..., 4] = tied
    values[..., 5] = np.log((mean + 0.05) / (expected + 0.05))
    values[lengths < 2] = 0.0
    values[..., 6] = np.log1p(lengths)[:, None] / 5.0
    return values


def _fade() -> float:
    return 0.5 ** (1.0 / RECENT_STEPS)


def _mass(decay: float, counts: np.ndarray) -> np.ndarray:
    """Sum of the weights of the last so many items, shape (B, 1); 1 where there is none."""
    return ((1.0 - decay ** np.maximum(counts, 1)) / (1.0 - decay))[:, None]
