"""The control without a language model: it learns what no weighted sum can say."""

import numpy as np
import pytest
import torch

from llamarec_lkg.retrieval.fused import listwise_weights
from llamarec_lkg.training import stacker as module
from llamarec_lkg.training.stacker import Stacker


def batch_of(count: int, seed: int):
    """Lists of six whose target has evidence along exactly one of two relations, while one other has both and the rest
    none: no weighted sum can put it first."""
    generator = np.random.default_rng(seed)
    evidence = np.zeros((count, 6, 2), dtype=np.float32)
    labels = np.zeros(count, dtype=np.int64)
    for row in range(count):
        places = generator.permutation(6)
        labels[row] = places[0]
        evidence[row, places[0], generator.integers(2)] = 1.0
        evidence[row, places[1]] = 1.0
    mask = np.ones((count, 6), dtype=bool)
    noise = [generator.normal(size=(count, 6)).astype(np.float32) for _ in range(2)]
    batch = {
        "evidence": evidence,
        "recent_evidence": np.zeros_like(evidence),
        "retrieval_scores": noise[0],
        "popularity": noise[1],
        "candidate_mask": mask,
        "labels": labels,
        "user_ids": generator.integers(1, 100, count),
        "history_relations": np.ones((count, 2, 7), dtype=np.float32),
    }
    return {name: torch.from_numpy(values) for name, values in batch.items()}


@pytest.fixture(scope="module")
def stacker():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "NETWORKS", 2)
        return Stacker.fit(batch_of(400, 0), progress=False)


def right(scores, batch) -> float:
    return float((np.asarray(scores).argmax(1) == batch["labels"].numpy()).mean())


def test_it_learns_a_rule_that_no_sum_says_and_beats_the_best_sum(stacker):
    train, test = batch_of(400, 0), batch_of(300, 1)
    weights = listwise_weights(train["evidence"], train["candidate_mask"], train["labels"])
    assert right(test["evidence"] @ weights, test) < 0.6
    assert right(stacker.score(test), test) > 0.95


def test_a_candidate_that_is_none_has_no_score_and_says_nothing_of_others(stacker):
    test = batch_of(20, 2)
    wider = {
        name: torch.cat([values, torch.full_like(values[:, :1], 9)], dim=1) if values.ndim > 1 else values
        for name, values in test.items()
        if name not in ("candidate_mask", "history_relations")
    }
    wider["candidate_mask"] = torch.cat([test["candidate_mask"], torch.zeros(20, 1, dtype=torch.bool)], dim=1)
    wider["history_relations"] = test["history_relations"]
    scores = stacker.score(wider)
    assert np.isneginf(scores[:, 6]).all()
    np.testing.assert_allclose(scores[:, :6], stacker.score(test), rtol=1e-4, atol=1e-5)


def test_popularity_is_relative_to_the_list(stacker):
    """It is counted without a fold's users where the networks are fitted, and with everybody at test time."""
    test = batch_of(50, 3)
    shifted = {**test, "popularity": test["popularity"] + 5.0}
    np.testing.assert_allclose(stacker.score(shifted), stacker.score(test), rtol=1e-3, atol=1e-3)


def test_it_reads_in_the_history_which_relation_counts(monkeypatch):
    """One of two candidates has evidence along the first relation, the other along the second one; the history says
    which of the two its user follows."""
    monkeypatch.setattr(module, "NETWORKS", 2)

    def batch(count, seed):
        made = batch_of(count, seed)
        generator = torch.Generator().manual_seed(seed)
        followed = torch.randint(2, (count,), generator=generator)
        made["evidence"] = torch.eye(2).repeat(count, 3, 1)
        made["candidate_mask"][:, 2:] = False
        made["labels"] = followed
        made["history_relations"][..., :-1] = torch.nn.functional.one_hot(followed, 2)[..., None].float()
        return made

    test = batch(200, 1)
    assert right(Stacker.fit(batch(400, 0), progress=False).score(test), test) > 0.95


def test_what_never_varied_has_no_say(stacker):
    """All histories that it was fitted on are alike."""
    test = batch_of(20, 4)
    other = {**test, "history_relations": test["history_relations"] + 1}
    np.testing.assert_array_equal(stacker.score(other), stacker.score(test))


def test_fitting_is_by_seed_and_leaves_other_draws_alone(monkeypatch):
    monkeypatch.setattr(module, "EPOCHS", 3)
    torch.manual_seed(7)
    wanted = torch.rand(1)
    torch.manual_seed(7)
    train, test = batch_of(60, 0), batch_of(10, 1)
    one, same, other = (Stacker.fit(train, seed=seed, progress=False).score(test) for seed in (1, 1, 9))
    assert torch.equal(torch.rand(1), wanted)
    np.testing.assert_array_equal(one, same)
    assert not np.allclose(one, other)
