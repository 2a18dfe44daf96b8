from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from llamarec_lkg.data.k_core import core_rows
from llamarec_lkg.data.schema import ITEM_ID, TITLE, ItemTable
from llamarec_lkg.data.sequences import (
    TEST,
    TRAIN,
    UNUSED,
    VALIDATION,
    PreprocessingSettings,
    SequenceDataset,
    prepare_dataset,
)
from llamarec_lkg.utils.errors import LKGError
from llamarec_lkg.utils.files import cache_dir


LOOSE = PreprocessingSettings(min_user_interactions=1, min_item_interactions=1)


def same(one: SequenceDataset, other: SequenceDataset) -> bool:
    return all(
        np.array_equal(a, b) and a.dtype == b.dtype if isinstance(a, np.ndarray) else a == b
        for a, b in ((getattr(one, name), getattr(other, name)) for name in one.__dataclass_fields__)
    )


def raw_sequence(dataset: SequenceDataset, user: int) -> list[str]:
    part = dataset.item_sequence[dataset.offsets[user - 1] : dataset.offsets[user]]
    return [dataset.items.ids[item - 1] for item in part]


# -- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [{"split": "random"}, {"targets": "last"}])
def test_an_unknown_split_is_refused(wrong):
    with pytest.raises(LKGError, match="split is 'leave-one-out' or 'time', targets 'first' or 'all'"):
        PreprocessingSettings(**wrong)


@pytest.mark.parametrize("validation, test", [(0.5, 0.5), (0.0, 0.0)])
def test_fractions_must_leave_something_to_train_on(validation, test):
    with pytest.raises(LKGError, match="it must lie between 0 and 1"):
        PreprocessingSettings(validation_fraction=validation, test_fraction=test)


# -- filter and order -------------------------------------------------------------------------------------------------


def test_the_k_core_filter_repeats_until_nothing_changes():
    # c has one item fewer once z is gone, and then x one user fewer
    pairs = [("a", "x"), ("a", "y"), ("b", "x"), ("b", "y"), ("c", "w"), ("c", "z"), ("d", "w"), ("d", "x")]
    users, items = np.array(pairs).T
    users, items = np.unique(users, return_inverse=True)[1], np.unique(items, return_inverse=True)[1]
    left = core_rows(users, items, 2, 2)
    assert np.array(pairs)[left].tolist() == [["a", "x"], ["a", "y"], ["b", "x"], ["b", "y"]]
    assert core_rows(users, items, 1, 1).all()
    assert not core_rows(users, items, 3, 1).any()


def test_the_filter_keeps_what_has_exactly_the_minimum(make_dataset):
    rows = [(user, item, item) for user in (1, 2, 3) for item in (1, 2, 3)] + [(4, 1, 1), (4, 2, 2), (1, 4, 4)]
    kept = make_dataset(rows, min_user_interactions=3, min_item_interactions=3)
    assert kept.user_ids == ("1", "2", "3")
    assert kept.items.ids == ("1", "2", "3")
    assert kept.dropped_items.ids == ("4",)
    assert kept.dropped_items.titles == ("Title 4",)


def test_items_without_a_row_in_the_item_table_are_dropped_with_a_warning(make_dataset, caplog):
    items = pd.DataFrame({ITEM_ID: [1, 2, 3], TITLE: ["A", "B", "C"]})
    data = make_dataset([(1, 1, 1), (1, 9, 2), (1, 2, 3), (1, 3, 4)], items)
    assert raw_sequence(data, 1) == ["1", "2", "3"]
    assert "of 4 interactions 3 are kept. Left out: 1 of items that have no row in the item table" in caplog.text


def test_low_ratings_can_be_dropped(make_dataset):
    rows = [(1, item, item, rating) for item, rating in zip(range(1, 6), (5, 2.5, 3, 2, 4), strict=True)]
    assert raw_sequence(make_dataset(rows, min_rating=3), 1) == ["1", "3", "5"]
    assert len(make_dataset(rows).item_sequence) == 5


