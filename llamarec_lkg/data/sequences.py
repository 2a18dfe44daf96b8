"""From raw tables to dense sequences, each interaction with the part of the data that it belongs to."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from ..utils.errors import LKGError
from ..utils.files import atomic_files, cache_dir, file_name, read_json, read_saved_table, write_json
from ..utils.fingerprints import as_plain, fingerprint
from .arrays import blocks, counted, mapped, same_as_before
from .engine import connect
from .interactions import ROW
from .k_core import core_rows
from .ledger import EXACT_DUPLICATES, Ledger
from .ordering import order_ties, shuffling_keys
from .raw_dataset import RawDataset, coded_interactions
from .schema import TIMESTAMP, USER_ID, DatasetBundle, ItemTable
from .splits import (
    EXCLUDED,
    SPLITS,
    TEST,
    TRAIN,
    UNUSED,
    VALIDATION,
    PreprocessingSettings,
    leave_one_out,
    time_split,
)
from .values import natural_order


logger = logging.getLogger(__name__)
FORMAT_VERSION = 6
ARRAYS_FILE = "sequences.safetensors"
USERS = 1 << 14  # whose interactions are looked at together


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
        settings ([`PreprocessingSettings`]): how they were made.
        ledger ([`Ledger`]): what of the source is not here, or not as it came.
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
    ledger: Ledger = field(default_factory=Ledger, compare=False)

    @classmethod
    def from_bundle(cls, bundle: DatasetBundle, settings: PreprocessingSettings | None = None) -> SequenceDataset:
        """`from_raw` of a data set in memory."""
        return cls.from_raw(RawDataset.from_bundle(bundle), settings)

    @classmethod
    def from_raw(cls, raw: RawDataset, settings: PreprocessingSettings | None = None) -> SequenceDataset:
        """Filter, order and split.

        Exact duplicates are dropped, and items without a row in the item table; then users and items with too few
        interactions, repeatedly; then each user's interactions are ordered by time, ties as `settings.ties` says. What
        was lost on the way is in `ledger`, and told. An `LKGError` says that nothing is left.
        """
        settings = settings or PreprocessingSettings()
        items, _ = raw.catalogue(None)
        connection = connect()
        order = f"user, {TIMESTAMP}, item, {ROW}"
        found = coded_interactions(connection, raw.typed(connection), raw.name, order=order)
        connection.close()
        ledger = Ledger(len(found.users), changed=dict(raw.ledger.changed))

        def keep(which: np.ndarray, reason: str) -> None:
            ledger.leave_out(reason, int((~which).sum()))
            if not which.all():
                found.keep(which)

        keep(~same_as_before(found.users, found.timestamps, found.items), EXACT_DUPLICATES)
        if settings.ties == "shuffled":
            parts = (found.users, found.items, found.timestamps, found.item_ids)
            found.rows = shuffling_keys(*parts, settings.seed)
        rows_of = {raw_id: row for row, raw_id in enumerate(items.ids)}
        known = np.array([raw_id in rows_of for raw_id in found.item_ids], dtype=bool)
        keep(mapped(known, found.items), "of items that have no row in the item table")
        if settings.min_rating is not None:
            keep(found.ratings >= settings.min_rating, f"rated below {settings.min_rating}")
        bounds = (settings.min_user_interactions, settings.min_item_interactions)
        keep(
            core_rows(found.users, found.items, *bounds),
            f"of users with fewer than {bounds[0]} or items with fewer than {bounds[1]}",
        )
        if not len(found.users):
            raise LKGError(
                f"{raw.name}: {ledger.describe()} Nothing is left. Lower those bounds, or complete the item table."
            )
        found.users, user_ids = _dense(found.users, found.user_ids)
        found.items, item_ids = _dense(found.items, found.item_ids)
        if (found.users[1:] < found.users[:-1]).any():  # ids of which some are numbers
            found.move(np.arange(len(found.users)), np.argsort(found.users, kind="stable"))
        keys = found.items if settings.ties == "item_id" else found.rows
        found.move(*order_ties(same_as_before(found.users, found.timestamps), keys))
        offsets = np.concatenate([[0], np.cumsum(counted(found.users)[1:])])
        timestamps = found.timestamps
        by_time = settings.split == "time"
        kept = set(item_ids)
        dataset = cls(
            name=raw.name,
            user_ids=tuple(user_ids),
            items=items.select(item_ids),
            offsets=offsets,
            item_sequence=found.items,
            ratings=found.ratings,
            timestamps=timestamps,
            labels=time_split(offsets, timestamps, settings) if by_time else leave_one_out(offsets, settings.last),
            dropped_items=items.select([raw_id for raw_id in items.ids if raw_id not in kept]),
            settings=settings,
            ledger=ledger,
        )
        if ledger.left_out or ledger.changed:
            logger.warning(f"{raw.name}: {ledger.describe()}")
        if not (dataset.labels == TEST).any():
            found_part = f"No user has three interactions, the longest sequence is of {int(np.diff(offsets).max())}."
            remedy = "Leave-one-out needs more of some user; or set `split` to 'time'."
            if by_time:
                found_part = f"No user has interactions before the last {settings.test_fraction:.0%} and in it."
                remedy = "Change `test_fraction`, or set `split` to 'leave-one-out'."
            raise LKGError(f"There is no test target. {found_part} {remedy}")
        targets = np.flatnonzero(np.isin(dataset.labels, (VALIDATION, TEST)))
        if settings.repeats == EXCLUDED and (repeated := int(dataset.repeated(targets).sum())):
            logger.warning(
                "%d of %d targets (%.1f%%) are items that their users had before. What is in a history is not ranked, "
                "so that these count as misses. Where people come back to what they had, set `repeats: allowed` "
                "(preprocessing.repeats).", repeated, len(targets), 100 * repeated / len(targets),
            )  # fmt: skip
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

    def tied(self, positions: np.ndarray) -> np.ndarray:
        """Whether time does not say what came first: the interaction shares its timestamp with the one before or after
        it of the same user. `bool`, shape of `positions`."""
        same = (np.diff(self.timestamps) == 0) & (np.diff(self.user_of(np.arange(len(self.timestamps)))) == 0)
        return (np.append(False, same) | np.append(same, False))[positions]

    def repeated(self, positions: np.ndarray) -> np.ndarray:
        """Whether the user had the item before, so that it is in the history of the position: `bool`, shape of
        `positions`."""
        again = np.ones(len(self.item_sequence), dtype=bool)
        for some in blocks(self.num_users, USERS):  # sorting takes room
            offsets = self.offsets[some.start : some.stop + 1]
            users = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
            items = self.item_sequence[offsets[0] : offsets[-1]]
            _, first = np.unique(users * (self.num_items + 1) + items, return_index=True)
            again[offsets[0] + first] = False
        return again[positions]

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
            description = {
                "format_version": FORMAT_VERSION,
                "name": self.name,
                "settings": as_plain(self.settings),
                "ledger": as_plain(self.ledger),
            }
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
                user_ids=tuple(read_saved_table(folder / "users.parquet")[USER_ID]),
                items=_read_items(folder / "items.parquet"),
                dropped_items=_read_items(folder / "dropped_items.parquet"),
                settings=PreprocessingSettings(**description["settings"]),
                ledger=Ledger(**description["ledger"]),
                **load_file(folder / ARRAYS_FILE),
            )
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise LKGError(
                f"The prepared data in {folder} is damaged ({error}). Delete the folder and prepare it again."
            ) from error


def _dense(codes: np.ndarray, ids: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Dense ids from 1 on in place of codes, in the natural order of the raw ids that are left, and these."""
    left = np.flatnonzero(counted(codes))
    rank = natural_order(ids[left])
    dense = np.zeros(len(ids), dtype=np.int32)
    dense[left[rank]] = np.arange(1, len(left) + 1)
    return mapped(dense, codes), ids[left[rank]].tolist()


_ARRAYS = ("offsets", "item_sequence", "ratings", "timestamps", "labels")


def prepare_dataset(bundle: DatasetBundle, settings: PreprocessingSettings | None = None) -> SequenceDataset:
    """`SequenceDataset.from_bundle`, kept in the cache under a name made of the content and the settings."""
    settings = settings or PreprocessingSettings()
    key = fingerprint(FORMAT_VERSION, bundle.interactions, bundle.items, as_plain(settings))
    folder = cache_dir() / "prepared" / f"{file_name(bundle.name)}-{key}"
    if (folder / "dataset.json").exists():  # written last
        dataset = SequenceDataset.load(folder)
        return replace(dataset, ledger=replace(dataset.ledger, changed=dict(bundle.interactions.ledger.changed)))
    dataset = SequenceDataset.from_bundle(bundle, settings)
    try:
        dataset.save(folder)
    except OSError as error:
        logger.warning(f"The prepared data cannot be kept ({error}); every run prepares them anew.")
    return dataset


def _read_items(path: Path) -> ItemTable:
    frame = read_saved_table(path)
    return ItemTable.from_frame(frame, {column: column for column in frame.columns[2:]})
