"""Candidates by retriever, evidence and popularity: a sum over the catalogue, with weights that find a planted one."""

import numpy as np
import pandas as pd
import pytest
import torch

from llamarec_lkg.data.schema import CO_RATED
from llamarec_lkg.graph.evidence import EvidenceIndex
from llamarec_lkg.graph.knowledge_graph import KnowledgeGraph
from llamarec_lkg.retrieval import fused as module
from llamarec_lkg.retrieval.base import exclude_history
from llamarec_lkg.retrieval.candidates import evaluation_examples
from llamarec_lkg.retrieval.fused import (
    CandidateWeights,
    Fold,
    FusedRetriever,
    MeanRetriever,
    fit_candidate_weights,
    listwise_weights,
)


class Noise:
    """Scores that are drawn anew for each history, the same whenever it is asked."""

    def __init__(self, num_items, scale=1.0):
        self.num_items, self.scale = num_items, scale

    def score(self, histories):
        scores = np.stack([self.of(history) for history in histories])
        scores[:, 0] = -np.inf
        return scores

    def of(self, history):
        generator = np.random.default_rng([len(history), *np.asarray(history).tolist()])
        return (self.scale * generator.normal(size=self.num_items + 1)).astype(np.float32)


@pytest.fixture(scope="module")
def index(film_dataset):
    return EvidenceIndex.from_graph(KnowledgeGraph.from_dataset(film_dataset))


LOG_COUNTS = np.log1p(np.array([0, 9, 4, 0, 2, 7, 1], dtype=np.float32))
HISTORIES = [np.array([1, 4]), np.array([], dtype=np.int64), np.array([2, 3, 5])]


def test_its_scores_are_the_weighted_sum_over_the_whole_catalogue(index):
    weights = CandidateWeights(2.0, [0.0, 1.5, 0.5], [0.0, 0.25, 3.0], 0.7)
    retriever = Noise(6)
    fused = FusedRetriever(retriever, index, LOG_COUNTS, weights, recent_half_life=2.0)
    everything = [np.arange(1, 7)] * len(HISTORIES)
    evidence = index.evidence(HISTORIES, everything)
    recent = index.with_half_life(2.0).evidence(HISTORIES, everything)
    wanted = 2.0 * retriever.score(HISTORIES)[:, 1:] + 0.7 * LOG_COUNTS[1:]
    wanted = wanted + evidence @ np.array(weights.evidence) + recent @ np.array(weights.recent)
    found = fused.score(HISTORIES)
    np.testing.assert_allclose(found[:, 1:], wanted, rtol=1e-4, atol=1e-5)
    assert (found[:, 0] == -np.inf).all() and found.dtype == np.float32 and fused.num_items == 6
    assert np.ptp(evidence @ np.array(weights.evidence)) > 0.1 and not np.allclose(evidence, recent)


def test_the_retriever_alone_where_nothing_else_weighs_anything(index):
    alone = FusedRetriever(Noise(6), index, LOG_COUNTS, CandidateWeights(1.0, np.zeros(3), np.zeros(3)))
    np.testing.assert_array_equal(alone.score(HISTORIES), Noise(6).score(HISTORIES))
    scores = Noise(6).score(HISTORIES)
    before = scores.copy()
    alone.join(scores, HISTORIES)
    np.testing.assert_array_equal(scores, before)


def test_several_retrievers_as_one_count_alike_whatever_their_scale():
    one, other = Noise(6), Noise(6, 30.0)
    logs = [torch.from_numpy(retriever.score(HISTORIES)).log_softmax(1).numpy() for retriever in (one, other)]
    scores = MeanRetriever([one, other]).score(HISTORIES)
    assert scores.dtype == np.float32 and np.isneginf(scores[:, 0]).all()
    np.testing.assert_allclose(scores[:, 1:], np.mean(logs, axis=0)[:, 1:], rtol=1e-5)


