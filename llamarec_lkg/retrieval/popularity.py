"""The floor: the most popular items for everybody."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..data.schema import PADDING_ITEM
from ..data.sequences import SequenceDataset


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
