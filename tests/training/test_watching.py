"""What is logged beside the loss, and that every reporter gets it."""

import math

import pytest
import torch
from test_trainer import arguments
from tiny import examples, model, processor
from transformers import TrainerCallback

from llamarec_lkg import LlamaRecLKGTrainer


class Kept(TrainerCallback):
    def __init__(self):
        self.logs = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.logs.append(dict(logs))


@pytest.fixture
def proc(film_dataset):
    return processor(film_dataset)


def test_the_log_has_the_preferences_the_weights_and_the_gain(proc, film_dataset, tmp_path):
    lists, kept = examples(film_dataset, count=8), Kept()
    args = arguments(tmp_path, num_train_epochs=1, logging_steps=2, eval_strategy="epoch", report_to="none")
    ranker = model(proc, preference_dropout=0.0, user_dropout=0.0)
    trainer = LlamaRecLKGTrainer(ranker, args, lists, lists, proc, callbacks=[kept])
    trainer.train()
    (training,) = [logs for logs in kept.logs if "loss" in logs]
    # nothing is liked more yet
    assert training["preference_entropy"] == pytest.approx(math.log(len(proc.relations)), rel=0.05)
    fusion = ranker.fusion
    weights = {name: value for name, value in training.items() if name.startswith("weight_")}
    assert weights == {
        "weight_language_model": pytest.approx(fusion.lm_scale.item()),
        "weight_retriever": pytest.approx(fusion.retrieval_weight.item()),
        "weight_evidence": pytest.approx(fusion.evidence_weight.item()),
        "weight_recent": pytest.approx(fusion.recent_weight.mean().item()),
        "weight_popularity": pytest.approx(fusion.popularity_weight.item()),
    }
    (evaluated,) = [logs for logs in kept.logs if "eval_loss" in logs]
    for metric in ("ndcg@10", "recall@1"):
        gain = evaluated[f"eval_{metric}"] - evaluated[f"eval_retriever_{metric}"]
        assert evaluated[f"eval_gain_{metric}"] == pytest.approx(gain)


def test_entropy_is_of_the_lists_since_the_last_log(proc, film_dataset, tmp_path):
    lists, kept = examples(film_dataset, count=8), Kept()
    args = arguments(tmp_path, num_train_epochs=1, learning_rate=0, heads_learning_rate=0, report_to="none")
    ranker = model(proc, preference_dropout=0.0, user_dropout=0.0)
    with torch.no_grad():
        ranker.preference.bias.copy_(torch.arange(len(proc.relations)).float())
    LlamaRecLKGTrainer(ranker, args, lists, None, proc, callbacks=[kept]).train()
    share = torch.arange(len(proc.relations)).float().softmax(0)
    expected = -(share * share.log()).sum().item()
    assert [logs["preference_entropy"] for logs in kept.logs if "loss" in logs] == [pytest.approx(expected, 1e-4)] * 2


def test_reporters_get_it_as_from_any_trainer(proc, film_dataset, tmp_path, monkeypatch):
    """TensorBoard and trackio write to folders; Weights & Biases is the same callback, to a server of its own."""
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
    lists = examples(film_dataset, count=8)
    args = arguments(tmp_path / "run", eval_strategy="epoch", report_to="tensorboard")
    LlamaRecLKGTrainer(model(proc), args, lists, lists, proc).train()
    (events,) = (tmp_path / "board").rglob("events.out.*")
    read = event_accumulator.EventAccumulator(str(events)).Reload()
    wanted = {"train/preference_entropy", "train/weight_retriever", "eval/gain_ndcg@10", "train/loss"}
    assert wanted <= set(read.Tags()["scalars"])
    assert len(read.Scalars("train/preference_entropy")) == 4
