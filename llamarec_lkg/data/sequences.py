"""From raw tables to dense sequences and splits: leave-one-out, and the global time split."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from ..utils.errors import LKGError
from ..utils.files import atomic_files, cache_dir, file_name, read_json, write_json
from ..utils.fingerprints import as_plain, fingerprint
from .k_core import core_rows
from .schema import ITEM_ID, RATING, TIMESTAMP, USER_ID, DatasetBundle, ItemTable, natural_order


logger = logging.getLogger(__name__)
FORMAT_VERSION = 3
ARRAYS_FILE = "sequences.safetensors"
TRAIN, VALIDATION, TEST, UNUSED = 0, 1, 2, -1
SPLITS = {"train": TRAIN, "validation": VALIDATION, "test": TEST}


@dataclass(frozen=True)
class PreprocessingSettings:
    """How raw tables become sequences. The defaults are the published protocol (LlamaRec, arXiv 2311.02089, section
    4.1).

    Args:
        min_user_interactions, min_item_interactions (`int`): the k-core filter, repeated until nothing changes.
        split (`"leave-one-out"` or `"time"`): the last interaction of every user is the test target and the one
            before it the validation target; or two points in time, the same for all users, part the data.
        validation_fraction, test_fraction (`float`): of all interactions, for the time split.
        targets (`"first"` or `"all"`): for the time split, whether a user's first interaction in a part is the target
            or each.
        min_rating (`float`, optional): drop interactions rated lower. By default all ratings count as positives.
    """

    min_user_interactions: int = 5
    min_item_interactions: int = 5
    split: Literal["leave-one-out", "time"] = "leave-one-out"
    validation_fraction: float = 0.1
    test_fraction: float = 0.1
    targets: Literal["first", "all"] = "first"
    min_rating: float | None = None

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


@dataclass(frozen=True)
class SequenceDataset:
    """Users' interactions in time order, with dense ids and a split label each.

    Dense ids start at 1: item 0 is padding, user 0 the unknown user. User `u` owns the positions
    `offsets[u - 1]:offsets[u]` of the aligned arrays.

    Args:
        name (`str`): of the source.
        user_ids (`tuple[str, ...]`): raw id of dense user `u` at `u - 1`.
        items (`ItemTable`): row `i - 1` is dense item `i`.
        offsets (`np.ndarray` of `int64`, shape (U + 1,)).
        item_sequence (`np.ndarray` of `int32`, shape (N,)): dense items.
        ratings (`np.ndarray` of `float32`, shape (N,)), timestamps (`np.ndarray` of `int64`, shape (N,)).
        labels (`np.ndarray` of `int8`, shape (N,)): TRAIN, VALIDATION, TEST or UNUSED for each position. A VALIDATION
            or TEST position is a target; its history is everything the user did before it.
        dropped_items (`ItemTable`): the catalogue's items that the filter removed.
    """

    name: str
    user_ids: tuple[str, ...]
    items: ItemTable
    offsets: np.ndarray
    item_sequence: np.ndarray
    ratings: np.ndarray
    timestamps: np.ndarray
    labels: np.ndarray
    dropped_items: ItemTable
    settings: PreprocessingSettings

    @classmethod
    def from_bundle(cls, bundle: DatasetBundle, settings: PreprocessingSettings | None = None) -> SequenceDataset:
        """Filter, order and split.

        Items without a row in the item table are dropped; then users and items with too few interactions, repeatedly;
        then each user's interactions are ordered by (timestamp, item id). An `LKGError` says that nothing is left.
        """
        settings = settings or PreprocessingSettings()
        frame = bundle.interactions.to_frame()
        known = frame[ITEM_ID].isin(set(bundle.items.ids))
        if not known.all():
            logger.warning(
                "Dropped %d interactions with items that have no row in the item table.", int((~known).sum())
            )
        frame = frame[known]
        if settings.min_rating is not None:
            frame = frame[frame[RATING] >= settings.min_rating]
        bounds = (settings.min_user_interactions, settings.min_item_interactions)
        frame = frame[core_rows(frame[USER_ID].to_numpy(), frame[ITEM_ID].to_numpy(), *bounds)]
        if frame.empty:
            raise LKGError(
                f"No interaction of {len(bundle.interactions)} is left after dropping items without metadata and "
                f"users with fewer than {bounds[0]} or items with fewer than {bounds[1]} interactions. Lower those "
                "bounds."
            )
        user_ids = natural_order(frame[USER_ID])
        item_ids = natural_order(frame[ITEM_ID])
        kept = set(item_ids)
        users = pd.Index(user_ids).get_indexer(frame[USER_ID]) + 1
        items = pd.Index(item_ids).get_indexer(frame[ITEM_ID]) + 1
        order = np.lexsort((items, frame[TIMESTAMP], users))
        offsets = np.concatenate([[0], np.cumsum(np.bincount(users, minlength=len(user_ids) + 1)[1:])])
        timestamps = frame[TIMESTAMP].to_numpy()[order]
        by_time = settings.split == "time"
        dataset = cls(
            name=bundle.name,
            user_ids=tuple(user_ids),
            items=bundle.items.select(item_ids),
            offsets=offsets,
            item_sequence=items[order].astype(np.int32),
            ratings=frame[RATING].to_numpy()[order],
            timestamps=timestamps,
            labels=_time_split(offsets, timestamps, settings) if by_time else _leave_one_out(offsets),
            dropped_items=bundle.items.select([raw for raw in bundle.items.ids if raw not in kept]),
            settings=settings,
        )
        if not (dataset.labels == TEST).any():
            raise LKGError(
                "No user has an interaction in the test part. Leave-one-out needs users with three interactions, a "
                "time split users with some before and after the split point."
            )
        return dataset

    @property
    def num_users(self) -> int:
        return len(self.user_ids)

    @property
    def num_items(self) -> int:
        return len(self.items)

    def positions(self, split: str) -> np.ndarray:
        """Positions of the targets of `"validation"` or `"test"`, or of the training interactions."""
        return np.flatnonzero(self.labels == SPLITS[split])

    def user_of(self, positions: np.ndarray) -> np.ndarray:
        """Dense user of each position."""
        return np.searchsorted(self.offsets, positions, side="right")

    def history(self, position: int, max_length: int | None = None) -> slice:
        """What the user of `position` did before it: a slice of the aligned arrays, the latest `max_length` of it."""
        start = int(self.offsets[self.user_of(np.asarray(position)) - 1])
        return slice(start if max_length is None else max(start, position - max_length), int(position))

    def training_sequences(self) -> list[np.ndarray]:
        """Training items of each user in time order; users without any are left out."""
        parts = (slice(a, b) for a, b in zip(self.offsets[:-1], self.offsets[1:], strict=True))
        sequences = (self.item_sequence[part][self.labels[part] == TRAIN] for part in parts)
        return [sequence for sequence in sequences if len(sequence)]

    def training_counts(self) -> np.ndarray:
        """How often each dense item was trained on, shape (num_items + 1,)."""
        return np.bincount(self.item_sequence[self.labels == TRAIN], minlength=self.num_items + 1)

    def without_users(self, users: np.ndarray) -> SequenceDataset:
        """The same data in which some dense users train, validate and test nothing: their positions are UNUSED."""
        out = np.isin(self.user_of(np.arange(len(self.labels))), users)
        return replace(self, labels=np.where(out, UNUSED, self.labels).astype(np.int8))

    def save(self, folder: str | Path) -> None:
        """Write its files into `folder`, beside what else is there."""
        with atomic_files(folder) as temporary:
            save_file({name: np.ascontiguousarray(getattr(self, name)) for name in _ARRAYS}, temporary / ARRAYS_FILE)
            self.items.to_frame().to_parquet(temporary / "items.parquet")
            self.dropped_items.to_frame().to_parquet(temporary / "dropped_items.parquet")
            pd.DataFrame({USER_ID: list(self.user_ids)}, dtype=str).to_parquet(temporary / "users.parquet")
            description = {"format_version": FORMAT_VERSION, "name": self.name, "settings": as_plain(self.settings)}
            write_json(temporary / "dataset.json", description)

    @classmethod
    def load(cls, folder: str | Path) -> SequenceDataset:
        """Read what `save` wrote; an `LKGError` where a file is damaged or another version wrote it."""
        folder = Path(folder)
        description = read_json(folder / "dataset.json")
        if description.get("format_version") != FORMAT_VERSION:
            raise LKGError(
                f"{folder} holds prepared data in format {description.get('format_version')}; this version reads "
                f"{FORMAT_VERSION}. Prepare the data again."
            )
        try:
            return cls(
                name=description["name"],
                user_ids=tuple(pd.read_parquet(folder / "users.parquet")[USER_ID]),
                items=_read_items(folder / "items.parquet"),
                dropped_items=_read_items(folder / "dropped_items.parquet"),
                settings=PreprocessingSettings(**description["settings"]),
                **load_file(folder / ARRAYS_FILE),
            )
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise LKGError(
                f"The prepared data in {folder} is damaged ({error}). Delete the folder and prepare it again."
            ) from error


_ARRAYS = ("offsets", "item_sequence", "ratings", "timestamps", "labels")


def prepare_dataset(bundle: DatasetBundle, settings: PreprocessingSettings | None = None) -> SequenceDataset:
    """`SequenceDataset.from_bundle`, kept in the cache under a name made of the content and the settings."""
    settings = settings or PreprocessingSettings()
    key = fingerprint(FORMAT_VERSION, bundle.interactions, bundle.items, as_plain(settings))
    folder = cache_dir() / "prepared" / f"{file_name(bundle.name)}-{key}"
    if (folder / "dataset.json").exists():  # written last
        return SequenceDataset.load(folder)
    dataset = SequenceDataset.from_bundle(bundle, settings)
    dataset.save(folder)
    return dataset


def _leave_one_out(offsets: np.ndarray) -> np.ndarray:
    labels = np.full(offsets[-1], TRAIN, dtype=np.int8)
    ends = offsets[1:][np.diff(offsets) >= 3]
    labels[ends - 1] = TEST
    labels[ends - 2] = VALIDATION
    return labels


def _time_split(offsets: np.ndarray, timestamps: np.ndarray, settings: PreprocessingSettings) -> np.ndarray:
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


def _read_items(path: Path) -> ItemTable:
    frame = pd.read_parquet(path)
    return ItemTable.from_frame(frame, {column: column for column in frame.columns[2:]})