def test_lists_are_in_its_order_and_carry_the_scores_of_the_retriever(index, film_dataset):
    weights = CandidateWeights(0.1, [0.0, 5.0, 5.0], [0.0, 0.0, 0.0], 1.0)
    fused, retriever = FusedRetriever(Noise(6), index, LOG_COUNTS, weights), Noise(6)
    differ = 0
    for example in evaluation_examples(film_dataset, fused, "test", num_candidates=2, progress=False):
        chosen = exclude_history(fused.score([example.history]), [example.history])[0]
        assert example.candidates.tolist() == np.argsort(-chosen, kind="stable")[:2].tolist()
        scores = retriever.score([example.history])[0]
        np.testing.assert_array_equal(example.retrieval_scores, scores[example.candidates])
        differ += scores[example.candidates].argmax() != 0
    assert differ, "another order than the retriever's"


# -- weights ----------------------------------------------------------------------------------------------------------


def test_weights_of_a_sum_are_found_from_choices_that_it_made():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(4000, 6, 3, generator=generator)
    mask = torch.ones(4000, 6, dtype=torch.bool)
    mask[::3, 4:] = False
    planted = torch.tensor([1.5, -0.5, 0.0])
    chances = (features @ planted).masked_fill(~mask, -torch.inf).softmax(1)
    labels = torch.multinomial(chances, 1, generator=generator)[:, 0]
    found = listwise_weights(features, mask, labels)
    torch.testing.assert_close(found, planted, rtol=0.0, atol=0.1)


COUNT = 40


@pytest.fixture(scope="module")
def planted(make_dataset):
    """150 users who choose among forty items by a retriever, by genre, more by that of the last item, and by
    popularity, in known shares. Directors say nothing."""
    items = pd.DataFrame({"item_id": range(1, COUNT + 1), "title": "T"})
    items["director"] = [f"d{number % 5}" for number in range(COUNT)]
    items["genre"] = [f"g{number % 8}" for number in range(COUNT)]
    graph = KnowledgeGraph.from_dataset(make_dataset([(0, item, item) for item in range(1, COUNT + 1)], items))
    index = EvidenceIndex.from_graph(graph).with_scale([1.0, 0.2, 0.2])
    assert index.relations == (CO_RATED, "DIRECTOR", "GENRE")
    log_counts = np.append(0.0, np.linspace(0, 3, COUNT)).astype(np.float32)
    weights = CandidateWeights(1.0, [0.0, 0.0, 0.15], [0.0, 0.0, 0.2], 0.8)
    truth = FusedRetriever(Noise(COUNT), index, log_counts, weights)
    generator, rows = np.random.default_rng(0), []
    for user in range(150):
        history = generator.choice(np.arange(1, COUNT + 1), 1)
        for _ in range(11):
            scores = exclude_history(truth.score([history]), [history])[0]
            chances = np.exp(scores - scores.max())
            history = np.append(history, generator.choice(COUNT + 1, p=chances / chances.sum()))
        rows += [(user, int(item), step) for step, item in enumerate(history)]
    data = make_dataset(rows, items)
    assert data.items.ids == tuple(str(item) for item in range(1, COUNT + 1))
    return data, index, log_counts, weights


def folds_of(data, index, log_counts):
    positions = data.positions("train")
    positions = positions[~np.isin(positions, data.offsets[:-1])]
    return [Fold(part, Noise(COUNT), index, log_counts) for part in np.array_split(positions, 2)]


def test_fitted_weights_recover_a_planted_mix(planted):
    data, index, log_counts, wanted = planted
    found = fit_candidate_weights(data, folds_of(data, index, log_counts), progress=False)
    assert found.retriever == pytest.approx(wanted.retriever, abs=0.15)
    assert found.popularity == pytest.approx(wanted.popularity, abs=0.15)
    assert found.evidence == pytest.approx(wanted.evidence, abs=0.1)
    assert found.recent == pytest.approx(wanted.recent, abs=0.2)


def test_few_positions_are_enough_and_drawn_by_seed(planted, monkeypatch):
    data, index, log_counts, _ = planted
    monkeypatch.setattr(module, "FITTED_POSITIONS", 100)
    folds = folds_of(data, index, log_counts)
    found = [fit_candidate_weights(data, folds, seed=seed, progress=False) for seed in (1, 1, 2)]
    assert found[0] == found[1] != found[2]
