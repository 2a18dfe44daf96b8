"""Training lists: made and read out of fold, parted by what they teach."""

import numpy as np
import pytest
from tiny import processor

from llamarec_lkg.graph.co_ratings import co_ratings
from llamarec_lkg.graph.evidence import EvidenceIndex
from llamarec_lkg.graph.knowledge_graph import KnowledgeGraph
from llamarec_lkg.retrieval.candidates import folds_of_users
from llamarec_lkg.retrieval.fused import FusedRetriever
from llamarec_lkg.training.lists import HELD_OUT_FOLD, FoldParts, make_lists
from llamarec_lkg.training.run_config import ExamplesSection


FOLDS = 3


class Watched:
    """Scores that every fold has its own of, and whom it was asked about."""

    def __init__(self, num_items, fold):
        generator = np.random.default_rng(fold)
        self.num_items, self.asked = num_items, []
        self.scores = np.append(-np.inf, generator.normal(size=num_items)).astype(np.float32)

    def score(self, histories):
        self.asked += [tuple(history.tolist()) for history in histories]
        return np.tile(self.scores, (len(histories), 1))


@pytest.fixture(scope="module")
def world(make_dataset):
    """Thirty users, each with an item of his or her own first, so that a history says whose it is; and by fold what is
    known without its users."""
    generator = np.random.default_rng(0)
    orders = [[user, *generator.permutation(np.arange(31, 51))[:9]] for user in range(1, 31)]
    data = make_dataset([(order[0], int(item), step) for order in orders for step, item in enumerate(order)])
    folds = folds_of_users(30, FOLDS)
    parts = []
    for fold in range(FOLDS):
        others = data.without_users(np.flatnonzero(folds == fold))
        graph = KnowledgeGraph.from_dataset(data).with_co_ratings(co_ratings(others, min_people=2))
        log_counts = np.log1p(others.training_counts()).astype(np.float32)
        parts.append(FoldParts(folds, Watched(data.num_items, fold), graph, log_counts))
    return data, folds, parts


def made(world, **section):
    data, _, parts = world
    proc = processor(data, num_candidates=6)
    for part in parts:
        part.retriever.asked.clear()
    settings = {"folds": FOLDS, "pool": 20, **section}
    return proc, make_lists(data, parts, proc, ExamplesSection(**settings), progress=False)


@pytest.mark.parametrize("fuse", [True, False])
def test_nothing_that_a_list_is_made_or_read_by_has_seen_its_user(world, fuse):
    data, folds, parts = world
    proc, lists = made(world, fuse_candidates=fuse)
    assert (proc.candidate_weights is not None) is fuse
    for fold, part in enumerate(parts):
        assert {folds[int(data.items.ids[history[0] - 1])] for history in part.retriever.asked} == {fold}
    for example in lists.train[::7] + lists.best[::7]:
        part, chosen = parts[folds[example.user]], example.candidates
        index = EvidenceIndex.from_graph(part.graph, half_life=proc.evidence_half_life).with_scale(proc.evidence_scale)
        recent = index.with_half_life(proc.recent_half_life)
        np.testing.assert_array_equal(example.retrieval_scores, part.retriever.scores[chosen])
        np.testing.assert_array_equal(example.popularity, part.log_counts[chosen])
        for values, one in ((example.evidence, index), (example.recent_evidence, recent)):
            np.testing.assert_allclose(values, one.evidence([example.history], [chosen])[0], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(
            example.history_relations, index.statistics([example.history])[0], rtol=1e-4, atol=1e-5
        )
    assert any(example.evidence.any() for example in lists.best)


def test_one_folds_users_are_in_no_list_that_the_language_model_learns_from(world):
    _, folds, _ = world
    _, lists = made(world)
    assert {folds[example.user] for example in lists.train} == {1, 2}
    assert {folds[example.user] for example in lists.held_out} == {HELD_OUT_FOLD}
    assert {folds[example.user] for example in lists.best} == {0, 1, 2}
    assert [example for example in lists.best if folds[example.user] == HELD_OUT_FOLD] == lists.held_out
    assert f"{len(lists.held_out)} others to weigh the parts by" in lists.describe()


def test_the_best_lists_are_the_best_of_the_fused_candidates_in_their_order(world):
    _, folds, parts = world
    proc, lists = made(world)
    assert all(example.label >= 0 and len(example.candidates) == 6 for example in lists.best)
    for example in lists.best[::5]:
        part = parts[folds[example.user]]
        index = EvidenceIndex.from_graph(part.graph, half_life=proc.evidence_half_life).with_scale(proc.evidence_scale)
        known = (index, part.log_counts, proc.candidate_weights, proc.recent_half_life)
        scores = FusedRetriever(part.retriever, *known).score([example.history])[0]
        scores[example.history] = -np.inf
        assert example.candidates.tolist() == np.argsort(-scores, kind="stable")[:6].tolist()


def test_one_fold_and_uniform_negatives_make_plain_lists(world):
    data, folds, parts = world
    proc = processor(data, num_candidates=6)
    graph = KnowledgeGraph.from_dataset(data)
    whole = [FoldParts(None, parts[0].retriever, graph, parts[0].log_counts)]
    lists = make_lists(data, whole, proc, ExamplesSection(folds=1, negatives="uniform"), progress=False)
    assert len(lists.train) == 30 * 7 and not lists.best and not lists.held_out and proc.candidate_weights is None
    assert all(example.popularity is not None and example.recent_evidence is not None for example in lists.train)
