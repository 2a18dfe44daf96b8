"""In which order a trainer reads lists."""

from __future__ import annotations

from typing import Any

from torch.utils.data import SequentialSampler
from transformers.trainer_pt_utils import LengthGroupedSampler

from ..data.examples import as_examples


class SamplingMixin:
    """`train_sampling_strategy="group_by_length"`, for lists, whose length is that of their histories as text."""

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        if self.args.train_sampling_strategy != "group_by_length":
            return super()._get_train_sampler(train_dataset)
        lists = as_examples(self.train_dataset if train_dataset is None else train_dataset, "train_dataset")
        size = self.args.train_batch_size * self.args.gradient_accumulation_steps
        return LengthGroupedSampler(size, lengths=self.processing_class.prefix_lengths(lists))

    def _get_eval_sampler(self, eval_dataset: Any) -> Any:
        """In their order, which the metrics rely on; upstream would group these by length, too."""
        return SequentialSampler(eval_dataset) if self.args.world_size <= 1 else None
