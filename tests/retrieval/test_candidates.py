"""Lists to rank: what a retriever finds, in training out of fold, and what the graph says of it."""

from dataclasses import replace

import datasets
import numpy as np
import pytest

from llamarec_lkg.data.schema import RankingExample
from llamarec_lkg.data.sequences import TRAIN, UNUSED
from llamarec_lkg.graph.co_ratings import co_ratings
from llamarec_lkg.graph.evidence import EvidenceIndex
from llamarec_lkg.graph.knowledge_graph import KnowledgeGraph
from llamarec_lkg.retrieval import candidates as module
from llamarec_lkg.retrieval.candidates import (
    best_lists,
    drawn_lists,
    evaluation_examples,
    folds_of_users,
    to_dataset,
    training_examples,
    with_easy_lists,
    with_features,
)
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


@pytest.mark.parametrize("negatives", ["retrieved", "uniform"])
def test_lists_do_not_depend_on_blocks(data, monkeypatch, negatives):
    settings = {"num_candidates": 5, "negatives": negatives, "progress": False}
    whole = to_dataset(training_examples(data, ByItem(12), **settings)).to_dict()
    monkeypatch.setattr(module, "rows_at_once", lambda num_items: 2)
    assert to_dataset(training_examples(data, ByItem(12), **settings)).to_dict() == whole


# -- training ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("negatives", ["retrieved", "uniform"])
def test_every_training_position_with_a_history_gives_a_list(cycle_dataset, negatives):
    examples = training_examples(cycle_dataset, NextItem(), num_candidates=6, negatives=negatives, progress=False)
    positions = cycle_dataset.positions("train")
    wanted = [position for position in positions if position not in cycle_dataset.offsets]
    assert [position_of(cycle_dataset, example) for example in examples] == wanted
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
    examples = training_examples(data, ByItem(data.num_items), negatives="uniform", progress=False)
    positions = [position_of(data, example) for example in examples]
    assert (data.labels == UNUSED).any() and set(data.labels[positions].tolist()) == {TRAIN}


def test_the_latest_positions_of_each_user_can_be_enough(data):
    def lengths(per_user):
        examples = training_examples(
            data, ByItem(12), negatives="uniform", num_candidates=4, per_user=per_user, progress=False
        )
        return [(example.user, len(example.history)) for example in examples]

    assert lengths(2) == [(1, 5), (1, 6), (2, 4), (2, 5)]
    assert lengths(6) == [(1, n) for n in range(1, 7)] + [(2, n) for n in range(1, 6)] == lengths(None)


def test_retrieved_lists_keep_only_targets_that_the_retriever_finds(data):
    # user 1 goes up and is found late, user 2 goes down from the best item and is always found
    examples = training_examples(data, ByItem(12), per_user=3, num_candidates=3, shuffle=False, progress=False)
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
    plain = training_examples(cycle_dataset, NextItem(), shuffle=False, **settings)
    mixed = training_examples(cycle_dataset, NextItem(), **settings)
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


def test_lists_that_cannot_be_made_are_reported(make_dataset):
    data = make_dataset([(1, item, item) for item in range(1, 10)])
    with pytest.raises(LKGError, match="None of 6 training positions .* its best 2.*negatives='uniform'"):
        training_examples(data, ByItem(9), num_candidates=2, progress=False)
    short = make_dataset([(user, item, item) for user in (1, 2) for item in (1, 2, 3)])
    with pytest.raises(LKGError, match="None of 0 training positions"):
        training_examples(short, ByItem(3), negatives="uniform", progress=False)
    with pytest.raises(LKGError, match="negatives is 'popular'; it is 'retrieved' or 'uniform'"):
        training_examples(data, ByItem(9), negatives="popular")


# -- out of fold ------------------------------------------------------------------------------------------------------


