"""What reads the language model's states learns before the language model does."""

import numpy as np
import pytest
import torch
from tiny import examples, model, processor

from llamarec_lkg import LlamaRecLKGTrainer, LlamaRecLKGTrainingArguments
from llamarec_lkg.ranking.heads import CandidateReadout
from llamarec_lkg.training import trainer as trainer_module
from llamarec_lkg.training.warm_up import _states, fit_readout


@pytest.fixture
def proc(film_dataset):
    return processor(film_dataset)


def planted(film_dataset, count=60):
    """The target is the candidate of the smallest id, which its title tells."""
    lists = examples(film_dataset, count=count, seed=3)
    for example in lists:
        object.__setattr__(example, "label", int(np.argmin(example.candidates)))
    return lists


def test_it_learns_what_titles_say_and_leaves_the_backbone_alone(proc, film_dataset):
    lists = planted(film_dataset)
    proc.fit(lists)
    ranker = model(proc)
    assert ranker.readout.is_new
    others = {n: p.clone() for n, p in ranker.named_parameters() if not n.startswith("readout.")}
    log = fit_readout(ranker, proc, lists, epochs=30, learning_rate=5e-3, progress=False)
    assert not ranker.readout.is_new and min(one["eval_loss"] for one in log) < 0.5 * np.log(5)
    assert all(torch.equal(p, others[n]) for n, p in ranker.named_parameters() if n in others)
    scores = ranker.language_model_scores(proc(lists))
    assert (scores.argmax(1).numpy() == [example.label for example in lists]).mean() > 0.6, "a fifth by chance"


def test_where_it_learns_nothing_for_other_users_it_says_nothing_as_before(proc, film_dataset):
    lists = planted(film_dataset, 20)
    proc.fit(lists)
    ranker = model(proc)
    fit_readout(ranker, proc, lists, epochs=2, learning_rate=1e3, progress=False)
    assert ranker.readout.is_new and not ranker.language_model_scores(proc(lists)).any()


def test_nothing_is_read_where_there_is_one_user_or_nothing_to_learn(proc, film_dataset, monkeypatch):
    lists = planted(film_dataset, 20)
    proc.fit(lists)
    ranker = model(proc)
    monkeypatch.setattr(type(ranker), "language_model_scores", lambda *args: pytest.fail("it was read"))
    before = ranker.readout.prefix_in.weight.clone()
    one = [example for example in lists if example.user == lists[0].user]
    assert fit_readout(ranker, proc, one, progress=False) == []
    ranker.readout.requires_grad_(False)
    assert fit_readout(ranker, proc, lists, progress=False) == []
    assert torch.equal(ranker.readout.prefix_in.weight, before)


@pytest.mark.parametrize("count", [40, 4000])
def test_whitened_states_have_one_spread_also_of_lists_that_were_not_read(count):
    """Few states span few directions; what lies outside of them must not be blown up."""
    generator, width = torch.Generator().manual_seed(0), 160
    spread = torch.linspace(0, 1, width).square() * 3 + 0.01

    def states(number):
        return torch.randn(number, width, generator=generator) * spread + 5

    readout, read, others = CandidateReadout(width), states(count), states(1000)
    readout.whiten(read, read)
    for layer in (readout.prefix_in, readout.candidate_in):
        seen = layer(readout.norm(read)).detach()
        assert seen.mean(0).abs().max() < 1e-3 and seen.std(0).max() < 1.1
        assert layer(readout.norm(others)).std(0).max() < 3
    if count > width:
        assert seen.std(0).median() > 0.9
    broken = torch.cat([read, torch.full((1, width), torch.inf)])
    again = CandidateReadout(width)
    again.whiten(broken, broken)
    torch.testing.assert_close(again.prefix_in.weight, readout.prefix_in.weight)


def test_lists_read_in_several_passes_give_the_same(proc, film_dataset):
    lists = planted(film_dataset)
    proc.fit(lists)
    found = []
    for size in (None, 2):
        ranker = model(proc)
        ranker.config.candidates_per_pass = size
        found.append(_states(ranker, proc, lists, 16, False))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    assert found[0][1].shape[:2] == found[0][2].shape and len(found[0][3]) == len(lists)


def test_where_it_cannot_be_that_is_said(proc, film_dataset, tmp_path, caplog):
    lists = planted(film_dataset, 8)
    args = LlamaRecLKGTrainingArguments(str(tmp_path), use_cpu=True, disable_tqdm=True)
    trainer = LlamaRecLKGTrainer(model(proc), args, lists, None, proc)
    trainer.is_fsdp_enabled = True
    assert trainer.warm_up_readout() == [] and trainer.model.readout.is_new
    assert "left out: the language model is in shards" in caplog.text


@pytest.mark.parametrize("count", [0, 16])
def test_the_trainer_does_so_once_for_a_readout_that_has_learned_nothing(
    proc, film_dataset, tmp_path, monkeypatch, count
):
    lists, read = planted(film_dataset), []
    args = LlamaRecLKGTrainingArguments(
        str(tmp_path),
        max_steps=1,
        heads_warm_up_epochs=0,
        readout_warm_up_lists=count,
        use_cpu=True,
        disable_tqdm=True,
    )

    def noted(model, processor, lists, **how):
        read.append(len(lists))
        return fit_readout(model, processor, lists, **how)

    monkeypatch.setattr(trainer_module, "fit_readout", noted)
    trainer = LlamaRecLKGTrainer(model(proc), args, lists, None, proc)
    trainer.warm_up_readout()
    with torch.no_grad():  # as where it learned nothing
        for weight in (*trainer.model.readout.key.parameters(), trainer.model.readout.out.weight):
            weight.zero_()
    trainer.train()
    assert read == ([count] if count else []), "and never again"
