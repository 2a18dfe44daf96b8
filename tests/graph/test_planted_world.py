"""The planted world is what it says: offers, choices, truth, and the same world for the same seed."""

from dataclasses import replace

import numpy as np
import pytest

from llamarec_lkg.data.sequences import PreprocessingSettings, SequenceDataset
from llamarec_lkg.evaluation.metrics import mean_metrics, target_ranks
from llamarec_lkg.graph.knowledge_graph import KnowledgeGraph
from llamarec_lkg.graph.planted_world import PlantedWorld, PlantedWorldSettings
from llamarec_lkg.utils.errors import LKGError


SMALL = PlantedWorldSettings(
    num_users=80, num_items=400, num_relations=3, values_per_relation=20, history_length=10, train_lists=2,
    num_candidates=8, mixture_fraction=0.25,
)  # fmt: skip


@pytest.fixture(scope="module")
def world() -> PlantedWorld:
    return PlantedWorld.generate(SMALL)


def shared(world, one, other):
    """Along which relations two dense items share an entity."""
    first, second = world.values[one - 1], world.values[other - 1]
    return [r for r in range(len(first)) if set(first[r]) & set(second[r])]


def test_the_seed_decides(world):
    again, other = PlantedWorld.generate(SMALL), PlantedWorld.generate(replace(SMALL, seed=1))
    for name in ("values", "preferences", "first_items", "offers", "choices"):
        np.testing.assert_array_equal(getattr(again, name), getattr(world, name))
    assert not np.array_equal(other.offers, world.offers) and not np.array_equal(other.values, world.values)


def test_an_offer_has_one_item_tied_along_each_relation_alone_and_nothing_seen_before(world):
    sequences = world.sequences()
    for user in (0, 17, 79):
        for step in range(sequences.shape[1] - 1):
            offer = world.offers[user, step]
            ties = sorted(shared(world, sequences[user, step], item) for item in offer)
            assert ties == [[]] * 5 + [[0], [1], [2]]
            assert not set(offer) & set(sequences[user, : step + 1]) and len(set(offer)) == 8


def test_planted_preferences(world):
    known, mixed = world.preferences[:64], world.is_mixed
    assert (world.num_known_users, mixed[:64].sum(), mixed[64:].sum()) == (64, 16, 4)
    np.testing.assert_allclose(world.preferences.sum(1), 1.0)
    assert np.bincount(known[~mixed[:64]].argmax(1)).tolist() == [16, 16, 16]
    assert ((world.preferences[mixed] > 0).sum(1) == 2).all()


def followed(world):
    """How often the chosen item is the one tied along each relation, by user, (U, R)."""
    sequences = world.sequences()
    counts = np.zeros(world.preferences.shape)
    for user in range(len(sequences)):
        for one, other in zip(sequences[user, :-1], sequences[user, 1:], strict=True):
            for relation in shared(world, one, other):
                counts[user, relation] += 1
    return counts / world.choices.shape[1]


def test_choices_follow_the_preferences_and_noise_does_not():
    sure = PlantedWorld.generate(replace(SMALL, noise=0.0, strength=20.0))
    pure = ~sure.is_mixed
    assert followed(sure)[pure][np.arange(pure.sum()), sure.preferences[pure].argmax(1)].min() == 1.0
    blind = PlantedWorld.generate(replace(SMALL, noise=1.0))
    np.testing.assert_allclose(followed(blind).mean(0), 1 / 8, atol=0.03)
    # a logit: with strength log 5 a tie has odds 5 against each of the 7 others
    weak = PlantedWorld.generate(replace(SMALL, noise=0.0, strength=np.log(5.0), mixture_fraction=0.0))
    taken = followed(weak)[np.arange(80), weak.preferences.argmax(1)].mean()
    assert taken == pytest.approx(5 / 12, abs=0.05)


def test_strong_preferences_do_not_overflow():
    sure = PlantedWorld.generate(replace(SMALL, noise=0.0, strength=5000.0))
    np.testing.assert_array_equal(followed(sure).argmax(1), sure.preferences.argmax(1))


def test_taking_turns_follows_each_relation_as_often_as_it_weighs():
    turns = PlantedWorld.generate(
        replace(SMALL, mixing="turns", noise=0.0, strength=20.0, mixture_fraction=1.0, history_length=60)
    )
    assert np.abs(followed(turns) - turns.preferences).mean() < 0.05


def test_lists_are_the_choices_in_dense_ids(world):
    train, known, new = (world.lists(part) for part in ("train", "known", "new"))
    assert (len(train), len(world.lists("validation")), len(known), len(new)) == (128, 64, 64, 16)
    assert {example.user for example in train} == set(range(1, 65)) == {example.user for example in known}
    assert {example.user for example in new} == set(range(65, 81))
    assert {len(example.history) for example in train} == {11, 12} and len(known[0].history) == 14
    for example in (train[0], known[5], new[3]):
        sequence = world.sequences()[example.user - 1]
        np.testing.assert_array_equal(example.history, sequence[: len(example.history)])
        assert example.candidates[example.label] == sequence[len(example.history)]


def test_nobody_beats_the_oracle(world):
    lists = world.lists("train")
    scores = world.oracle_scores(lists)
    for row in (0, 50, 100):
        example = lists[row]
        truth = world.preferences[example.user - 1]
        wanted = [truth[shared(world, example.history[-1], item)].sum() for item in example.candidates]
        np.testing.assert_allclose(scores[row], wanted)
    labels = np.array([example.label for example in lists])
    oracle = mean_metrics(target_ranks(scores, labels))["ndcg@10"]
    others = world.oracle_scores([replace(example, user=example.user % 64 + 1) for example in lists])
    assert oracle > 0.85 and mean_metrics(target_ranks(others, labels))["ndcg@10"] < oracle - 0.1


def test_it_is_a_data_set_and_a_graph_like_any_other(world):
    bundle = world.bundle()
    dataset = SequenceDataset.from_bundle(bundle, PreprocessingSettings(min_item_interactions=1))
    assert dataset.num_users == 80 and len(bundle.interactions) == 80 * 15
    graph = world.graph()
    assert graph.relations == world.relations and graph.num_items == 400
    assert graph.num_edges == 2 * 400 * 3 * 2
    assert KnowledgeGraph.from_dataset(dataset, bundle.triples).relations == ("CO_RATED", *world.relations)


def test_a_world_of_too_few_items_is_refused():
    with pytest.raises(LKGError, match="Take more items"):
        PlantedWorld.generate(replace(SMALL, num_items=12))
