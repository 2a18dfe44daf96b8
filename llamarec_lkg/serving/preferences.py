"""Preferences that somebody sets, in place of those that are read from a history."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Real

from ..utils.errors import LKGError


def with_weights(own: Mapping[str, float], given: Mapping[str, float]) -> dict[str, float]:
    """A distribution in which the given relations have the given weights, and the others share what remains of 1 as
    they do in `own` (evenly where they have nothing there).

    Args:
        own: a distribution over all relations.
        given: some of them, or all.

    Raises:
        LKGError: a relation is not one of `own`, or the weights are no shares of 1.
    """
    unknown = sorted(given.keys() - own.keys())
    if unknown:
        raise LKGError(f"There are no relations {unknown}. Give weights of some of {sorted(own)}.")
    others = [name for name in own if name not in given]
    total = sum(given.values()) if all(isinstance(value, Real) for value in given.values()) else math.nan
    fits = total <= 1 + 1e-4 and (others or total >= 1 - 1e-4)  # what was rounded still adds up
    if not fits or not all(math.isfinite(value) and value >= 0 for value in given.values()):
        raise LKGError(
            f"The preferences {dict(given)} are no shares of 1. Give numbers from 0 that sum to at most 1, or to 1 "
            "where every relation has one."
        )
    left, before = max(0.0, 1 - total), sum(own[name] for name in others)
    shares = {name: own[name] / before if before else 1 / len(others) for name in others}
    return {name: float(given[name]) if name in given else left * shares[name] for name in own}
