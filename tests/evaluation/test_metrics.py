import math
import tracemalloc

import numpy as np
import pytest

from llamarec_lkg.evaluation import metrics
from llamarec_lkg.evaluation.metrics import MISS, bootstrap_interval, mean_metrics, metrics_per_user, target_ranks


def test_ranks_count_better_candidates():
    scores = np.array([[0.1, 0.9, 0.5], [3.0, 2.0, 1.0], [-1.0, -2.0, -3.0]])
    assert target_ranks(scores, np.array([0, 0, 2])).tolist() == [3, 1, 3]


def test_ties_are_broken_by_position_as_a_stable_sort_would():
    scores = np.array([[1.0, 1.0, 2.0, 1.0]] * 4)
    assert target_ranks(scores, np.arange(4)).tolist() == [2, 3, 1, 4]
    random = np.random.default_rng(0).integers(0, 3, size=(50, 7)).astype(float)
    labels = np.random.default_rng(1).integers(0, 7, size=50)
    order = np.argsort(-random, axis=1, kind="stable")
    assert target_ranks(random, labels).tolist() == [
        row.tolist().index(label) + 1 for row, label in zip(order, labels, strict=True)
    ]


def test_a_constant_scorer_gets_no_free_hits():
    assert target_ranks(np.zeros((3, 5)), np.array([0, 2, 4])).tolist() == [1, 3, 5]


def test_scores_that_are_not_numbers_rank_last():
    nan = np.nan
    scores = np.array([[nan, 1.0, 0.0], [nan, 1.0, -5.0], [nan, nan, nan], [nan, -np.inf, 0.0]])
    assert target_ranks(scores, np.array([0, 2, 1, 1])).tolist() == [3, 2, 2, 3]


def test_a_label_below_zero_is_a_miss():
    assert target_ranks(np.ones((2, 3)), np.array([-1, 1])).tolist() == [MISS, 2]


def test_masked_candidates_do_not_count_and_a_masked_target_is_a_miss():
    scores = np.array([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0], [1.0, 1.0, 1.0]])
    mask = np.array([[False, True, True], [True, True, False], [False, True, True]])
    assert target_ranks(scores, np.array([2, 2, 2]), mask).tolist() == [2, MISS, 2]


def test_metrics_by_hand():
    values = metrics_per_user(np.array([1, 2, 5, 6, MISS]), ks=(1, 5))
    assert list(values) == ["mrr@1", "ndcg@1", "recall@1", "mrr@5", "ndcg@5", "recall@5"]
    assert values["recall@1"].tolist() == values["mrr@1"].tolist() == values["ndcg@1"].tolist() == [1, 0, 0, 0, 0]
    assert values["recall@5"].tolist() == [1, 1, 1, 0, 0]
    assert values["mrr@5"] == pytest.approx([1, 1 / 2, 1 / 5, 0, 0])
    assert values["ndcg@5"] == pytest.approx([1, 1 / math.log2(3), 1 / math.log2(6), 0, 0])


def test_means_are_over_all_lists_misses_included():
    means = mean_metrics(np.array([1, 4, MISS, MISS]))
    assert sorted(means) == sorted(f"{name}@{k}" for name in ("mrr", "ndcg", "recall") for k in (1, 5, 10))
    assert means["recall@1"] == 0.25 and means["recall@10"] == 0.5
    assert means["mrr@10"] == pytest.approx((1 + 1 / 4) / 4)
    assert all(type(value) is float for value in means.values())


def test_an_interval_covers_the_mean_and_narrows_with_more_users():
    generator = np.random.default_rng(0)
    few, many = generator.random(50), generator.random(5000)
    widths = []
    for values in (few, many):
        low, high = bootstrap_interval({"a": values})["a"]
        assert low < values.mean() < high
        widths.append(high - low)
        expected = 2 * 1.96 * values.std() / math.sqrt(len(values))
        assert widths[-1] == pytest.approx(expected, rel=0.1)
    assert widths[1] < widths[0] / 5


