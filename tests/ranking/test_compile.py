"""Compiled rankers: the same scores and losses, and no graph for each length of a batch."""

import pytest
import torch
from peft import LoraConfig
from tiny import LORA, backbone, examples, processor
from torch._dynamo.utils import counters

from llamarec_lkg import LlamaRecLKGForRanking, LlamaRecLKGTrainer, LlamaRecLKGTrainingArguments
from llamarec_lkg.utils.errors import LKGError


@pytest.fixture(autouse=True)
def nothing_compiled_before():
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()


def ranker_of(proc, **config):
    return LlamaRecLKGForRanking.from_backbone(backbone(num_hidden_layers=10), proc.model_config(**config))


@pytest.mark.parametrize(
    "prompt, config",
    [
        ({}, {}),
        ({}, {"candidates_per_pass": 2}),
        ({"readout": "letters"}, {}),
        ({}, {"path_gate": "straight_through"}),
    ],
)
def test_scores_and_losses_are_the_same_and_layers_share_what_was_compiled(film_dataset, prompt, config):
    lists = examples(film_dataset, count=9)
    proc = processor(film_dataset, **prompt).fit(lists)
    ranker = ranker_of(proc, **config)
    batches = [proc(lists[first:end]) for first, end in ((0, 3), (3, 5), (5, 9), (1, 7))]

    def losses():
        torch.manual_seed(0)  # of dropout
        return [ranker.train()(**batch).loss for batch in batches]

    scores, before = [ranker.score(batch) for batch in batches], losses()
    ranker.compile(backend="eager")
    for batch, expected in zip(batches, scores, strict=True):
        torch.testing.assert_close(ranker.score(batch), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(losses(), before, rtol=1e-4, atol=1e-4)
    # of ten layers and of any length: for scores and, of the first layer and of the others, for gradients
    assert 2 <= counters["stats"]["unique_graphs"] <= 4 and not counters["graph_break"]


def test_torch_compile_of_the_whole_compiles_the_layers(film_dataset, monkeypatch):
    proc = processor(film_dataset).fit(examples(film_dataset))
    ranker, batch = ranker_of(proc), proc(examples(film_dataset))
    expected = ranker(**batch).logits
    own = LlamaRecLKGForRanking.compile
    monkeypatch.setattr(LlamaRecLKGForRanking, "compile", lambda ranker: own(ranker, backend="eager"))
    torch.testing.assert_close(torch.compile(ranker)(**batch).logits, expected, rtol=1e-4, atol=1e-4)
    assert ranker.compiled and 1 <= counters["stats"]["unique_graphs"] <= 2


def test_the_trainers_switch(film_dataset, tmp_path):
    proc, lists = processor(film_dataset), examples(film_dataset, count=8)
    switch = {"torch_compile": True, "torch_compile_backend": "eager", "heads_warm_up_epochs": 0, "use_cpu": True}
    args = LlamaRecLKGTrainingArguments(
        str(tmp_path), **switch, max_steps=3, per_device_train_batch_size=3, learning_rate=0.1, report_to=[]
    )
    proc.fit(lists)
    ranker, given = ranker_of(proc), {"args": args, "train_dataset": lists, "processing_class": proc}
    trainer = LlamaRecLKGTrainer(model=ranker, peft_config=LoraConfig(**LORA), eval_dataset=lists, **given)
    before = ranker.score(proc(lists))
    trainer.train()
    trained = ranker.score(proc(lists))
    assert trainer.evaluate()["eval_loss"] > 0 and not torch.allclose(trained, before)
    assert 1 <= counters["stats"]["unique_graphs"] <= 8
    trainer.save_model()
    again = LlamaRecLKGForRanking.from_pretrained(tmp_path, backbone=backbone(num_hidden_layers=10))
    torch.testing.assert_close(again.score(proc(lists)), trained, rtol=1e-4, atol=1e-4)
    with pytest.raises(LKGError, match="'torch_compile'. are about the language model"):
        silent = LlamaRecLKGForRanking(proc.model_config(use_language_model=False))
        LlamaRecLKGTrainer(model=silent, **given)
