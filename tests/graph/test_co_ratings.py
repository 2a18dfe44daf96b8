"""Co-ratings: what all people together say about pairs of items."""

import numpy as np
import pytest
from graphs import weighted_pairs

from llamarec_lkg.data.schema import CO_RATED
from llamarec_lkg.data.sequences import TRAIN, UNUSED, SequenceDataset
from llamarec_lkg.graph import co_ratings as module
from llamarec_lkg.graph.co_ratings import CoRatings, co_ratings
from llamarec_lkg.graph.evidence import EvidenceIndex
from llamarec_lkg.graph.knowledge_graph import KnowledgeGraph
from llamarec_lkg.utils.errors import LKGError


def pairs_of(table: CoRatings) -> dict[tuple[int, int], float]:
    return dict(
        zip(zip(table.items.tolist(), table.others.tolist(), strict=True), table.weights.tolist(), strict=True)
    )


def by_hand(dataset: SequenceDataset, min_people: int, per_item: int) -> dict[tuple[int, int], float]:
    """The same from a dense item x person matrix, item by item."""
    took = np.zeros((dataset.num_items + 1, dataset.num_users + 1))
    for position in np.flatnonzero(dataset.labels == TRAIN):
        took[dataset.item_sequence[position], dataset.user_of(position)] = 1
    ties = took * np.log1p(dataset.num_items / np.maximum(took.sum(axis=0), 1))
    ties /= np.maximum(np.linalg.norm(ties, axis=1, keepdims=True), 1e-12)
    people, weights = took @ took.T, (ties @ ties.T).round(3)
    found = {}
    for item in range(1, dataset.num_items + 1):
        others = [o for o in range(1, dataset.num_items + 1) if o != item and people[item, o] >= min_people]
        for other in sorted(others, key=lambda o: (-weights[item, o], o))[:per_item]:
            found[min(item, other), max(item, other)] = weights[item, other]
    return found


@pytest.fixture(scope="module")
def random_data(make_dataset) -> SequenceDataset:
    """Sixty people, forty items of which some are popular; some are taken twice."""
    generator = np.random.default_rng(4)
    popularity = 1 / np.arange(1, 41)
    rows = [
        (user, int(item), step)
        for user in range(1, 61)
        for step, item in enumerate(generator.choice(40, size=14, p=popularity / popularity.sum()) + 1)
    ]
    return make_dataset(rows)


def test_weights_are_cosines_of_rare_ties(make_dataset):
    """Person 1 trains on items 1, 2 and 3 and person 2 on 1 and 2; each one's last two interactions are held out."""
    rows = [(u, i, t) for u, items in ((1, [1, 2, 3, 8, 9]), (2, [1, 2, 7, 9])) for t, i in enumerate(items)]
    data = make_dataset(rows)
    assert data.num_items == 6
    one, two = np.log1p(6 / 3), np.log1p(6 / 2)  # of people who took three items and two
    share = round(one / np.hypot(one, two), 3)  # item 3 has person 1 alone
    assert pairs_of(co_ratings(data, min_people=1)) == pytest.approx({(1, 2): 1.0, (1, 3): share, (2, 3): share})
    assert pairs_of(co_ratings(data, min_people=2)) == {(1, 2): 1.0}
    nothing = co_ratings(data)
    assert len(nothing) == 0 and (nothing.items.dtype, nothing.weights.dtype) == (np.int64, np.float32)


@pytest.mark.parametrize("min_people, per_item", [(1, 99), (5, 99), (5, 4), (8, 1)])
def test_they_equal_a_dense_computation(random_data, min_people, per_item):
    table = co_ratings(random_data, min_people=min_people, per_item=per_item)
    assert pairs_of(table) == pytest.approx(by_hand(random_data, min_people, per_item), abs=1e-6)
    assert (table.items < table.others).all() and len(table) > 10
    order = table.items * 1000 + table.others
    assert (np.diff(order) > 0).all(), "each pair once, in order"


def test_blocks_change_nothing(random_data, monkeypatch):
    whole = pairs_of(co_ratings(random_data, per_item=4))
    monkeypatch.setattr(module, "BLOCK", 3)
    assert pairs_of(co_ratings(random_data, per_item=4)) == whole


def test_of_equally_strong_ties_those_of_the_first_items_stay(make_dataset):
    rows = [(user, item, step) for user in range(1, 6) for step, item in enumerate([1, 2, 3, 4, 5, 8, 9])]
    data = make_dataset(rows)
    assert pairs_of(co_ratings(data, per_item=1)) == {(1, 2): 1.0, (1, 3): 1.0, (1, 4): 1.0, (1, 5): 1.0}


