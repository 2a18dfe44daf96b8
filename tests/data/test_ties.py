"""What time does not say: the order of ties, what was written down twice, and what a user came back to."""

import numpy as np
import pytest

from llamarec_lkg.data.anonymize import anonymize_users
from llamarec_lkg.data.ledger import EXACT_DUPLICATES
from llamarec_lkg.data.sequences import PreprocessingSettings, SequenceDataset
from llamarec_lkg.data.sources import load_dataset_bundle
from llamarec_lkg.utils.files import cache_dir


LOOSE = {"min_user_interactions": 1, "min_item_interactions": 1}


def sequences(dataset: SequenceDataset) -> dict[str, list[str]]:
    """Raw items of each raw user, in order."""
    parts = zip(dataset.user_ids, dataset.offsets[:-1], dataset.offsets[1:], strict=True)
    return {user: [dataset.items.ids[item - 1] for item in dataset.item_sequence[a:b]] for user, a, b in parts}


@pytest.fixture(scope="module")
def tied_rows():
    """Users with six of thirty items each, all in one second."""
    generator = np.random.default_rng(0)
    return [(user, int(item), 7) for user in range(500) for item in generator.permutation(30)[:6] + 1]


def rising(dataset: SequenceDataset) -> float:
    """Share of tied test targets whose item id is larger than that of the item before."""
    last = dataset.positions("test")
    return float((dataset.item_sequence[last] > dataset.item_sequence[last - 1]).mean())


def test_shuffled_ties_say_nothing_of_item_ids_and_the_published_order_all(make_dataset, tied_rows):
    shuffled, published = make_dataset(tied_rows), make_dataset(tied_rows, ties="item_id")
    assert shuffled.tied(shuffled.positions("test")).all()
    assert rising(published) == 1.0
    assert 0.4 < rising(shuffled) < 0.6  # 4.5 standard deviations of a fair coin
    # every place of the six is the target's as often: which of a user's items, by id, comes last
    places = [sorted(map(int, items)).index(int(items[-1])) for items in sequences(shuffled).values()]
    assert np.bincount(places, minlength=6).min() > 50  # 83 expected


def test_the_shuffle_is_that_of_its_seed_and_another_for_each_user(make_dataset, tied_rows):
    rows = [(user, item, 7) for user in range(40) for item in (*range(1, 7), 10 + user)]
    orders = [[item for item in items if int(item) < 10] for items in sequences(make_dataset(rows)).values()]
    assert len({tuple(order) for order in orders}) > 30
    first, again, other = (sequences(make_dataset(tied_rows, seed=seed)) for seed in (42, 42, 43))
    assert first == again == sequences(make_dataset(tied_rows))
    assert sum(first[user] == other[user] for user in first) < 10
    assert 0.4 < rising(make_dataset(tied_rows, seed=43)) < 0.6


def test_neither_file_order_nor_users_names_nor_a_filter_change_the_shuffle(make_bundle, make_dataset, tied_rows):
    expected = sequences(make_dataset(tied_rows))
    order = np.random.default_rng(1).permutation(len(tied_rows))
    assert sequences(make_dataset([tied_rows[row] for row in order])) == expected
    settings = PreprocessingSettings(**LOOSE)
    numbered = SequenceDataset.from_bundle(anonymize_users(make_bundle(tied_rows)), settings)
    assert sorted(sequences(numbered).values()) == sorted(expected.values())
    filtered = sequences(make_dataset([*tied_rows, (1, 99, 7.0), (999, 98, 3)], min_item_interactions=2))
    assert "999" not in filtered
    assert all(filtered[user] == items for user, items in expected.items() if user != "1")


def test_relabelled_items_are_shuffled_alike(make_dataset, tied_rows):
    turned = make_dataset([(user, 31 - item, time) for user, item, time in tied_rows])
    assert 0.4 < rising(turned) < 0.6
    named = make_dataset([(user, f"item {item}", time) for user, item, time in tied_rows])
    assert 0.4 < rising(named) < 0.6


def test_file_order_is_kept_where_it_is_asked_for(make_dataset):
    rows = [(1, 9, 5), (2, 3, 2), (1, 4, 5), (1, 7, 1), (2, 1, 2), (1, 1, 5), (2, 2, 2)]
    assert sequences(make_dataset(rows, ties="file")) == {"1": ["7", "9", "4", "1"], "2": ["3", "1", "2"]}


