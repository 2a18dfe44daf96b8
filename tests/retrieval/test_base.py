import numpy as np
import pytest
import torch

from llamarec_lkg.evaluation.metrics import target_ranks
from llamarec_lkg.retrieval.base import (
    PopularityRetriever,
    best_items,
    exclude_history,
    frozen,
    log_popularity,
    pad_left,
    ranks_among,
    retriever_ranks,
    rows_at_once,
    top_k,
)
from llamarec_lkg.retrieval.modeling_lrurec import LRURecConfig, LRURecForRetrieval, LRURecRetriever


def test_histories_are_padded_on_the_left_and_cut_to_the_latest():
    batch = pad_left([np.array([1, 2, 3]), np.array([], dtype=int), np.array([7, 8, 9, 10, 11])], 4)
    assert batch.dtype == torch.long
    assert batch.tolist() == [[0, 1, 2, 3], [0, 0, 0, 0], [8, 9, 10, 11]]


def test_padding_is_no_wider_than_the_longest_history_but_at_least_one():
    assert pad_left([np.array([4]), np.array([5, 6])], 100).tolist() == [[0, 4], [5, 6]]
    assert pad_left([np.array([], dtype=int)], 5).tolist() == [[0]]
    assert pad_left([], 5).shape == (0, 1)


def test_the_whole_history_is_excluded():
    scores = np.arange(10, dtype=np.float32).reshape(2, 5)
    result = exclude_history(scores, [np.array([1, 4, 1]), np.array([], dtype=int)])
    assert result is scores
    assert result.tolist() == [[0, -np.inf, 2, 3, -np.inf], [5, 6, 7, 8, 9]]


def test_the_best_are_those_of_a_full_sort():
    """Few levels of scores, so that many tie, also for the last place; some rows have too few items, one has none."""
    generator = np.random.default_rng(0)
    scores = generator.integers(0, 6, size=(200, 31)).astype(np.float32)
    scores[generator.random(scores.shape) < generator.random((200, 1))] = -np.inf
    scores[:, 0] = scores[7] = -np.inf
    for k in (1, 2, 5, 20, 30, 31, 99):
        items, best = top_k(scores, k)
        order = np.argsort(-scores[:, 1:], axis=1, kind="stable")[:, :k] + 1
        wanted = np.take_along_axis(scores, order, axis=1)
        assert np.array_equal(best, wanted)
        assert np.array_equal(items, np.where(np.isfinite(wanted), order, 0))


@pytest.mark.parametrize("levels", [1, 3, 40, 10**6])
def test_the_best_of_long_rows_are_those_of_a_full_sort(levels):
    """As above, with rows so long that they are parted into groups."""
    generator = np.random.default_rng(levels)
    scores = generator.integers(0, levels, size=(40, 3001)).astype(np.float32)
    scores[generator.random(scores.shape) < generator.random((40, 1)) ** 0.1] = -np.inf
    scores[:, 0] = scores[7] = -np.inf
    scores[8, 1:2990] = -np.inf  # what is left is no whole group
    for k in (1, 2, 5, 20, 46, 47):
        items, best = top_k(scores, k)
        order = np.argsort(-scores[:, 1:], axis=1, kind="stable")[:, :k] + 1
        wanted = np.take_along_axis(scores, order, axis=1)
        assert np.array_equal(best, wanted)
        assert np.array_equal(items, np.where(np.isfinite(wanted), order, 0))


def test_no_rows_and_no_places_have_no_best():
    assert top_k(np.zeros((0, 5), np.float32), 3)[0].shape == (0, 3)
    assert top_k(np.zeros((2, 5), np.float32), 0)[0].shape == (2, 0)


def test_ranks_are_those_of_the_metric():
    generator = np.random.default_rng(0)
    scores = generator.integers(0, 5, size=(300, 20)).astype(np.float32)
    scores[generator.random(scores.shape) < 0.3] = -np.inf
    scores[generator.random(scores.shape) < 0.1] = np.nan
    targets = generator.integers(0, 20, 300)
    assert np.array_equal(ranks_among(scores, targets), target_ranks(scores, targets))


