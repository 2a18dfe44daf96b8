"""The first stage as the rest of the library sees it: anything that scores all items for a history.

`Retriever` is the border: replace LRURec by another model and nothing after this file changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch

from ..data.schema import PADDING_ITEM
from ..data.sequences import SequenceDataset
from ..data.splits import EXCLUDED
from ..evaluation.metrics import target_ranks
from ..graph.co_ratings import MIN_PEOPLE
from ..utils.errors import LKGError
from ..utils.fingerprints import catalogue_fingerprint


class Retriever(Protocol):
    """Scores every item for each history."""

    num_items: int

    def score(self, histories: Sequence[np.ndarray]) -> np.ndarray:
        """Histories of dense items, oldest first -> scores of `float32`, shape (B, num_items + 1); column 0 is -inf.

        Scores are unnormalised log-probabilities: the ranker adds them to its own.
        """
        ...


class PopularityRetriever:
    """The floor: the logarithm of how often each item was trained on, the same for everybody."""

    def __init__(self, counts: np.ndarray):
        self.num_items = len(counts) - 1
        self.log_counts = np.log(counts.astype(np.float64) + 0.5).astype(np.float32)
        self.log_counts[PADDING_ITEM] = -np.inf

    @classmethod
    def from_dataset(cls, dataset: SequenceDataset) -> PopularityRetriever:
        return cls(dataset.training_counts())

    def score(self, histories: Sequence[np.ndarray]) -> np.ndarray:
        return np.tile(self.log_counts, (len(histories), 1))


def log_popularity(counts: np.ndarray) -> np.ndarray:
    """log(1 + `counts`) in `float32`, where counts are how often items were trained on. Less than `MIN_PEOPLE` count
    as none: what is saved tells nothing of so few, and what is trained reads what is saved."""
    return np.log1p(np.where(counts < MIN_PEOPLE, 0, counts)).astype(np.float32)


def check_retriever(retriever: Retriever, item_ids: Sequence[str]) -> None:
    """Raise `LKGError` where a retriever was trained to find other items than these: its scores would go to the wrong
    ones. Where it has no `catalogue` ([`~utils.fingerprints.catalogue_fingerprint`]), only their number is compared.
    """
    remedy = "Give the retriever that was trained on the same data set."
    if retriever.num_items != len(item_ids):
        raise LKGError(f"The retriever knows {retriever.num_items} items, the processor {len(item_ids)}. {remedy}")
    catalogue = getattr(retriever, "catalogue", None)  # a user's own retriever need not have it
    if catalogue is not None and catalogue != catalogue_fingerprint(item_ids):
        raise LKGError(
            f"The retriever was trained to find other items than the {len(item_ids):,} of the processor, whose ids "
            f"look like {list(item_ids[:3])}. {remedy} If ids have been renamed on purpose, in the same order, set "
            "`retriever.model.config.catalogue = None`."
        )


def pad_left(sequences: Sequence[np.ndarray], max_length: int) -> torch.Tensor:
    """Sequences -> (B, L) `long`, the latest `max_length` of each, padded on the left with 0. An empty one is all
    padding."""
    length = max(1, min(max_length, max((len(sequence) for sequence in sequences), default=1)))
    batch = np.full((len(sequences), length), PADDING_ITEM, dtype=np.int64)
    for row, sequence in enumerate(sequences):
        latest = sequence[-length:]
        if len(latest):
            batch[row, -len(latest) :] = latest
    return torch.from_numpy(batch)


def never_ranked(histories: Sequence[np.ndarray], repeats: str) -> list[np.ndarray]:
    """The items that are not ranked after each history: its own where `repeats` are excluded (the published protocol),
    none where they are allowed ([`~data.splits.PreprocessingSettings`])."""
    return [history if repeats == EXCLUDED else history[:0] for history in histories]


def exclude_history(scores: np.ndarray, histories: Sequence[np.ndarray]) -> np.ndarray:
    """`scores` with -inf for every item of the user's whole history, or of what is `never_ranked` after it. Changes it
    in place."""
    for row, history in enumerate(histories):
        scores[row, history] = -np.inf
    return scores


def top_k(scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The `k` best items of each row of `scores` (B, num_items + 1).

    Returns:
        dense items (B, k), best first, ties by item id; and their scores (B, k). Rows with fewer than `k` finite
        scores end with the padding item and -inf.
    """
    k = min(k, scores.shape[1] - 1)
    items = np.sort(np.argpartition(scores, -k, axis=1)[:, -k:], axis=1)
    best = np.take_along_axis(scores, items, axis=1)
    last = best.min(axis=1, keepdims=True)
    # of items that tie for the last place, the partition kept any; those with the smallest ids have it
    for row in np.flatnonzero(((scores >= last).sum(axis=1) > k) & np.isfinite(last[:, 0])):
        level = np.flatnonzero(scores[row] == last[row])
        above = items[row][best[row] > last[row]]
        items[row] = np.sort(np.concatenate([above, level[: k - len(above)]]))
        best[row] = scores[row, items[row]]
    order = np.argsort(-best, axis=1, kind="stable")
    items, best = np.take_along_axis(items, order, axis=1), np.take_along_axis(best, order, axis=1)
    return np.where(np.isfinite(best), items, PADDING_ITEM), best


def retriever_ranks(dataset: SequenceDataset, retriever: Retriever, split: str, *, block: int = 512) -> np.ndarray:
    """Rank of every target of `split` among all items, history excluded unless the data allow repeats, shape (N,)."""
    return retrieved(dataset, retriever, split, block=block)[0]


def retrieved(
    dataset: SequenceDataset, retriever: Retriever, split: str, *, count: int = 10, block: int = 512
) -> tuple[np.ndarray, np.ndarray]:
    """Of every target of `split`: its rank among all items, history excluded unless the data allow repeats, (N,); and
    the `count` best items, (N, count), 0 where there are fewer."""
    positions, ranks, best = dataset.positions(split), [], []
    for start in range(0, len(positions), block):
        part = positions[start : start + block]
        histories = [dataset.item_sequence[dataset.history(position)] for position in part]
        scores = exclude_history(retriever.score(histories), never_ranked(histories, dataset.settings.repeats))
        ranks.append(target_ranks(scores, dataset.item_sequence[part]))
        best.append(top_k(scores, count)[0])
    return np.concatenate(ranks), np.concatenate(best)
