"""Ranking metrics for one relevant item per list, and bootstrap intervals. A leaf: numpy alone.

With a single relevant item at rank `r` (1 is best): Recall@k = [r <= k], MRR@k = [r <= k] / r, NDCG@k = [r <= k] /
log2(r + 1). A target that is not in the list has rank `MISS` and scores 0 everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


MISS = np.iinfo(np.int64).max
DEFAULT_KS = (1, 5, 10)
BLOCK_CELLS = 2**21  # resamples x users drawn at a time: 32 MB, whatever their numbers


def target_ranks(scores: np.ndarray, labels: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
    """Rank of the labelled candidate in each list, shape (N,): 1 is best, `MISS` where it is negative or masked.

    Ties are broken by position, as a stable sort by descending score would, and a candidate that is not a number ranks
    last: a model that scores everything alike gets no free hit.

    Args:
        scores (shape (N, C)): higher is better.
        labels (shape (N,)): index of the target; negative where the list does not hold it.
        mask (shape (N, C), optional): real candidates.
    """
    scores = np.where(np.isnan(scores), -np.inf, np.asarray(scores, dtype=np.float64))
    mask = np.ones(scores.shape, dtype=bool) if mask is None else np.asarray(mask, dtype=bool)
    labels = np.asarray(labels)
    rows = np.arange(len(scores))
    safe = np.maximum(labels, 0)
    target = scores[rows, safe][:, None]
    earlier = np.arange(scores.shape[1])[None, :] < safe[:, None]
    ahead = ((scores > target) | ((scores == target) & earlier)) & mask
    ranks = 1 + ahead.sum(axis=1)
    return np.where((labels >= 0) & mask[rows, safe], ranks, MISS)


def require_finite(scores: np.ndarray) -> None:
    """Raise `ValueError` where a score is not a number: such a ranking would only repeat the order it was given."""
    broken = ~np.isfinite(scores)
    if broken.any():
        raise ValueError(
            f"{int(broken.sum())} of {broken.size} scores are not finite numbers. The model has diverged or overflows "
            "its number format: lower the learning rate, or use bfloat16 or float32."
        )


def metrics_per_user(ranks: np.ndarray, ks: Sequence[int] = DEFAULT_KS) -> dict[str, np.ndarray]:
    """`{"mrr@1": ..., "ndcg@1": ..., "recall@1": ..., ...}`, each an array of the shape of `ranks`."""
    ranks = np.asarray(ranks, dtype=np.float64)
    values = {}
    for k in ks:
        hit = ranks <= k
        values[f"mrr@{k}"] = np.where(hit, 1.0 / ranks, 0.0)
        values[f"ndcg@{k}"] = np.where(hit, 1.0 / np.log2(ranks + 1.0), 0.0)
        values[f"recall@{k}"] = hit.astype(np.float64)
    return values


def mean_metrics(ranks: np.ndarray, ks: Sequence[int] = DEFAULT_KS) -> dict[str, float]:
    """The metrics' means over all lists."""
    return {name: float(values.mean()) for name, values in metrics_per_user(ranks, ks).items()}


def bootstrap_interval(
    per_target: Mapping[Any, np.ndarray],
    *,
    clusters: np.ndarray | None = None,
    weights: np.ndarray | None = None,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[Any, tuple[float, float]]:
    """Percentile bootstrap intervals of means, targets resampled together for all values, which are aligned.
    Differences per target give a paired interval.

    Args:
        per_target: name -> values, shape (N,).
        clusters (shape (N,), optional): whose each target is, its user. Whole clusters are resampled, and a mean is
            the sum over those drawn by their number of targets: ten targets of one user say less than one target each
            of ten users. By default each target is its own.
        weights (shape (N,), optional): of the targets in the means, above zero. By default all alike.
        level: the share of the resamples between the two ends.
    """
    values = np.stack([np.asarray(column, dtype=np.float64) for column in per_target.values()], axis=1)
    weights = np.ones(len(values)) if weights is None else np.asarray(weights, dtype=np.float64)
    sums = np.concatenate([values * weights[:, None], weights[:, None]], axis=1)
    if clusters is not None:
        _, codes = np.unique(clusters, return_inverse=True)
        order = np.argsort(codes, kind="stable")
        starts = np.flatnonzero(np.diff(codes[order], prepend=-1))
        sums = np.add.reduceat(sums[order], starts, axis=0)
    generator = np.random.default_rng(seed)
    size = len(sums)
    means = np.empty((resamples, values.shape[1]))
    block = max(1, BLOCK_CELLS // size)
    for start in range(0, resamples, block):
        drawn = range(start, min(start + block, resamples))
        counts = [np.bincount(generator.integers(size, size=size), minlength=size) for _ in drawn]
        totals = np.asarray(counts, dtype=np.float64) @ sums
        means[drawn.start : drawn.stop] = totals[:, :-1] / totals[:, -1:]
    tail = 100 * (1 - level) / 2
    low, high = np.percentile(means, [tail, 100 - tail], axis=0)
    return {name: (float(low[i]), float(high[i])) for i, name in enumerate(per_target)}
