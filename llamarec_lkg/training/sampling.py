"""In which order a trainer reads lists, and which of them begin alike."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler, SequentialSampler
from transformers.trainer_pt_utils import LengthGroupedSampler

from ..data.examples import as_examples
from ..data.schema import RankingExample


logger = logging.getLogger(__name__)


class SamplingMixin:
    """`train_sampling_strategy="group_by_length"`, for lists, whose length is that of their histories as text; and
    `share_histories`."""

    _groups: list[np.ndarray] | None = None

    def get_train_dataloader(self) -> DataLoader:
        if self.args.share_histories > 1:
            most = min(self.args.share_histories, self._train_batch_size)  # which auto_find_batch_size lowers
            length = self.processing_class.history_length
            self.train_dataset, self._groups = share_histories(self.train_dataset, most, length)
        return super().get_train_dataloader()

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        if self._groups is not None:
            seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
            return GroupSampler(self._groups, self._train_batch_size, seed)
        if self.args.train_sampling_strategy != "group_by_length":
            return super()._get_train_sampler(train_dataset)
        lists = as_examples(self.train_dataset if train_dataset is None else train_dataset, "train_dataset")
        size = self.args.train_batch_size * self.args.gradient_accumulation_steps
        return LengthGroupedSampler(size, lengths=self.processing_class.prefix_lengths(lists))

    def _get_eval_sampler(self, eval_dataset: Any) -> Any:
        """In their order, which the metrics rely on; upstream would group these by length, too."""
        return SequentialSampler(eval_dataset) if self.args.world_size <= 1 else None


def share_histories(
    examples: Sequence[RankingExample], most: int, history_length: int
) -> tuple[list[RankingExample], list[np.ndarray]]:
    """Lists of a user whose prompts show histories that begin at the same item, so that they are read once.

    The last list of a group shows `history_length` items; those before it show what of these they know, half as many
    at least.

    Args:
        most: lists in a group.

    Returns:
        The lists in their order, with `shown` set, and the rows of each group, every row in one.
    """
    rows_of_user: dict[int, list[int]] = defaultdict(list)
    for row, example in enumerate(examples):
        rows_of_user[example.user].append(row)
    groups: list[list[int]] = []
    for rows in rows_of_user.values():
        rows = sorted(rows, key=lambda row: examples[row].history.tobytes())  # what goes on from it comes next
        for place, row in enumerate(rows):
            first = examples[groups[-1][0]].history if place else None
            history = examples[row].history
            goes_on = first is not None and np.array_equal(first, history[: len(first)])
            if goes_on and len(groups[-1]) < most and len(history) - len(first) <= history_length // 2:
                groups[-1].append(row)
            else:
                groups.append([row])
    result = list(examples)
    for rows in groups:
        begin = max(0, len(examples[rows[-1]].history) - history_length)
        for row in rows:
            shown = None if row == rows[-1] else max(0, len(examples[row].history) - begin)
            if shown != examples[row].shown:
                result[row] = replace(examples[row], shown=shown)
    together = sum(len(rows) for rows in groups if len(rows) > 1)
    logger.info("%d of %d lists share their history with others: %d histories.", together, len(result), len(groups))
    return result, [np.array(rows) for rows in groups]


class GroupSampler(Sampler[int]):
    """Groups of rows by chance, in such an order that batches of `size` hold whole groups; the batch that is not full
    comes last. A group is split where no other fits."""

    def __init__(self, groups: Sequence[np.ndarray], size: int, seed: int) -> None:
        self.groups, self.size, self.seed, self.epoch = groups, size, seed, 0

    def __len__(self) -> int:
        return sum(map(len, self.groups))

    def set_epoch(self, epoch: int) -> None:
        """Another order; accelerate calls it, with the same in all processes and after a resume."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        waiting: dict[int, list[list[int]]] = defaultdict(list)
        for place in torch.randperm(len(self.groups), generator=generator).tolist():
            rows = self.groups[place].tolist()
            waiting[len(rows)].append(rows)
        batches, left = [], len(self)
        while left:
            batch: list[int] = []
            while len(batch) < min(self.size, left):
                room = min(self.size, left) - len(batch)
                sizes = [size for size, some in waiting.items() if some]
                rows = waiting[max([size for size in sizes if size <= room], default=min(sizes))].pop()
                batch += rows[:room]
                if rows[room:]:
                    waiting[len(rows) - room].append(rows[room:])
            batches.append(batch)
            left -= len(batch)
        full = [batch for batch in batches if len(batch) == self.size]
        for place in torch.randperm(len(full), generator=generator).tolist():
            yield from full[place]
        for batch in batches[len(full) :]:
            yield from batch
