import numpy as np
import pytest

from llamarec_lkg.data.sequences import TRAIN, UNUSED
from llamarec_lkg.retrieval.candidates import _retrieve, _uniform, evaluation_examples, to_dataset, training_examples
from llamarec_lkg.utils.errors import LKGError


class ByItem:
    """Scores every item by its id, the higher the better, or by the scores given."""

    def __init__(self, num_items, scores=None):
        self.num_items = num_items
        self.scores = np.array([-np.inf, *(range(1, num_items + 1) if scores is None else scores)], dtype=np.float32)

    def score(self, histories):
        return np.tile(self.scores, (len(histories), 1))


class NextItem:
    """Knows the planted order: the item after the last one is the best, the further round the worse."""

    num_items = 30

    def score(self, histories):
        last = np.array([history[-1] for history in histories])
        scores = -((np.arange(31)[None, :] - last[:, None] - 1) % 30).astype(np.float32)
        scores[:, 0] = -np.inf
        return scores


@pytest.fixture(scope="module")
def data(make_dataset):
    """Three users over twelve items; the ratings are the positions in the user's sequence."""
    rows = [(1, item, item, item) for item in range(1, 10)]
    rows += [(2, 13 - item, item, item) for item in range(1, 9)]
    rows += [(3, item, item, item) for item in (1, 2, 3)]
    return make_dataset(rows)


def target_of(data, example) -> int:
    """The item that followed the example's history."""
    position = data.offsets[example.user - 1] + len(example.history)
    assert np.array_equal(example.history, data.item_sequence[data.offsets[example.user - 1] : position])
    assert np.array_equal(example.ratings, data.ratings[data.offsets[example.user - 1] : position])
    return int(data.item_sequence[position])


def position_of(data, example) -> int:
    return int(data.offsets[example.user - 1] + len(example.history))


# -- evaluation -------------------------------------------------------------------------------------------------------


def test_evaluation_lists_are_the_best_items_outside_the_history_in_order(data):
    first, second, third = evaluation_examples(data, ByItem(12), "test", num_candidates=4, progress=False)
    assert (
        first.user == 1 and first.history.tolist() == list(range(1, 9)) and first.ratings.tolist() == list(range(1, 9))
    )
    assert first.candidates.tolist() == [12, 11, 10, 9] and first.label == 3
    assert first.retrieval_scores.tolist() == [12.0, 11.0, 10.0, 9.0]
    assert second.history.tolist() == [12, 11, 10, 9, 8, 7, 6]
    assert second.candidates.tolist() == [5, 4, 3, 2] and second.label == 0
    assert third.candidates.tolist() == [12, 11, 10, 9] and third.label == -1
    assert first.history.dtype == first.candidates.dtype == np.int64


def test_validation_lists_stop_one_interaction_earlier(data):
    examples = evaluation_examples(data, ByItem(12), "validation", num_candidates=4, progress=False)
    assert [example.history.tolist()[-1] for example in examples] == [7, 7, 1]
    assert [target_of(data, example) for example in examples] == [8, 6, 2]
    assert [example.label for example in examples] == [-1, 0, -1]


def test_a_list_is_shorter_where_too_few_items_are_left(data):
    first, second, third = evaluation_examples(data, ByItem(12), "test", num_candidates=20, progress=False)
    assert [len(example.candidates) for example in (first, second, third)] == [4, 5, 10]
    assert np.isfinite(third.retrieval_scores).all() and third.label == 9
    assert 0 not in third.candidates


def test_lists_do_not_depend_on_blocks(data):
    positions = data.positions("train")[1:]
    whole = list(_retrieve(data, ByItem(12), positions, 5, "x", False))
    blocks = list(_retrieve(data, ByItem(12), positions, 5, "x", False, block=2))
    drawn = list(_uniform(data, ByItem(12), positions, 5, np.random.default_rng(0), False))
    drawn_in_blocks = list(_uniform(data, ByItem(12), positions, 5, np.random.default_rng(0), False, block=2))
    for one, other in ((whole, blocks), (drawn, drawn_in_blocks)):
        assert to_dataset(one).to_dict() == to_dataset(other).to_dict()
        assert len(one) == len(positions)


def test_a_progress_bar_counts_the_lists(data, capsys):
    evaluation_examples(data, ByItem(12), "test", num_candidates=4)
    assert "retrieve test" in capsys.readouterr().err
    evaluation_examples(data, ByItem(12), "test", num_candidates=4, progress=False)
    assert capsys.readouterr().err == ""


# -- training ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("negatives", ["retrieved", "uniform"])
def test_training_lists_come_only_from_what_the_honest_data_left_out(cycle_dataset, negatives):
    honest = cycle_dataset.without_last_training(2)
    examples = training_examples(
        cycle_dataset, NextItem(), honest, num_candidates=6, negatives=negatives, progress=False
    )
    left_out = np.flatnonzero((honest.labels == UNUSED) & (cycle_dataset.labels == TRAIN))
    assert [position_of(cycle_dataset, example) for example in examples] == left_out.tolist()
    assert len(left_out) == 2 * cycle_dataset.num_users
    for example in examples:
        assert example.candidates[example.label] == target_of(cycle_dataset, example)
        assert len(example.candidates) == len(set(example.candidates.tolist())) == 6
        assert not np.isin(example.candidates, example.history).any()


