"""Scores of lists and of the whole catalogue, and the controls that take one thing away."""

import numpy as np
import pytest
import torch
from tiny import examples, model, processor

from llamarec_lkg import LlamaRecLKGForRanking
from llamarec_lkg.graph.co_ratings import co_ratings
from llamarec_lkg.ranking.ablations import CONTROLS, control_scores
from llamarec_lkg.ranking.scoring import catalogue_scores, ranker_scores, without_language_model
from llamarec_lkg.retrieval.base import PopularityRetriever, exclude_history


@pytest.fixture
def proc(film_dataset):
    bare = processor(film_dataset)
    graph = bare.knowledge_graph.with_co_ratings(co_ratings(film_dataset, min_people=1))
    return bare.with_knowledge_graph(graph).fit(examples(film_dataset))


@pytest.mark.parametrize("off", [None, "use_retrieval_scores", "use_evidence_fusion"])
def test_catalogue_scores_are_those_of_the_model_on_a_list_of_all_items(proc, film_dataset, off):
    switches = {} if off is None else {off: False}
    config = proc.model_config(use_language_model=False, use_user_embedding=True, evidence_weight=1.5, **switches)
    ranker = LlamaRecLKGForRanking(config).train()
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in (*ranker.preference.parameters(), ranker.fusion.retrieval_weight):
            weight.add_(torch.randn_like(weight))
    retriever = PopularityRetriever.from_dataset(film_dataset)
    histories, users = [np.array([1, 4]), np.array([], dtype=np.int64), np.array([2, 3, 5])], [2, 0, 1]
    found = catalogue_scores(ranker, proc, retriever, histories, users)
    assert ranker.training, "it is left in its mode"
    first_stage = exclude_history(retriever.score(histories), histories)
    index, known = proc.evidence_index, np.isfinite(first_stage)
    for row, (history, user) in enumerate(zip(histories, users, strict=True)):
        batch = {
            "evidence": index.evidence([history], [np.arange(7)]),
            "retrieval_scores": np.where(known, first_stage, 0.0)[row : row + 1].astype(np.float32),
            "candidate_mask": known[row : row + 1],
            "user_ids": np.array([user]),
            "history_relations": index.statistics([history]),
        }
        logits = ranker.score({name: torch.from_numpy(value) for name, value in batch.items()})[0].numpy()
        np.testing.assert_allclose(found[row, known[row]], logits[known[row]], rtol=1e-5, atol=1e-5)
        assert (found[row, ~known[row]] == -np.inf).all()
    assert np.ptp(found[0, known[0]]) > 1e-3


@pytest.mark.parametrize("name", CONTROLS)
def test_a_control_leaves_processor_and_model_as_they_are_also_after_an_error(proc, film_dataset, name, monkeypatch):
    lists, ranker = examples(film_dataset), model(proc)
    graph, index = proc.knowledge_graph, proc.evidence_index
    before = ranker_scores(ranker, proc, lists, progress=False)
    control_scores(name, ranker, proc, lists, progress=False)
    with monkeypatch.context() as patch:
        patch.setattr(ranker, "score", lambda batch: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            control_scores(name, ranker, proc, lists, progress=False)
    assert proc.knowledge_graph is graph and proc.evidence_index is index
    np.testing.assert_allclose(ranker_scores(ranker, proc, lists, progress=False), before, rtol=1e-6)


def test_the_language_model_is_back_after_an_error(proc):
    ranker = model(proc)
    with pytest.raises(ZeroDivisionError), without_language_model(ranker):
        assert not ranker.config.use_language_model
        1 / 0  # noqa: B018
    assert ranker.config.use_language_model
