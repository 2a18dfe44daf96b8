"""What reads the language model's states learns before the language model does."""

import numpy as np
import pytest
import torch
from tiny import examples, model, processor

from llamarec_lkg import LlamaRecLKGTrainer, LlamaRecLKGTrainingArguments
from llamarec_lkg.training import trainer as trainer_module
from llamarec_lkg.training.warm_up import fit_readout


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


def test_where_it_learns_nothing_for_other_lists_it_stays_as_it_was(proc, film_dataset):
    lists = planted(film_dataset, 20)
    proc.fit(lists)
    ranker = model(proc)
    fit_readout(ranker, proc, lists, epochs=2, learning_rate=1e3, progress=False)
    assert ranker.readout.is_new and not ranker.language_model_scores(proc(lists)).any()


def test_whitened_states_have_one_spread_and_no_mean(proc):
    readout, generator = model(proc).readout, torch.Generator().manual_seed(0)
    width = readout.norm.weight.shape[0]
    states = torch.randn(4000, width, generator=generator) * torch.linspace(0.1, 3, width) + 5
    readout.whiten(states, states)
    seen = readout.candidate(readout.norm(states))
    assert seen.mean(0).abs().max() < 1e-3
    spread = seen.std(0)
    # a norm takes one direction out of states: what is left of it is noise
    assert ((spread - 1).abs() < 0.01).sum() >= readout.size - 1


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
    trainer.train()
    trainer.train()
    assert read == ([count] if count else []), "and never again"