def test_interactions_are_ordered_by_time_then_as_published_by_numeric_item_id(make_dataset):
    rows = [(2, 1, 9), (1, 10, 5), (1, 9, 5), (10, 9, 1), (1, 100, 4), (10, 1, 0), (10, 10, 2), (1, 1, 5)]
    data = make_dataset(rows, ties="item_id")
    assert data.user_ids == ("1", "2", "10")
    assert data.items.ids == ("1", "9", "10", "100")
    assert data.offsets.tolist() == [0, 4, 5, 8]
    assert raw_sequence(data, 1) == ["100", "1", "9", "10"]
    assert raw_sequence(data, 3) == ["1", "9", "10"]
    assert data.timestamps.tolist() == [4, 5, 5, 5, 9, 0, 1, 2]
    assert data.item_sequence.dtype == np.int32 and data.item_sequence.min() == 1


def test_ratings_travel_with_their_interactions(make_dataset):
    data = make_dataset([(1, 3, 30, 5.0), (1, 1, 10, 1.0), (1, 2, 20, 2.5)])
    assert data.ratings.tolist() == [1.0, 2.5, 5.0]


def test_titles_and_attributes_follow_the_dense_order(film_dataset, make_dataset, film_items):
    rows = [(1, item, item) for item in (5, 4, 2)]
    data = make_dataset(rows, film_items.iloc[::-1])
    assert data.items.ids == ("2", "4", "5")
    assert data.items.titles == ("Insider, The (1999)", "Antz (1998)", "Alien (1979)")
    assert data.items.attributes["DIRECTED_BY"] == (("Mann",), ("Darnell", "Johnson"), ("Scott",))
    assert data.dropped_items.ids == ("6", "3", "1")
    assert data.dropped_items.attributes["GENRE_IS"] == (("Family",), ("Comedy", "Family"), ("Action", "Crime"))
    assert film_dataset.num_items == 6 and film_dataset.num_users == 4


# -- splits -----------------------------------------------------------------------------------------------------------


def test_leave_one_out_takes_the_last_two_of_users_with_three_or_more(make_dataset):
    rows = [(1, item, item) for item in range(1, 6)] + [(2, 1, 1), (2, 2, 2)] + [(3, item, item) for item in (1, 2, 3)]
    data = make_dataset(rows)
    assert data.labels.tolist() == [TRAIN] * 3 + [VALIDATION, TEST] + [TRAIN, TRAIN] + [TRAIN, VALIDATION, TEST]
    assert data.positions("train").tolist() == [0, 1, 2, 5, 6, 7]
    assert data.positions("validation").tolist() == [3, 8]
    assert data.positions("test").tolist() == [4, 9]
    assert data.user_of(data.positions("test")).tolist() == [1, 3]


@pytest.mark.parametrize(
    ("length", "tests"), [(2, 0), (3, 1), (4, 1), (5, 1), (6, 2), (7, 2), (8, 3), (17, 7), (18, 8), (40, 8)]
)
def test_the_last_eight_are_targets_where_half_is_left_to_train_on(make_dataset, length, tests):
    data = make_dataset([(1, item, item) for item in range(length)] + [(2, item, item) for item in range(3)], last=8)
    expected = [TRAIN] * (length - tests - 1) + [VALIDATION] + [TEST] * tests if tests else [TRAIN] * length
    assert data.labels.tolist() == [*expected, TRAIN, VALIDATION, TEST]
    assert data.labels.dtype == np.int8


@pytest.mark.parametrize("wrong", [{"last": 0}, {"last": 3, "split": "time"}])
def test_a_number_of_targets_that_means_nothing_is_refused(wrong):
    with pytest.raises(LKGError, match=f"last={wrong['last']} was given .*1 or more"):
        PreprocessingSettings(**wrong)


@pytest.fixture(scope="module")
def random_rows():
    generator = np.random.default_rng(3)
    return [(int(u), int(i), int(t)) for u, i, t in generator.integers([1, 1, 0], [30, 20, 300], size=(400, 3))]


@pytest.mark.parametrize("targets", ["first", "all"])
def test_a_time_split_has_no_target_before_a_training_interaction(make_dataset, random_rows, targets):
    data = make_dataset(random_rows, split="time", validation_fraction=0.2, test_fraction=0.15, targets=targets)
    training, validation, test = (data.timestamps[data.positions(part)] for part in ("train", "validation", "test"))
    assert training.max() < validation.min() and validation.max() < test.min()
    assert 0.6 < len(training) / len(data.labels) <= 0.66
    starts = set(data.offsets[:-1].tolist())
    assert not starts & set(np.concatenate([data.positions("validation"), data.positions("test")]).tolist())


