"""What kind of targets are evaluated: facts for the protocol of a report, and the groups that its slices are of."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np


if TYPE_CHECKING:
    from ..data.sequences import SequenceDataset

LENGTHS = (5, 10, 20, 50, 100, 200)  # where histories may be parted by length
LEAST = 0.1  # share of the targets that each length has
POPULARITIES = (1, 10, 30)
TIES = {"shuffled": "shuffled, seed {}", "file": "in file order", "item_id": "by item id, as published"}

REPEATS = {
    "excluded": "excluded: what is in a history is not ranked",
    "allowed": "allowed: what is in a history is ranked like any other item",
}


def describe_targets(dataset: SequenceDataset, split: str = "test") -> dict[str, Any]:
    """For a report's protocol: how ties were ordered and how many targets are tied, whether what is in a history is
    ranked after it, how many targets were in their own (misses, where it is not), and which interactions of the source
    are not here."""
    positions = dataset.positions(split)
    return {
        "ties": TIES[dataset.settings.ties].format(dataset.settings.seed),
        "tied_targets": int(dataset.tied(positions).sum()),
        "repeats": REPEATS[dataset.settings.repeats],
        "repeated_targets": int(dataset.repeated(positions).sum()),
        "interactions": dataset.ledger.describe(),
    }


def target_slices(dataset: SequenceDataset, split: str = "test") -> dict[str, np.ndarray]:
    """Kind of slice -> a label for each target of `split`, in the order of `dataset.positions(split)`, shape (N,).

    - `history length`: interactions before the target, parted at round numbers such that each part has targets.
    - `item popularity`: how often the target's item was trained on; a new item never.
    - `user`: `new` without a single training interaction, else `known`.
    - `time`: `tied` with another interaction of the user, else `alone`.
    - `repeats`, where they are allowed: `had before` by the user, else `first time`.

    A kind that parts nothing is left out.
    """
    positions = dataset.positions(split)
    users = dataset.user_of(positions)
    trained = np.bincount(dataset.user_of(dataset.positions("train")), minlength=dataset.num_users + 1)
    lengths = positions - dataset.offsets[users - 1]
    popularity = dataset.training_counts()[dataset.item_sequence[positions]]
    kinds = {
        "history length": _ranges(lengths, _bounds_with_people(lengths)),
        "item popularity": np.where(popularity > 0, _ranges(popularity, POPULARITIES), "0 (new)"),
        "user": np.where(trained[users] > 0, "known", "new"),
        "time": np.where(dataset.tied(positions), "tied", "alone"),
    }
    if dataset.settings.repeats == "allowed":  # else all that were had before are misses
        kinds["repeats"] = np.where(dataset.repeated(positions), "had before", "first time")
    return {kind: labels for kind, labels in kinds.items() if len(np.unique(labels)) > 1}


def _bounds_with_people(lengths: np.ndarray) -> list[int]:
    """Those of `LENGTHS` that leave at least `LEAST` of the targets in every part."""
    bounds = [0]
    for bound in LENGTHS:
        parts = ((lengths >= bounds[-1]) & (lengths < bound)).mean(), (lengths >= bound).mean()
        if min(parts) >= LEAST:
            bounds.append(bound)
    return bounds[1:]


def _ranges(values: np.ndarray, bounds: Sequence[int]) -> np.ndarray:
    """A label for each value: "0 to 9", "10 to 49" or "50 and more" for the bounds 10 and 50."""
    names = []
    for start, stop in pairwise([0, *bounds]):
        names.append(str(start) if start + 1 == stop else f"{start} to {stop - 1}")
    return np.array([*names, f"{bounds[-1] if bounds else 0} and more"])[np.searchsorted(bounds, values, side="right")]