class Memory:
    """Knows what followed each history that it was fitted on, and nothing else."""

    def __init__(self, data):
        self.num_items, self.asked = data.num_items, []
        positions = [position for position in data.positions("train") if position not in data.offsets]
        self.next = {tuple(data.item_sequence[data.history(p)].tolist()): data.item_sequence[p] for p in positions}

    def score(self, histories):
        self.asked += [tuple(history.tolist()) for history in histories]
        scores = np.zeros((len(histories), self.num_items + 1), dtype=np.float32)
        scores[:, 0] = -np.inf
        for row, history in enumerate(histories):
            if tuple(history.tolist()) in self.next:
                scores[row, self.next[tuple(history.tolist())]] = 1.0
        return scores


@pytest.fixture(scope="module")
def people(make_dataset):
    """Twenty users, each of whom begins with an item of his or her own: no two histories are alike."""
    generator = np.random.default_rng(0)
    orders = [[user, *generator.permutation(np.arange(21, 36))[:8]] for user in range(1, 21)]
    return make_dataset([(order[0], int(item), step) for order in orders for step, item in enumerate(order)])


def test_folds_are_balanced_and_drawn_by_seed():
    folds = folds_of_users(22, 4, seed=1)
    assert folds.shape == (23,) and sorted(np.bincount(folds[1:])) == [5, 5, 6, 6]
    assert np.array_equal(folds, folds_of_users(22, 4, seed=1))
    assert not np.array_equal(folds, folds_of_users(22, 4, seed=2))
    assert sorted(folds_of_users(3, 3)[1:]) == [0, 1, 2]
    for folds in (1, 4):
        with pytest.raises(LKGError, match=f"{folds} folds of 3 users were asked for"):
            folds_of_users(3, folds)


@pytest.mark.parametrize("negatives", ["retrieved", "uniform"])
def test_nobody_is_retrieved_by_what_was_fitted_on_them(people, negatives):
    """A retriever that knows by heart what it has seen gives every answer away, but not out of fold."""
    settings = {"num_candidates": 35, "negatives": negatives, "progress": False}
    folds = folds_of_users(20, 4)
    rest = [people.without_users(np.flatnonzero(folds == fold)) for fold in range(4)]
    retrievers = [Memory(data) for data in rest]
    honest = training_examples(people, retrievers, folds, **settings)
    leaky = training_examples(people, Memory(people), **settings)
    assert len(honest) == len(leaky) == 20 * 6
    known = [[example.retrieval_scores[example.label] for example in examples] for examples in (honest, leaky)]
    assert set(known[0]) == {0.0} and set(known[1]) == {1.0}
    for fold, retriever in enumerate(retrievers):
        own = [example for example in honest if folds[example.user] == fold]
        assert sorted(retriever.asked) == sorted(tuple(example.history.tolist()) for example in own) != []
        assert np.isin(folds[people.user_of(rest[fold].positions("train"))], fold).sum() == 0


def test_co_ratings_out_of_fold_have_nothing_of_the_users_of_the_fold(make_dataset):
    """Items 1 and 2 are tied by five users alone, all of one fold; items 3 and 4 by all others."""
    rows = [(user, item, step) for user in range(5) for step, item in enumerate([1, 2, 8, 9])]
    rows += [(user, item, step) for user in range(5, 10) for step, item in enumerate([3, 4, 8, 9])]
    data = make_dataset(rows)
    tied = [co_ratings(data.without_users(users)).items.tolist() for users in ([], np.arange(1, 6), np.arange(6, 11))]
    assert tied == [[1, 3], [3], [1]]


def test_folds_and_retrievers_go_together(people):
    folds, one = folds_of_users(20, 2), ByItem(35)
    for retrievers, given in (([one], folds), ([one] * 3, folds), ([one] * 2, None), ([one] * 2, folds[1:])):
        with pytest.raises(LKGError, match="Give one retriever a fold"):
            training_examples(people, retrievers, given, progress=False)


# -- from longer lists ------------------------------------------------------------------------------------------------