def test_what_somebody_took_twice_is_one_tie(make_dataset):
    once = [(user, item, step) for user in (1, 2) for step, item in enumerate([1, 2, 3, 8, 9])]
    twice = [*once, (1, 1, -1), (1, 1, -2)]
    tables = [co_ratings(make_dataset(rows), min_people=2) for rows in (once, twice)]
    assert pairs_of(tables[0]) == pairs_of(tables[1]) != {}
    assert not pairs_of(co_ratings(make_dataset(twice), min_people=3)), "two people are two however often they come"


def test_only_training_positions_count(random_data):
    out = np.arange(1, 31)
    rest = random_data.without_users(out)
    assert (rest.labels[rest.user_of(np.arange(len(rest.labels))) <= 30] == UNUSED).all()
    found = pairs_of(co_ratings(rest, min_people=2))
    assert found == pytest.approx(by_hand(rest, 2, 50), abs=1e-6)
    assert found != pairs_of(co_ratings(random_data, min_people=2))


@pytest.mark.parametrize("seed", range(5))
def test_a_pair_of_fewer_than_five_people_is_nowhere(make_dataset, seed):
    generator = np.random.default_rng(seed)
    rows = [(u, int(i), t) for u in range(1, 25) for t, i in enumerate(generator.integers(1, 15, size=9))]
    data = make_dataset(rows)
    people: dict[tuple[int, int], set[int]] = {}
    for user, (start, stop) in enumerate(zip(data.offsets[:-1], data.offsets[1:], strict=True)):
        own = np.unique(data.item_sequence[start:stop][data.labels[start:stop] == TRAIN]).tolist()
        for a in own:
            for b in own:
                people.setdefault((a, b), set()).add(user)
    graph = KnowledgeGraph.from_dataset(data).with_co_ratings(co_ratings(data))
    counts = [len(people[pair]) for pair in weighted_pairs(graph)]
    assert min(counts) == 5 < max(counts)
    assert min(len(users) for users in people.values()) < 5, "there are pairs to leave out"


@pytest.mark.parametrize("wrong", [{"min_people": 0}, {"per_item": 0}])
def test_at_least_one_person_and_one_item(film_dataset, wrong):
    with pytest.raises(LKGError, match="they are whole numbers from 1 up"):
        co_ratings(film_dataset, **wrong)


def test_the_graph_gives_their_weights_as_evidence_both_ways(film_dataset):
    table = co_ratings(film_dataset, min_people=1)
    index = EvidenceIndex.from_graph(KnowledgeGraph.from_dataset(film_dataset).with_co_ratings(table))
    items = np.arange(1, 7)
    evidence = index.evidence([[item] for item in items], [items] * 6)[:, :, index.relations.index(CO_RATED)]
    wanted = np.zeros((6, 6))
    wanted[table.items - 1, table.others - 1] = wanted[table.others - 1, table.items - 1] = table.weights
    assert evidence == pytest.approx(wanted) and wanted.any()


@pytest.mark.parametrize("min_people, per_item, pairs", [(1, 50, 7), (3, 4, 1000), (5, 2, 1000)])
def test_a_window_over_whole_histories_gives_all_pairs(random_data, monkeypatch, min_people, per_item, pairs):
    monkeypatch.setattr(module, "PAIRS", pairs)
    whole = pairs_of(co_ratings(random_data, min_people=min_people, per_item=per_item))
    near = pairs_of(co_ratings(random_data, min_people=min_people, per_item=per_item, window=random_data.num_items))
    assert near.keys() == whole.keys() and len(near) > 5
    assert near == pytest.approx(whole, abs=1.01e-3)


def test_a_window_ties_what_is_near_and_refuses_nothing_to_look_at(make_dataset):
    rows = [(user, item, item) for user in range(1, 7) for item in range(1, 7)]
    data = make_dataset(rows)  # everybody takes 1 to 6 in turn; 1 to 4 are trained on
    assert set(pairs_of(co_ratings(data, window=1))) == {(1, 2), (2, 3), (3, 4)}
    assert set(pairs_of(co_ratings(data, window=2))) == {(1, 2), (2, 3), (3, 4), (1, 3), (2, 4)}
    assert len(co_ratings(data, min_people=7, window=1)) == 0
    with pytest.raises(LKGError, match="window is 0; they are whole numbers from 1 up"):
        co_ratings(data, window=0)