def test_held_out_targets_of_a_time_split_never_become_training_lists(make_dataset):
    generator = np.random.default_rng(0)
    rows = [
        (user, int(item), int(generator.integers(100))) for user in range(8) for item in generator.permutation(12)[:9]
    ]
    data = make_dataset(rows, split="time", validation_fraction=0.2, test_fraction=0.2)
    assert (data.labels == UNUSED).any()
    honest = data.without_last_training(1)
    for base in (honest, None):
        examples = training_examples(data, ByItem(data.num_items), base, negatives="uniform", progress=False)
        positions = [position_of(data, example) for example in examples]
        assert set(data.labels[positions].tolist()) == {TRAIN}


def test_without_honest_data_every_training_position_with_a_history_is_used(data):
    examples = training_examples(data, ByItem(12), negatives="uniform", num_candidates=4, progress=False)
    assert [position_of(data, example) for example in examples] == [1, 2, 3, 4, 5, 6, 10, 11, 12, 13, 14]
    assert min(len(example.history) for example in examples) == 1


def test_retrieved_lists_keep_only_targets_that_the_retriever_finds(data):
    # user 1 goes up and is found late, user 2 goes down from the best item and is always found
    honest = data.without_last_training(3)
    examples = training_examples(data, ByItem(12), honest, num_candidates=3, shuffle=False, progress=False)
    assert [(example.user, len(example.history)) for example in examples] == [(2, 3), (2, 4), (2, 5)]
    assert [example.candidates.tolist() for example in examples] == [[9, 8, 7], [8, 7, 6], [7, 6, 5]]
    assert [example.label for example in examples] == [0, 0, 0]


def test_uniform_negatives_are_never_in_the_history_and_reach_every_other_item(data):
    seen = set()
    for seed in range(20):
        for example in training_examples(
            data, ByItem(12), negatives="uniform", num_candidates=4, seed=seed, progress=False
        ):
            assert len(set(example.candidates.tolist())) == 4
            assert not np.isin(example.candidates, example.history).any()
            assert example.candidates[example.label] == target_of(data, example)
            assert example.retrieval_scores.tolist() == example.candidates.tolist()
            if len(example.history) == 1:
                seen |= set(example.candidates.tolist())
    assert seen == set(range(1, 13))


def test_uniform_lists_are_shorter_where_too_few_items_are_left(data):
    examples = training_examples(data, ByItem(12), negatives="uniform", num_candidates=50, progress=False)
    assert all(len(example.candidates) == 12 - len(example.history) for example in examples)


def test_shuffling_puts_the_target_anywhere_and_keeps_scores_with_their_items(cycle_dataset):
    settings = {"num_candidates": 5, "progress": False}
    honest = cycle_dataset.without_last_training(2)
    plain = training_examples(cycle_dataset, NextItem(), honest, shuffle=False, **settings)
    mixed = training_examples(cycle_dataset, NextItem(), honest, **settings)
    assert {example.label for example in plain} == {0}
    assert np.bincount([example.label for example in mixed], minlength=5).min() >= 10
    for one, other in zip(plain, mixed, strict=True):
        assert dict(zip(one.candidates.tolist(), one.retrieval_scores.tolist(), strict=True)) == dict(
            zip(other.candidates.tolist(), other.retrieval_scores.tolist(), strict=True)
        )
        assert one.candidates[one.label] == other.candidates[other.label]
        assert (one.user, one.history.tolist(), one.ratings.tolist()) == (
            other.user,
            other.history.tolist(),
            other.ratings.tolist(),
        )


@pytest.mark.parametrize("negatives", ["retrieved", "uniform"])
def test_training_lists_are_the_same_for_the_same_seed_only(cycle_dataset, negatives):
    def candidates(seed):
        examples = training_examples(
            cycle_dataset, NextItem(), negatives=negatives, num_candidates=5, seed=seed, progress=False
        )
        return [example.candidates.tolist() for example in examples]

    assert candidates(1) == candidates(1) != candidates(2)


def test_a_retriever_that_finds_nothing_is_reported(make_dataset):
    data = make_dataset([(1, item, item) for item in range(1, 10)])
    with pytest.raises(LKGError, match="None of 6 training positions .* its best 2.*negatives='uniform'"):
        training_examples(data, ByItem(9), num_candidates=2, progress=False)
    nothing_left_out = data.without_last_training(1)
    with pytest.raises(LKGError, match="None of 0 training positions"):
        training_examples(nothing_left_out, ByItem(9), nothing_left_out, negatives="uniform", progress=False)


# -- as a data set ----------------------------------------------------------------------------------------------------


def test_examples_become_rows_of_a_data_set(data):
    examples = evaluation_examples(data, ByItem(12), "test", num_candidates=4, progress=False)
    table = to_dataset(examples)
    assert table.column_names == ["user", "history", "ratings", "candidates", "retrieval_scores", "label"]
    assert len(table) == 3
    assert table[2] == {
        "user": 3,
        "history": [1, 2],
        "ratings": [1.0, 2.0],
        "candidates": [12, 11, 10, 9],
        "retrieval_scores": [12.0, 11.0, 10.0, 9.0],
        "label": -1,
    }
    restored = type(examples[0]).from_mapping(table[0])
    for name in table.column_names:
        assert np.array_equal(getattr(restored, name), getattr(examples[0], name))