def pool_of(label, size=30):
    """A list in the order of retrieval, which carries with every candidate what names it."""
    items = np.random.default_rng(label).permutation(np.arange(1, 101))[:size]
    named = {name: items[:, None] * np.array([1.0, 10.0]) for name in ("evidence", "recent_evidence")}
    scores = -np.arange(size, dtype=np.float32)
    return RankingExample(1, np.array([7]), np.ones(1), items, scores, label, popularity=items / 2, **named)


def test_the_best_of_longer_lists_are_those_that_evaluation_sees():
    pools = [pool_of(label) for label in (0, 4, 5, 29)]
    first, second = best_lists(pools, 5)
    assert (first.label, second.label) == (0, 4)
    assert first.candidates.tolist() == pools[0].candidates[:5].tolist()
    assert second.retrieval_scores.tolist() == [0.0, -1.0, -2.0, -3.0, -4.0]
    assert first.evidence.shape == (5, 2) and first.popularity.shape == (5,)
    (short,) = best_lists([pool_of(1, size=3)], 5)
    assert len(short.candidates) == 3 and short.label == 1


def test_drawn_lists_hold_the_target_and_keep_with_a_candidate_what_is_its_own():
    pools = [pool_of(label) for label in range(30)]
    for pool, drawn in zip(pools, drawn_lists(pools, 5), strict=True):
        assert drawn.candidates[drawn.label] == pool.candidates[pool.label]
        assert len(set(drawn.candidates.tolist())) == 5 and set(drawn.candidates) <= set(pool.candidates)
        np.testing.assert_array_equal(drawn.popularity, drawn.candidates / 2)
        for named in (drawn.evidence, drawn.recent_evidence):
            np.testing.assert_array_equal(named, drawn.candidates[:, None] * np.array([1.0, 10.0]))
        ranks = [pool.candidates.tolist().index(item) for item in drawn.candidates]
        assert drawn.retrieval_scores.tolist() == [-float(rank) for rank in ranks]
    (short,) = drawn_lists([pool_of(2, size=3)], 5, pool_share=1.0)
    assert sorted(short.candidates) == sorted(pool_of(2, size=3).candidates)


def test_the_place_in_a_drawn_list_says_nothing_about_the_target():
    labels = [drawn.label for drawn in drawn_lists([pool_of(label % 30) for label in range(3000)], 5)]
    assert np.bincount(labels, minlength=5) == pytest.approx([600] * 5, rel=0.15)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_so_many_lists_reach_into_the_pool_and_all_whose_target_is_deep(share):
    pools = [pool_of(label % 30) for label in range(3000)]
    best = [set(pool.candidates[:5]) for pool in pools]
    drawn = [set(example.candidates) for example in drawn_lists(pools, 5, pool_share=share)]
    shallow = [one != other for pool, one, other in zip(pools, best, drawn, strict=True) if pool.label < 5]
    deep = [one != other for pool, one, other in zip(pools, best, drawn, strict=True) if pool.label >= 5]
    assert np.mean(shallow) == pytest.approx(share, abs=0.07) and all(deep)
    again, other = (
        [example.candidates.tolist() for example in drawn_lists(pools[:50], 5, seed=seed)] for seed in (42, 1)
    )
    assert again == [e.candidates.tolist() for e in drawn_lists(pools[:50], 5)] != other


def test_easy_lists_tell_the_target_from_those_of_other_lists_and_nothing_else():
    pools = [replace(pool, history=np.array([5, 6])) for pool in map(pool_of, range(30))]
    targets = {int(pool.candidates[pool.label]) for pool in pools}
    for pool, easy in zip(pools, with_easy_lists(pools, 1.0), strict=True):
        assert easy.candidates[easy.label] == pool.candidates[pool.label]
        assert len(set(easy.candidates.tolist())) == len(easy.candidates) > 5
        assert set(easy.candidates.tolist()) <= targets - {5, 6} | {int(pool.candidates[pool.label])}
        for silent in (easy.retrieval_scores, easy.popularity, easy.evidence, easy.recent_evidence):
            assert len(silent) == len(easy.candidates) and not silent.any()
        assert easy.evidence.shape[1] == pool.evidence.shape[1]