def test_the_targets_of_a_time_split_are_the_first_or_all_of_each_user(make_dataset):
    # the cuts are at 60 and 90; what user 2 did first, at 85, is late and has no history
    rows = [(1, item, 10 * item) for item in range(1, 11)] + [(2, 3, 85), (2, 4, 96), (2, 5, 97)]
    settings = {"split": "time", "validation_fraction": 0.3, "test_fraction": 0.3}
    every, first = (make_dataset(rows, targets=targets, **settings).labels.tolist() for targets in ("all", "first"))
    assert every == [TRAIN] * 5 + [VALIDATION] * 3 + [TEST, TEST] + [UNUSED, TEST, TEST]
    assert first == [TRAIN] * 5 + [VALIDATION, UNUSED, UNUSED] + [TEST, UNUSED] + [UNUSED, TEST, UNUSED]


def test_a_history_is_what_the_user_did_before(make_dataset):
    data = make_dataset([(1, item, item) for item in range(1, 4)] + [(2, item, item) for item in range(1, 7)])
    position = int(data.positions("test")[1])
    assert data.item_sequence[data.history(position)].tolist() == [1, 2, 3, 4, 5]
    assert data.item_sequence[data.history(position, max_length=2)].tolist() == [4, 5]
    assert data.history(position, max_length=100) == slice(3, 8)
    assert data.history(3) == slice(3, 3)
    assert data.history(np.int64(2)) == slice(0, 2)


def test_training_sequences_leave_out_targets_and_users_without_training(make_dataset):
    rows = [(1, item, item) for item in range(1, 6)] + [(2, 1, 50), (2, 2, 51), (2, 3, 52)]
    data = make_dataset(rows, split="time", validation_fraction=0.2, test_fraction=0.2)
    assert [sequence.tolist() for sequence in data.training_sequences()] == [[1, 2, 3, 4, 5]]
    assert data.training_counts().tolist() == [0, 1, 1, 1, 1, 1]


def test_users_can_be_left_out_of_all_parts(make_dataset):
    data = make_dataset([(user, item, item) for user in (1, 2, 3) for item in range(1, 5)])
    left = data.without_users(np.array([1, 3]))
    assert left.labels.tolist() == [UNUSED] * 4 + [TRAIN, TRAIN, VALIDATION, TEST] + [UNUSED] * 4
    assert left.labels.dtype == data.labels.dtype and same(replace(left, labels=data.labels), data)
    assert UNUSED not in data.labels, "the original does not change"
    assert left.training_sequences()[0].tolist() == [1, 2] and len(left.training_sequences()) == 1


# -- keeping it -------------------------------------------------------------------------------------------------------


def test_a_data_set_comes_back_from_disk_as_it_was(film_dataset, make_dataset, film_items, tmp_path):
    make_dataset([(1, item, item) for item in range(1, 5)]).save(tmp_path / "films")
    film_dataset.save(tmp_path / "films")  # takes the place of the other
    loaded = SequenceDataset.load(tmp_path / "films")
    # an empty table of dropped items need not remember its relations
    assert len(loaded.dropped_items) == 0
    assert same(replace(loaded, dropped_items=film_dataset.dropped_items), film_dataset)
    filtered = make_dataset([(1, item, item) for item in (5, 4, 2)], film_items, split="leave-one-out", min_rating=2.0)
    filtered.save(tmp_path / "filtered")
    assert len(filtered.dropped_items) == 3
    assert same(SequenceDataset.load(tmp_path / "filtered"), filtered)