def test_scores_of_all_items_are_held_for_few_histories_at_a_time(monkeypatch):
    assert rows_at_once(1349) == 512 and rows_at_once(10**6) == 33 and rows_at_once(10**9) == 1
    assert rows_at_once(1349, 256) == 256
    retriever, sizes = PopularityRetriever(np.array([0, 3, 9, 5, 1])), []
    score = retriever.score
    monkeypatch.setattr(retriever, "score", lambda histories: sizes.append(len(histories)) or score(histories))
    histories = [np.array([2]), np.array([], dtype=int), np.array([1, 2, 3, 4]), np.array([3]), np.array([1])]
    whole = best_items(retriever, histories, 2, histories)
    assert whole[0].tolist() == [[3, 1], [2, 3], [0, 0], [2, 1], [2, 3]]
    monkeypatch.setattr("llamarec_lkg.retrieval.base.SCORES_AT_ONCE", 10)
    for mine, wanted in zip(best_items(retriever, histories, 2, histories), whole, strict=True):
        assert np.array_equal(mine, wanted)
    assert sizes == [5, 2, 2, 1]
    assert best_items(retriever, [], 2, [])[0].shape == (0, 2)


def test_a_frozen_retriever_keeps_its_item_vectors(model):
    retriever = LRURecRetriever(model)
    still, before = frozen(retriever), retriever.score([np.array([1, 2])])
    assert np.array_equal(still.score([np.array([1, 2])]), before)
    assert still is not retriever and frozen(both := PopularityRetriever(np.array([0, 1]))) is both


def test_popularity_scores_by_training_counts(film_dataset):
    retriever = PopularityRetriever.from_dataset(film_dataset)
    assert film_dataset.training_counts().tolist() == [0, 1, 2, 3, 3, 2, 1]
    scores = retriever.score([np.array([1]), np.array([], dtype=int)])
    assert scores.shape == (2, 7) and scores.dtype == np.float32
    assert scores[0] == pytest.approx(
        np.log([0, 1.5, 2.5, 3.5, 3.5, 2.5, 1.5], where=np.arange(7) > 0, out=np.full(7, -np.inf))
    )
    assert np.array_equal(scores[0], scores[1])
    assert retriever.num_items == 6
    assert top_k(scores, 2)[0].tolist() == [[3, 4], [3, 4]]


def test_popularity_ranks_by_hand(make_dataset):
    rows = [("a", 1, 0), ("a", 2, 1), ("a", 3, 2), ("a", 4, 3), ("b", 2, 0), ("b", 5, 1), ("b", 6, 2), ("b", 4, 3)]
    dataset = make_dataset(rows)
    # trained on: 1, 2 by a; 2, 5 by b. a's target 4 stands, by id, behind 5 and beside 6; 1, 2, 3 are its history
    ranks = retriever_ranks(dataset, PopularityRetriever.from_dataset(dataset), "test")
    assert ranks.tolist() == [2, 3]


@pytest.fixture
def model():
    torch.manual_seed(0)
    return LRURecForRetrieval(LRURecConfig(num_items=9, hidden_size=8, max_length=4))


def test_lrurec_scores_do_not_depend_on_batching_or_order(model):
    generator = np.random.default_rng(0)
    histories = [generator.integers(1, 10, size=length) for length in (3, 1, 7, 0, 2, 4, 5)]
    scores = LRURecRetriever(model).score(histories)
    assert scores.shape == (7, 10) and scores.dtype == np.float32
    assert (scores[:, 0] == -np.inf).all()
    for batch_size in (1, 2, 3):
        assert LRURecRetriever(model, batch_size).score(histories) == pytest.approx(scores, rel=1e-4, abs=1e-5)
    model.eval()
    for row, history in enumerate(histories):
        with torch.no_grad():
            alone = model(torch.tensor([history[-4:].tolist() or [0]])).logits[0].numpy()
        assert scores[row] == pytest.approx(alone, rel=1e-4, abs=1e-5)


def test_lrurec_reads_only_the_latest_of_a_long_history(model):
    scores = LRURecRetriever(model).score([np.array([9, 9, 1, 2, 3, 4]), np.array([1, 2, 3, 4])])
    assert scores[0] == pytest.approx(scores[1])


@pytest.mark.parametrize("training", [True, False])
def test_scoring_uses_no_dropout_and_leaves_the_mode_as_it_was(model, training):
    model.train(training)
    retriever = LRURecRetriever(model)
    assert np.array_equal(retriever.score([np.array([1, 2])]), retriever.score([np.array([1, 2])]))
    assert model.training is training
    assert retriever.num_items == 9


def test_no_histories_give_no_scores(model):
    assert LRURecRetriever(model).score([]).shape == (0, 10)
    assert PopularityRetriever(np.array([0, 1])).score([]).shape == (0, 2)


def test_counts_below_five_weigh_as_none():
    found = log_popularity(np.array([0, 1, 4, 5, 9]))
    assert found.dtype == np.float32 and found == pytest.approx(np.log([1, 1, 1, 6, 10]))
