"""Which interactions are trained on and which are targets: leave-one-out, and the global time split."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..utils.errors import LKGError


TRAIN, VALIDATION, TEST, UNUSED = 0, 1, 2, -1
SPLITS = {"train": TRAIN, "validation": VALIDATION, "test": TEST}
EXCLUDED, ALLOWED = "excluded", "allowed"


@dataclass(frozen=True)
class PreprocessingSettings:
    """How raw tables become sequences. The defaults are the published protocol (LlamaRec, arXiv 2311.02089, section
    4.1) but for `ties`, whose published rule is `"item_id"`.

    Args:
        min_user_interactions, min_item_interactions (`int`): the k-core filter, repeated until nothing changes.
        split (`"leave-one-out"` or `"time"`): the last interaction of every user is the test target and the one
            before it the validation target; or two points in time, the same for all users, part the data.
        validation_fraction, test_fraction (`float`): of all interactions, for the time split.
        targets (`"first"` or `"all"`): for the time split, whether a user's first interaction in a part is the target
            or each.
        min_rating (`float`, optional): drop interactions rated lower. By default all ratings count as positives.
        ties (`"shuffled"`, `"file"` or `"item_id"`): the order of what a user did in the same second. By chance; as
            in the source table, where its order means something; or by item id, as published. The last makes the
            larger id the target, a pattern that models learn: on MovieLens-100K, where 44% of the test targets are
            tied, it moves results more than most models do. Compare nothing across rules.
        seed (`int`): of the shuffled ties.
        last (`int`): for leave-one-out, how many of each user's last interactions are test targets; of short
            sequences fewer, so that half is left to train on.
        repeats (`"excluded"` or `"allowed"`): whether what is in a history can be ranked after it. Excluded, as
            published, it never is, and a target that its user had before is a miss; allowed, it is a candidate like
            any other, in training lists, in evaluation and of the trained ranker: for music, groceries and games.
    """

    min_user_interactions: int = 5
    min_item_interactions: int = 5
    split: Literal["leave-one-out", "time"] = "leave-one-out"
    validation_fraction: float = 0.1
    test_fraction: float = 0.1
    targets: Literal["first", "all"] = "first"
    min_rating: float | None = None
    ties: Literal["shuffled", "file", "item_id"] = "shuffled"
    seed: int = 42
    last: int = 1
    repeats: Literal["excluded", "allowed"] = EXCLUDED

    def __post_init__(self) -> None:
        if self.split not in ("leave-one-out", "time") or self.targets not in ("first", "all"):
            raise LKGError(
                f"split={self.split!r} and targets={self.targets!r} were given; split is 'leave-one-out' or 'time', "
                "targets 'first' or 'all'."
            )
        if not 0 < self.validation_fraction + self.test_fraction < 1:
            raise LKGError(
                f"validation_fraction + test_fraction is {self.validation_fraction + self.test_fraction}; it must lie "
                "between 0 and 1."
            )
        if self.ties not in ("shuffled", "file", "item_id"):
            raise LKGError(
                f"ties={self.ties!r} was given; it is 'shuffled' (by the seed), 'file' (as in the source) or "
                "'item_id' (as published)."
            )
        check_repeats(self.repeats)
        if self.last < 1 or (self.split == "time" and self.last != 1):
            raise LKGError(
                f"last={self.last} was given with split={self.split!r}; it is the number of test targets of each user "
                "in leave-one-out, 1 or more. For a time split, leave it at 1 and set `targets` to 'all'."
            )


def check_repeats(repeats: str) -> None:
    """Raise `LKGError` where it is neither `EXCLUDED` nor `ALLOWED`."""
    if repeats not in (EXCLUDED, ALLOWED):
        raise LKGError(
            f"repeats={repeats!r} was given; it is 'excluded' (what is in a history is not ranked after it) or "
            "'allowed' (it is)."
        )


def leave_one_out(offsets: np.ndarray, last: int = 1) -> np.ndarray:
    """A label for each position, shape (N,): of users with three interactions or more, the `last` ones (`(n - 2) // 2`
    at most, one at least) are TEST, the one before them VALIDATION."""
    lengths = np.diff(offsets)
    tests = np.where(lengths >= 3, np.clip((lengths - 2) // 2, 1, last), 0)
    labels = np.full(offsets[-1], TRAIN, dtype=np.int8)
    for back in range(1, int(tests.max(initial=0)) + 1):
        labels[offsets[1:][tests >= back] - back] = TEST
    some = tests > 0
    labels[offsets[1:][some] - tests[some] - 1] = VALIDATION
    return labels


def time_split(offsets: np.ndarray, timestamps: np.ndarray, settings: PreprocessingSettings) -> np.ndarray:
    """A label for each position, shape (N,): what came before two points in time, between and after them."""
    after_validation = 1 - settings.test_fraction
    cuts = [after_validation - settings.validation_fraction, after_validation]
    validation_start, test_start = np.quantile(timestamps, cuts, method="higher")
    labels = np.where(timestamps >= test_start, TEST, np.where(timestamps >= validation_start, VALIDATION, TRAIN))
    labels = labels.astype(np.int8)
    firsts = offsets[:-1]
    labels[firsts[labels[firsts] != TRAIN]] = UNUSED  # a target needs a history
    if settings.targets == "first":
        users = np.repeat(np.arange(len(firsts)), np.diff(offsets))
        for part in (VALIDATION, TEST):
            positions = np.flatnonzero(labels == part)
            _, first = np.unique(users[positions], return_index=True)
            labels[np.delete(positions, first)] = UNUSED
    return labels