FILES = ["sequences.safetensors", "items.parquet", "dropped_items.parquet", "users.parquet", "dataset.json"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["absent", "cut", "empty", "noise"])
def test_a_damaged_file_gives_a_clear_error(film_dataset, tmp_path, name, damage):
    folder = tmp_path / "data"
    film_dataset.save(folder)
    content = (folder / name).read_bytes()
    if damage == "absent":
        (folder / name).unlink()
    else:
        new = {"cut": content[: len(content) // 2], "empty": b"", "noise": b"\xff" * len(content)}[damage]
        (folder / name).write_bytes(new)
    with pytest.raises(LKGError, match="is damaged|does not exist|not readable json"):
        SequenceDataset.load(folder)


def test_preparing_twice_reads_the_cache(make_bundle, monkeypatch):
    bundle = make_bundle([(1, item, item) for item in range(1, 6)])
    first = prepare_dataset(bundle, LOOSE)
    monkeypatch.setattr(SequenceDataset, "from_bundle", lambda *args: pytest.fail("the cache was not read"))
    assert same(prepare_dataset(bundle, LOOSE), first)
    assert [path.name.rsplit("-", 1)[0] for path in (cache_dir() / "prepared").iterdir()] == ["tiny"]


def test_a_preparation_that_was_killed_is_made_again(make_bundle):
    bundle = make_bundle([(user, item, item) for user in (1, 2) for item in (1, 2, 3)])
    first = prepare_dataset(bundle, LOOSE)
    (folder,) = (cache_dir() / "prepared").iterdir()
    (folder / "dataset.json").unlink()  # it is written last
    assert same(prepare_dataset(bundle, LOOSE), first) and (folder / "dataset.json").exists()


def test_the_cache_is_keyed_by_content_and_settings(make_bundle):
    rows = [(1, item, item) for item in range(1, 6)]
    bundle = make_bundle(rows)
    variants = [
        (bundle, LOOSE),
        (bundle, replace(LOOSE, min_user_interactions=2)),
        (bundle, replace(LOOSE, min_rating=1.0)),
        (bundle, replace(LOOSE, ties="file")),
        (bundle, replace(LOOSE, seed=1)),
        (bundle, replace(LOOSE, last=2)),
        (make_bundle([*rows[:-1], (1, 5, 99)]), LOOSE),
        (make_bundle([*rows[:-1], (1, 5, 5, 4.0)]), LOOSE),
        (make_bundle(rows, bundle.items.to_frame().assign(title="Other")), LOOSE),
        (make_bundle(rows, bundle.items.to_frame().assign(genre="x")), LOOSE),
    ]
    for count, (variant, settings) in enumerate(variants, start=1):
        fresh = SequenceDataset.from_bundle(variant, settings)
        for _ in range(2):
            prepared = prepare_dataset(variant, settings)
            assert same(replace(prepared, dropped_items=fresh.dropped_items), fresh)
        assert len(list((cache_dir() / "prepared").iterdir())) == count


def test_the_published_settings_are_the_default_but_for_ties(make_bundle):
    bundle = make_bundle([(user, item, item) for user in range(5) for item in range(1, 6)])
    published = PreprocessingSettings(
        min_user_interactions=5,
        min_item_interactions=5,
        split="leave-one-out",
        min_rating=None,
        ties="item_id",
        last=1,
    )
    assert prepare_dataset(bundle).settings == replace(published, ties="shuffled", seed=42)


def test_an_interrupted_preparation_is_made_anew(make_bundle, monkeypatch):
    bundle = make_bundle([(1, item, item) for item in range(1, 6)])
    with monkeypatch.context() as patch, pytest.raises(RuntimeError):
        patch.setattr(ItemTable, "to_frame", lambda self: (_ for _ in ()).throw(RuntimeError("killed")))
        prepare_dataset(bundle, LOOSE)
    assert list((cache_dir() / "prepared").iterdir()) == []
    assert prepare_dataset(bundle, LOOSE).num_items == 5


# -- the published data -----------------------------------------------------------------------------------------------


def test_the_published_protocol_gives_the_published_counts(movielens_dataset):
    assert (movielens_dataset.num_users, movielens_dataset.num_items) == (610, 3650)
    assert len(movielens_dataset.positions("test")) == len(movielens_dataset.positions("validation")) == 610
    counts = np.bincount(movielens_dataset.item_sequence)[1:]
    assert counts.min() >= 5 and np.diff(movielens_dataset.offsets).min() >= 5
    assert (np.diff(np.array(movielens_dataset.items.ids).astype(int)) > 0).all()
    assert len(movielens_dataset.dropped_items) == 9742 - 3650
