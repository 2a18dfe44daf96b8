"""What a history says about each relation: how evidence moved it from item to item."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import signal

from .ranges import joined, ranges
from .ties import Heard, Ties, Told, blocks, tell


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


def statistics_of(index: EvidenceIndex, histories: Sequence[np.ndarray]) -> np.ndarray:
    """As [`EvidenceIndex.statistics`] says."""
    result = np.zeros((len(histories), index.num_relations, len(STATISTICS)), dtype=np.float32)
    for rows in blocks(np.array([len(history) for history in histories], dtype=np.int64)):
        some = [histories[row] for row in rows]
        told = tell(index, some, some)
        result[rows] = steps_of(index, some, told, *told.heard).summed()
    return result


def statistics_along(index: EvidenceIndex, history: np.ndarray) -> np.ndarray:
    """As [`EvidenceIndex.statistics_along`] says."""
    told = tell(index, [history], [history])
    return steps_of(index, [history], told, *told.heard).along()


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


def steps_of(index: EvidenceIndex, histories: Sequence[np.ndarray], told: Told, heard: Heard) -> _Steps:
    """The steps of histories, from what is told of the columns that they hear themselves."""
    lengths = np.array([len(history) for history in histories], dtype=np.int64)
    _, places = ranges(np.zeros(len(lengths), np.int64), lengths)
    decay = 0.5 ** (1.0 / index.half_life)
    evidence, tied = _walk(places, told, heard, decay)
    strength = heard.summed(heard.weights * evidence) / (_mass(decay, places) * index.mean_scale)
    tied = heard.summed(heard.weights * tied) > 0
    return _Steps(lengths, strength, tied, index.expected[joined(histories, np.int64)] / index.mean_scale, decay)


def _walk(places: np.ndarray, told: Told, heard: Heard, decay: float) -> tuple[np.ndarray, np.ndarray]:
    """What has been said of each column by the time it is heard of, by recency, and whether by the item just before;
    each of shape (T,) of `heard`. `places` are those of the items in their histories."""
    said, count = told.said, int(places.max(initial=-1)) + 1
    if not said.weights.all():  # an edge of weight 0 ties nothing
        said = said.take(said.weights.nonzero()[0])
    # in place of letting the past fade at each step, what comes is weighed more: by `growth`
    growth, resets = [1.0], {}
    for place in range(count):
        growth.append(growth[-1] / decay)
        if growth[-1] > 1e100:
            resets[place], growth[-1] = growth[-1], 1.0
    hears, heard_at = _by_place(heard, places, count)
    says, said_at = _by_place(said, places, count)
    asks, cells = heard.cells.take(hears), said.cells.take(says)
    weights = said.weights.take(says) * np.repeat(growth[1:], said_at)
    evidence, newest = np.empty(len(asks)), np.empty(len(asks), dtype=np.int32)
    profile = np.zeros(told.num_cells)
    spoken = np.full(told.num_cells, -2, dtype=np.int32)  # where each was last spoken of
    start = begin = 0
    for place, (stop, end) in enumerate(zip(heard_at.cumsum().tolist(), said_at.cumsum().tolist(), strict=True)):
        part = asks[start:stop]
        profile.take(part, out=evidence[start:stop], mode="clip")  # any other mode makes a copy
        spoken.take(part, out=newest[start:stop], mode="clip")
        if place in resets:
            profile /= resets[place]
        part = cells[begin:end]
        profile[part] += weights[begin:end]
        spoken[part] = place
        start, begin = stop, end
    evidence /= np.repeat(growth[:-1], heard_at)
    tied = newest == np.arange(-1, count - 1).repeat(heard_at)
    return _put_back(evidence, hears), _put_back(tied, hears)


def _by_place(ties: Ties, places: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The order of ties by the place of their items, and how many are at each of `count` places."""
    at = places.astype(np.min_scalar_type(count)).take(ties.items)  # numpy sorts short numbers by counting
    return at.argsort(kind="stable"), np.bincount(at, minlength=count)


def _put_back(values: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Values that stand in an order, as they stood before."""
    result = np.empty_like(values)
    result[order] = values
    return result


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
