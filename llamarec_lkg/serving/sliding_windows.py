"""Lists longer than one forward pass can rank: windows that slide from a list's end to its start."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np

from ..data.schema import RankingExample


def rank_windows(
    score: Callable[[list[int], list[RankingExample]], Sequence[np.ndarray]],
    examples: Sequence[RankingExample],
    window: int,
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Order lists of any length with a model that ranks `window` candidates at a time.

    A list starts in the retriever's order; windows slide from its end to its start, overlapping by half, so that a
    good candidate can rise all the way (RankGPT, arXiv 2304.09542).

    Args:
        score: from the numbers of lists and a window of each to the windows' parts (C or more, P), whose sums are the
            candidates' scores.

    Returns:
        for each list the indices of its candidates, best first, shape (C,); the parts (C, P) that each candidate had
        in the last window it stood in; and scores (C,) that fall along the order. They are the sums of the parts, all
        lowered by the same in a window that would stand above those before it.
    """
    walks = [_windows(example, window) for example in examples]
    asked = {row: next(walk) for row, walk in enumerate(walks)}
    results = {}
    while asked:
        for row, parts in zip(list(asked), score(list(asked), list(asked.values())), strict=True):
            try:
                asked[row] = walks[row].send(parts)
            except StopIteration as done:
                results[row] = done.value
                del asked[row]
    return [results[row] for row in range(len(walks))]


def _windows(
    example: RankingExample, window: int
) -> Generator[RankingExample, np.ndarray, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yields the windows to score, is sent their parts, returns order, parts and scores of the list."""
    order = np.argsort(-example.retrieval_scores, kind="stable")
    if len(order) <= window:
        parts = (yield example)[: len(order)].astype(np.float64)
        return _best_first(parts.sum(1)), parts, parts.sum(1)
    start, whole = len(order) - window, None
    scored_at = np.zeros(len(order), dtype=np.int64)  # the start of the last window of each candidate
    while True:
        rows = order[start : start + window].copy()
        candidates, scores = example.candidates[rows], example.retrieval_scores[rows]
        parts = (yield replace(example, candidates=candidates, retrieval_scores=scores, label=-1))[: len(rows)]
        if whole is None:
            whole = np.zeros((len(order), parts.shape[1]))
        whole[rows], scored_at[rows] = parts, start
        order[start : start + window] = rows[_best_first(whole[rows].sum(1))]
        if start == 0:
            return order, whole, _lowered(order, whole, scored_at)
        start = max(0, start - max(1, window // 2))


def _lowered(order: np.ndarray, parts: np.ndarray, scored_at: np.ndarray) -> np.ndarray:
    """Sums of the parts, lowered window by window so that they fall along the order."""
    scores = parts.sum(1)
    for better, worse in pairwise(order):
        if scored_at[better] != scored_at[worse] and scores[worse] >= scores[better]:
            rows, bound = scored_at == scored_at[worse], np.nextafter(scores[better], -np.inf)
            scores[rows] = np.minimum(scores[rows] - (scores[worse] - bound), bound)
    return scores


def _best_first(scores: np.ndarray) -> np.ndarray:
    return np.argsort(-scores, kind="stable")
