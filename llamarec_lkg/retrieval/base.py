"""The first stage as the rest of the library sees it: anything that scores all items for a history.

`Retriever` is the border: replace LRURec by another model and nothing after this file changes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch

from ..data.schema import PADDING_ITEM
from ..data.sequences import SequenceDataset
from ..data.splits import EXCLUDED
from ..graph.co_ratings import MIN_PEOPLE
from ..utils.errors import LKGError
from ..utils.fingerprints import catalogue_fingerprint


SCORES_AT_ONCE = 2**25  # numbers: 134 MB


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
    best, items, tied = (found.numpy() for found in _largest(torch.from_numpy(scores), k))
    order = np.argsort(items, axis=1)
    items, best = np.take_along_axis(items, order, axis=1), np.take_along_axis(best, order, axis=1)
    last = best.min(axis=1, initial=np.inf, keepdims=True)
    # of items that tie for the last place, any were taken; those with the smallest ids have it
    for row in np.flatnonzero(tied & np.isfinite(last[:, 0])):
        level = np.flatnonzero(scores[row] == last[row])
        above = items[row][best[row] > last[row]]
        items[row] = np.sort(np.concatenate([above, level[: k - len(above)]]))
        best[row] = scores[row, items[row]]
    order = np.argsort(-best, axis=1, kind="stable")
    items, best = np.take_along_axis(items, order, axis=1), np.take_along_axis(best, order, axis=1)
    return np.where(np.isfinite(best), items, PADDING_ITEM), best


def _largest(scores: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The `k` largest of each row (B, I), their columns, and whether others tie with the least of them (B,).

    Long rows are parted into groups of columns: the largest numbers of a row are in the `k` groups with the largest
    maxima, so that but a single pass goes over all numbers.
    """
    count = scores.shape[1]
    size = math.isqrt(count // max(1, k))
    if size < 8 or not k:
        best, columns = scores.topk(k, dim=1)
        return best, columns, (scores >= best.amin(1, keepdim=True)).sum(1) > k if k else best.any(1)
    groups = count // size
    whole = scores[:, : groups * size].unflatten(1, (size, groups))  # a group is every so-manieth column
    maxima = whole.amax(dim=1)
    chosen = maxima.topk(k, dim=1).indices
    columns = (chosen[:, None] + groups * torch.arange(size)[:, None]).flatten(1)
    columns = torch.cat([columns, torch.arange(groups * size, count).expand(len(scores), -1)], dim=1)
    values = scores.gather(1, columns)
    best, places = values.topk(k, dim=1)
    last = best.amin(1, keepdim=True)
    tied = ((values >= last).sum(1) > k) | ((maxima >= last).sum(1) > k)
    return best, columns.gather(1, places), tied


def rows_at_once(num_items: int, most: int = 512) -> int:
    """How many histories are scored together, so that their scores stay within bounds whatever the catalogue."""
    return max(1, min(most, SCORES_AT_ONCE // (num_items + 1)))


def frozen(retriever: Retriever) -> Retriever:
    """The retriever as it is now, for many calls of `score`: what does not depend on histories is made once."""
    freeze = getattr(retriever, "frozen", None)  # a user's own retriever need not have it
    return freeze() if callable(freeze) else retriever


def best_items(
    retriever: Retriever, histories: Sequence[np.ndarray], k: int, away: Sequence[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """The `k` best items after each of B histories and their scores, each (B, k), as `top_k` orders them, but for
    those in `away`, dense items for each history. Scores of all items are held for a few histories at a time."""
    retriever, rows, found = frozen(retriever), rows_at_once(retriever.num_items), []
    for start in range(0, max(1, len(histories)), rows):
        part = slice(start, start + rows)
        found.append(top_k(exclude_history(retriever.score(histories[part]), away[part]), k))
    items, scores = zip(*found, strict=True)
    return np.concatenate(items), np.concatenate(scores)


def ranks_among(scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Rank of each row's target (B,) in `scores` (B, I): 1 is best, ties by column, what is not a number last. As
    [`~evaluation.metrics.target_ranks`] of a whole table, without tables of its own."""
    ranks = np.empty(len(scores), dtype=np.int64)
    for row, target in enumerate(targets):
        values, own = scores[row], scores[row, target]
        if np.isnan(own) or own == -np.inf:  # behind all numbers, among what is none or the least
            ahead = np.count_nonzero(values > -np.inf)
            ties = target - np.count_nonzero(values[:target] > -np.inf)
        else:
            ahead, ties = np.count_nonzero(values > own), np.count_nonzero(values[:target] == own)
        ranks[row] = 1 + ahead + ties
    return ranks


def retriever_ranks(dataset: SequenceDataset, retriever: Retriever, split: str) -> np.ndarray:
    """Rank of every target of `split` among all items, history excluded unless the data allow repeats, shape (N,)."""
    return retrieved(dataset, retriever, split)[0]


def retrieved(
    dataset: SequenceDataset, retriever: Retriever, split: str, *, count: int = 10
) -> tuple[np.ndarray, np.ndarray]:
    """Of every target of `split`: its rank among all items, history excluded unless the data allow repeats, (N,); and
    the `count` best items, (N, count), 0 where there are fewer."""
    positions, ranks, best = dataset.positions(split), [], []
    retriever, rows = frozen(retriever), rows_at_once(retriever.num_items)
    for start in range(0, len(positions), rows):
        part = positions[start : start + rows]
        histories = [dataset.item_sequence[dataset.history(position)] for position in part]
        scores = exclude_history(retriever.score(histories), never_ranked(histories, dataset.settings.repeats))
        ranks.append(ranks_among(scores, dataset.item_sequence[part]))
        best.append(top_k(scores, count)[0])
    return np.concatenate(ranks), np.concatenate(best)