def test_so_many_lists_are_easy_and_the_others_stay_what_they_are():
    pools = [pool_of(label % 30) for label in range(2000)]
    some = with_easy_lists(pools, 0.3)
    assert np.mean([one is not pool for one, pool in zip(some, pools, strict=True)]) == pytest.approx(0.3, abs=0.05)
    assert with_easy_lists(pools, 0.0) == pools
    places = [one.label / len(one.candidates) for one in with_easy_lists(pools, 1.0)]
    assert np.mean(places) == pytest.approx(0.5, abs=0.05)  # the place says nothing about the target
    alone = pools[:1]  # no other target
    assert with_easy_lists(alone, 1.0) == alone
    with pytest.raises(LKGError, match="Give them to `with_features` first"):
        with_easy_lists([replace(pools[0], evidence=None)], 0.5)


# -- features ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def features(film_dataset):
    """Two indexes that differ, the fold of each of the four users, and lists of all of them and of a stranger."""
    graph = KnowledgeGraph.from_dataset(film_dataset)
    indexes = [EvidenceIndex.from_graph(graph), EvidenceIndex.from_graph(graph).with_scale([1.0, 3.0, 5.0])]
    examples = training_examples(film_dataset, ByItem(6), negatives="uniform", num_candidates=5, progress=False)
    strangers = [replace(examples[row], user=0, candidates=np.array([6, 5])) for row in (1, 5)]
    return indexes, np.array([0, 1, 0, 1, 0]), [*examples[::-1], *strangers]


def test_features_are_those_of_each_list_read_by_itself_by_the_index_of_its_fold(features):
    indexes, folds, examples = features
    counts = [np.arange(7, dtype=np.float32), np.arange(7, dtype=np.float32) * 10]
    found = with_features(examples, indexes, folds, log_counts=counts, recent_half_life=2.0, progress=False)
    assert len(found) == len(examples) == 4 * 2 + 2
    for before, after in zip(examples, found, strict=True):
        index, asked = indexes[folds[before.user]], ([before.history], [before.candidates])
        bare = dict.fromkeys(("evidence", "recent_evidence", "history_relations", "popularity"))
        assert replace(after, **bare) == before
        assert after.evidence.shape == (len(before.candidates), 3)
        assert after.evidence == pytest.approx(index.evidence(*asked)[0], rel=1e-6)
        assert after.recent_evidence == pytest.approx(index.with_half_life(2.0).evidence(*asked)[0], rel=1e-6)
        assert after.history_relations == pytest.approx(index.statistics([before.history])[0], abs=1e-6)
        assert after.popularity.tolist() == counts[folds[before.user]][before.candidates].tolist()
    assert with_features(examples, indexes, folds, progress=False)[0].popularity is None
    alone = with_features(examples, indexes[1], progress=False)
    assert alone[0].evidence == pytest.approx(indexes[1].evidence([alone[0].history], [alone[0].candidates])[0])


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


def test_rows_carry_features_where_there_are_some(features):
    indexes, folds, examples = features
    found = with_features(examples[:3], indexes, folds, progress=False)
    for example, row in zip(found, to_dataset(found), strict=True):
        restored = RankingExample.from_mapping(row)
        for name in ("evidence", "recent_evidence", "history_relations"):
            assert getattr(restored, name).dtype == np.float32
            assert np.array_equal(getattr(restored, name), getattr(example, name))
    some, none = to_dataset([found[0], examples[1]])
    assert RankingExample.from_mapping(some).evidence is not None
    assert RankingExample.from_mapping(none).evidence is None
    row = datasets.Dataset.from_dict({"history": [[1]], "candidates": [[2]], "user": [None]}).cast_column(
        "user", datasets.Value("int64")
    )
    for kind in (None, "numpy", "torch"):
        assert RankingExample.from_mapping(row.with_format(kind)[0]).user == 0
