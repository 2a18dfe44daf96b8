"""Scores of lists, and what each control takes away from a ranker."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import examples, model, processor

from llamarec_lkg.evaluation.metrics import MISS
from llamarec_lkg.ranking.ablations import CONTROLS, control_scores, other_users
from llamarec_lkg.ranking.scoring import ranker_scores, reranked
from llamarec_lkg.utils.errors import LKGError


@pytest.fixture
def proc(film_dataset):
    return processor(film_dataset).fit(examples(film_dataset))


def test_scores_equal_the_models_and_missed_targets_are_not_run(proc, film_dataset):
    lists = examples(film_dataset, count=5)
    lists[2] = replace(lists[2], label=-1)
    lists[3] = replace(lists[3], candidates=lists[3].candidates[:3], retrieval_scores=np.zeros(3, np.float32), label=0)
    ranker = model(proc)
    scores = ranker_scores(ranker, proc, lists, batch_size=2, progress=False)
    assert np.isnan(scores[2]).all()
    assert np.isneginf(scores[3, 3:]).all()
    with torch.no_grad():
        alone = ranker(**proc([lists[4]])).logits[0].numpy()
    np.testing.assert_allclose(scores[4], alone, rtol=1e-4, atol=1e-4)
    ranks = reranked(scores, lists)
    assert ranks[2] == MISS and 1 <= ranks[3] <= 3


@pytest.mark.parametrize("name", CONTROLS)
def test_each_control_takes_its_thing_away(proc, film_dataset, name):
    ranker, lists = model(proc, use_user_embedding=True), examples(film_dataset)
    torch.manual_seed(0)
    with torch.no_grad():
        ranker.preference.user_embedding.weight.normal_()
    before = ranker_scores(ranker, proc, lists, progress=False)
    seen = []
    hook = ranker.register_forward_hook(
        lambda module, args, kwargs, output: seen.append((kwargs, output)), with_kwargs=True
    )
    inside = control_scores(name, ranker, proc, lists, progress=False)
    hook.remove()
    assert not np.allclose(before, inside)
    batch, output = seen[0]
    if name == "no-kg":
        assert not batch["evidence"].any() and not batch["path_attention_mask"].any()
    if name == "uniform-preferences":
        torch.testing.assert_close(output.preferences, torch.full_like(output.preferences, 1 / len(proc.relations)))
    if name == "other-user-preferences":
        assert (batch["user_ids"] != torch.tensor([example.user for example in lists])).all()


def test_other_users_are_others_whatever_the_batches(film_dataset):
    lists = examples(film_dataset, count=12)
    others = other_users(lists, seed=1)
    assert all(example.user != other.user for example, other in zip(lists, others, strict=True))
    assert sorted(id(other) for other in others) == sorted(id(example) for example in lists)


def test_scores_that_are_not_numbers_are_an_error_not_the_retrievers_order(proc, film_dataset):
    ranker = model(proc)
    with torch.no_grad():
        ranker.fusion.letter_scale.fill_(torch.nan)
    with pytest.raises(ValueError, match="not finite"):
        ranker_scores(ranker, proc, examples(film_dataset), progress=False)


def test_an_unknown_control_is_refused(proc):
    with pytest.raises(LKGError, match="no control 'nothing'"):
        control_scores("nothing", model(proc), proc, [])
