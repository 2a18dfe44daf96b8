"""Lists longer than one forward pass can rank: windows that slide from a list's end to its start."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import replace

import numpy as np

from ..data.schema import RankingExample


def rank_windows(
    score: Callable[[RankingExample], np.ndarray], example: RankingExample, window: int
) -> tuple[np.ndarray, np.ndarray]:
    """Order any number of candidates with a model that ranks `window` at a time.

    The list starts in the retriever's order; windows slide from its end to its start, overlapping by half, so that a
    good candidate can rise all the way (RankGPT, arXiv 2304.09542).

    Args:
        score: logits (C,) of an example with at most `window` candidates, or the parts (C, P) whose sums they are.

    Returns:
        the order, best first: indices into `example.candidates`, shape (C,); and the logit, or its parts, that each
        candidate had in the last window it stood in, aligned with `example.candidates`.
    """
    return rank_many(lambda examples: [score(examples[0])], [example], window)[0]


def rank_many(
    score: Callable[[Sequence[RankingExample]], Sequence[np.ndarray]], examples: Sequence[RankingExample], window: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """[`rank_windows`] of several lists at once: `score` gets one window of every list that is not done yet.

    Args:
        score: logits of a batch of examples, a row each; what lies beyond an example's candidates is not read.
    """
    walks = [_windows(example, window) for example in examples]
    asked = {row: next(walk) for row, walk in enumerate(walks)}
    results = {}
    while asked:
        rows, answers = list(asked), score(list(asked.values()))
        asked = {}
        for row, values in zip(rows, answers, strict=True):
            try:
                asked[row] = walks[row].send(values)
            except StopIteration as done:
                results[row] = done.value
    return [results[row] for row in range(len(walks))]


def _windows(
    example: RankingExample, window: int
) -> Generator[RankingExample, np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """The walk of [`rank_windows`]: yields the lists to score, is sent their logits, returns order and logits."""
    order = np.argsort(-example.retrieval_scores, kind="stable")
    logits = None
    if len(order) <= window:
        logits = (yield example)[: len(order)]
        return _best_first(logits), logits
    step = max(1, window // 2)
    start = len(order) - window
    while True:
        rows = order[start : start + window].copy()
        part = replace(
            example,
            candidates=example.candidates[rows],
            retrieval_scores=example.retrieval_scores[rows],
            label=-1,
        )
        values = (yield part)[: len(rows)]
        if logits is None:
            logits = np.zeros((len(order), *values.shape[1:]), dtype=np.float32)
        order[start : start + window] = rows[_best_first(values)]
        logits[rows] = values
        if start == 0:
            return order, logits
        start = max(0, start - step)


def _best_first(logits: np.ndarray) -> np.ndarray:
    """Order of logits (C,), or of the sums of their parts (C, P)."""
    return np.argsort(-(logits if logits.ndim == 1 else logits.sum(-1)), kind="stable")
