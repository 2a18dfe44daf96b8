"""Scores of lists and of the whole catalogue, and the controls that take one thing away."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import examples, model, processor

from llamarec_lkg import LKGError
from llamarec_lkg.evaluation.metrics import MISS
from llamarec_lkg.graph.co_ratings import co_ratings
from llamarec_lkg.ranking.ablations import CONTROLS, control_scores, other_users
from llamarec_lkg.ranking.scoring import ranker_scores, reranked, without_language_model


@pytest.fixture
def proc(film_dataset):
    bare = processor(film_dataset, item_counts=10 * film_dataset.training_counts()[1:])
    graph = bare.knowledge_graph.with_co_ratings(co_ratings(film_dataset, min_people=1))
    return bare.with_knowledge_graph(graph).fit(examples(film_dataset))


def spoken(ranker):
    """A ranker whose language model says something; a new one's says nothing."""
    if ranker.readout is not None:
        torch.manual_seed(1)
        with torch.no_grad():
            for weight in ranker.readout.parameters():
                weight.add_(0.3 * torch.randn_like(weight))
    return ranker


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
    ranker, lists = spoken(model(proc, use_user_embedding=True)), examples(film_dataset)
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


@pytest.mark.parametrize("name", [name for name in CONTROLS if name != "permuted-titles"])
def test_where_no_path_is_written_controls_leave_the_language_model_as_it_was(film_dataset, name):
    """So it need not be run again for them."""
    proc, lists = processor(film_dataset, num_paths=0).fit(examples(film_dataset)), examples(film_dataset)
    ranker = spoken(model(proc))
    assert not proc.writes_paths
    said = ranker_scores(ranker, proc, lists, part="language model", progress=False)
    whole = control_scores(name, ranker, proc, lists, progress=False)
    kept = control_scores(name, ranker, proc, lists, progress=False, lm_scores=said)
    np.testing.assert_allclose(whole, kept, rtol=1e-4, atol=1e-5)


def test_permuted_titles_change_what_the_language_model_says_and_nothing_else(proc, film_dataset):
    ranker, lists = spoken(model(proc)), examples(film_dataset)
    seen = []
    for name in (None, "permuted-titles"):
        score = ranker.score
        ranker.score = lambda batch: seen.append(ranker.score_parts(batch)) or score(batch)  # noqa: B023
        if name is None:
            ranker_scores(ranker, proc, lists, progress=False)
        else:
            control_scores(name, ranker, proc, lists, progress=False)
        del ranker.score
    before, after = seen
    changed = {name for name in before if not torch.allclose(before[name], after[name], rtol=1e-4, atol=1e-5)}
    assert changed == {"language model"}
    with without_language_model(ranker):
        silent = [ranker_scores(ranker, proc, lists, progress=False)]
        silent.append(control_scores("permuted-titles", ranker, proc, lists, progress=False))
    np.testing.assert_array_equal(*silent)


@pytest.mark.parametrize("readout", ["candidates", "letters"])
def test_scores_from_what_the_language_model_said_are_those_of_a_whole_pass(film_dataset, readout, monkeypatch):
    proc, lists = processor(film_dataset, readout=readout).fit(examples(film_dataset)), examples(film_dataset)
    lists[1] = replace(lists[1], label=-1)
    lists[2] = replace(lists[2], candidates=lists[2].candidates[:3], retrieval_scores=np.zeros(3, np.float32), label=0)
    ranker = spoken(model(proc))
    whole = ranker_scores(ranker, proc, lists, batch_size=2, progress=False)
    said = ranker_scores(ranker, proc, lists, batch_size=2, part="language model", progress=False)
    assert np.ptp(said[0]) > 1e-3 and np.isnan(said[1]).all() and np.isneginf(said[2, 3:]).all()
    monkeypatch.setattr(ranker.language_model, "forward", lambda *args, **kwargs: pytest.fail("it need not be run"))
    monkeypatch.setattr(ranker.language_model.model, "forward", lambda *args, **kwargs: pytest.fail("nor its layers"))
    again = ranker_scores(ranker, proc, lists, progress=False, lm_scores=said)
    np.testing.assert_allclose(again, whole, rtol=1e-4, atol=1e-4)


def test_other_users_are_others_whatever_the_batches(film_dataset):
    lists = examples(film_dataset, count=12)
    others = other_users(lists, seed=1)
    assert all(example.user != other.user for example, other in zip(lists, others, strict=True))
    assert sorted(id(other) for other in others) == sorted(id(example) for example in lists)


def test_scores_that_are_not_numbers_are_an_error_not_the_retrievers_order(proc, film_dataset):
    ranker = model(proc)
    with torch.no_grad():
        ranker.fusion.lm_scale.fill_(torch.nan)
    with pytest.raises(ValueError, match="not finite"):
        ranker_scores(ranker, proc, examples(film_dataset), progress=False)


def test_an_unknown_control_is_refused(proc):
    with pytest.raises(LKGError, match="no control 'nothing'"):
        control_scores("nothing", model(proc), proc, [])