def test_a_higher_level_gives_a_wider_interval():
    values = {"a": np.random.default_rng(0).random(100)}
    narrow, wide = bootstrap_interval(values, level=0.5)["a"], bootstrap_interval(values, level=0.99)["a"]
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


def test_an_interval_is_the_same_for_the_same_seed_only():
    values = {"a": np.random.default_rng(0).random(40)}
    assert bootstrap_interval(values, seed=1) == bootstrap_interval(values, seed=1)
    assert bootstrap_interval(values, seed=1) != bootstrap_interval(values, seed=2)


def test_users_are_resampled_together_for_all_metrics():
    values = np.random.default_rng(0).random(60)
    intervals = bootstrap_interval({"a": values, "b": values, "shifted": values + 1}, resamples=300)
    assert intervals["a"] == intervals["b"]
    assert intervals["shifted"] == pytest.approx([bound + 1 for bound in intervals["a"]])


def test_a_paired_difference_that_is_constant_has_no_width():
    base = np.random.default_rng(0).random(60)
    assert bootstrap_interval({"gain": (base + 0.25) - base})["gain"] == pytest.approx((0.25, 0.25))


def test_resampling_takes_the_same_little_memory_for_any_number_of_users(monkeypatch):
    """And in whatever blocks, the intervals are the same."""
    values = {"a": np.random.default_rng(0).random(60_000)}
    tracemalloc.start()
    whole = bootstrap_interval(values, resamples=300)["a"]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100e6, f"{peak / 1e6:.0f} MB; all resamples at once would be 288"
    monkeypatch.setattr(metrics, "BLOCK_CELLS", 60_000 * 7)
    assert bootstrap_interval(values, resamples=300)["a"] == pytest.approx(whole, abs=1e-12)


def test_whole_users_are_resampled_where_targets_are_theirs():
    """Every target eight times over is no more users: the interval stays that of the users, 8 ** 0.5 as wide as that
    of as many targets."""
    values = np.random.default_rng(0).random(200)
    users = np.random.default_rng(1).permutation(200)
    repeated = {"a": np.repeat(values, 8)}
    clustered = bootstrap_interval(repeated, clusters=np.repeat(np.arange(200), 8))["a"]
    assert clustered == pytest.approx(bootstrap_interval({"a": values})["a"])
    alone = bootstrap_interval(repeated)["a"]
    assert np.diff(clustered)[0] == pytest.approx(8**0.5 * np.diff(alone)[0], rel=0.1)
    # whatever the users are called, and however their targets are strewn
    order = np.random.default_rng(2).permutation(1600)
    names = np.array([f"user {user}" for user in np.repeat(users, 8)])
    strewn = bootstrap_interval({"a": repeated["a"][order]}, clusters=names[order])["a"]
    assert strewn == pytest.approx(clustered, abs=0.01)


def test_users_with_more_targets_count_for_more():
    """Two users, three targets of 1 and one of 0: a resample is one of them twice, or both, whose mean is 3 / 4."""
    values, users = {"a": np.array([1.0, 0.0, 1.0, 1.0])}, np.array([7, 3, 7, 7])
    assert bootstrap_interval(values, clusters=users)["a"] == (0.0, 1.0)
    assert bootstrap_interval(values, clusters=users, level=0.2)["a"] == (0.75, 0.75)


def test_a_weight_is_a_number_of_alike_targets():
    values, weights, users = np.random.default_rng(0).random((3, 50))
    weights, users = np.ceil(4 * weights), np.floor(20 * users)
    times = weights.astype(int)
    weighted = bootstrap_interval({"a": values}, clusters=users, weights=weights)
    assert weighted["a"] == pytest.approx(
        bootstrap_interval({"a": np.repeat(values, times)}, clusters=np.repeat(users, times))["a"]
    )
