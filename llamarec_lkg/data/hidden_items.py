"""Items that are kept out of training, so that what a model does with an item nobody has taken can be measured."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..utils.errors import LKGError
from .sequences import TEST, UNUSED, SequenceDataset


def hide_items(dataset: SequenceDataset, share: float = 0.1, seed: int = 42) -> tuple[SequenceDataset, np.ndarray]:
    """The same data in which some items, drawn by seed, are trained on nowhere: their training and validation
    positions are UNUSED. Test targets stay, and so do the items in the histories before them.

    Models that are fitted on `training_sequences` and tables on `positions("train")` have not seen them. The histories
    before training positions (`dataset.history`) still hold them.

    Args:
        share: of all items.

    Returns:
        the data, and which dense items are hidden, shape (num_items + 1,).

    Raises:
        LKGError: `share` hides no item, or all.
    """
    count = round(share * dataset.num_items)
    if not 0 < count < dataset.num_items:
        raise LKGError(
            f"share={share} of {dataset.num_items} items are {count}; at least one is hidden, and one is not. Give a "
            f"share between {1 / dataset.num_items:.2g} and {1 - 1 / dataset.num_items:.2g}."
        )
    hidden = np.zeros(dataset.num_items + 1, dtype=bool)
    hidden[np.random.default_rng(seed).choice(dataset.num_items, size=count, replace=False) + 1] = True
    out = hidden[dataset.item_sequence] & (dataset.labels != TEST)
    return replace(dataset, labels=np.where(out, UNUSED, dataset.labels).astype(np.int8)), hidden