@pytest.mark.parametrize("ties", ["shuffled", "file", "item_id"])
def test_time_goes_before_every_rule(make_dataset, ties):
    rows = [(1, item, time) for item, time in zip((5, 3, 9, 1, 7), (4, 2, 2, 8, -3), strict=True)]
    data = make_dataset(rows, ties=ties)
    assert data.timestamps.tolist() == [-3, 2, 2, 4, 8]
    assert data.tied(np.arange(5)).tolist() == [False, True, True, False, False]


def test_tied_means_with_the_same_user(make_dataset):
    data = make_dataset([(1, 1, 1), (1, 2, 2), (1, 3, 3), (2, 1, 3), (2, 2, 4), (2, 3, 5), (2, 4, 5)])
    assert data.tied(data.positions("test")).tolist() == [False, True]
    assert data.tied(np.arange(7)).tolist() == [False] * 5 + [True, True]


def test_exact_duplicates_are_dropped_counted_and_told(make_dataset, tmp_path, caplog):
    rows = [(1, 1, 1), (1, 2, 2, 5.0), (1, 2, 2, 1.0), (1, 3, 3), (2, 2, 2), (1, 3, 3)]
    data = make_dataset(rows, ties="file")
    assert sequences(data) == {"1": ["1", "2", "3"], "2": ["2"]} and data.ledger.left_out == {EXACT_DUPLICATES: 2}
    assert data.ratings.tolist() == [3.0, 5.0, 3.0, 3.0], "the first row of each stays"
    assert "Left out: 2 that repeat user, item and time of another" in caplog.text
    data.save(tmp_path)
    assert SequenceDataset.load(tmp_path).ledger == data.ledger


def test_duplicates_make_nobody_active(make_dataset):
    rows = [(1, item, item) for item in range(4)] + [(2, 0, 0)] * 4
    assert make_dataset(rows, min_user_interactions=3).user_ids == ("1",)


def test_repeated_items_stay_and_targets_among_them_are_told(make_dataset, caplog):
    rows = [(1, 1, 1), (1, 2, 2), (1, 3, 3), (1, 1, 4), (2, 1, 1), (2, 3, 2), (2, 2, 3)]
    data = make_dataset(rows)
    assert sequences(data)["1"] == ["1", "2", "3", "1"] and not data.ledger.left_out
    assert data.repeated(np.arange(7)).tolist() == [False, False, False, True, False, False, False]
    assert "1 of 4 targets (25.0%) are items that their users had before" in caplog.text
    caplog.clear()
    make_dataset(rows[4:])
    assert not caplog.text


# -- the published data -----------------------------------------------------------------------------------------------


def test_of_ml_latest_small_fifteen_percent_of_the_targets_are_tied(movielens_folder, movielens_dataset):
    assert movielens_dataset.tied(movielens_dataset.positions("test")).sum() == 91
    assert (
        EXACT_DUPLICATES not in movielens_dataset.ledger.left_out
        and not movielens_dataset.repeated(np.arange(90_000)).any()
    )
    settings = PreprocessingSettings(min_item_interactions=1)
    unfiltered = SequenceDataset.from_bundle(load_dataset_bundle(movielens_folder), settings)
    assert unfiltered.tied(unfiltered.positions("test")).mean() == pytest.approx(0.154, abs=0.001)


def test_of_ml_100k_forty_four_percent_of_the_targets_are_tied(shared_cache):
    if not (cache_dir() / "ml-100k").exists():
        pytest.skip("MovieLens-100K is not in the cache")
    bundle = load_dataset_bundle("ml-100k")
    shuffled, published = (
        SequenceDataset.from_bundle(bundle, PreprocessingSettings(ties=ties)) for ties in ("shuffled", "item_id")
    )
    for data in (shuffled, published):
        assert data.tied(data.positions("test")).mean() == pytest.approx(0.441, abs=0.001)

    def after_the_smaller_id(data: SequenceDataset) -> float:
        last = data.positions("test")
        last = last[data.timestamps[last] == data.timestamps[last - 1]]
        return float((data.item_sequence[last] > data.item_sequence[last - 1]).mean())

    assert after_the_smaller_id(published) == 1.0
    assert 0.4 < after_the_smaller_id(shuffled) < 0.6
