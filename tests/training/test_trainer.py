"""The trainer: every weight moves, accumulation is exact, metrics count misses, checkpoints resume, nothing is
pickled away."""

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from tiny import backbone, examples, model, processor, tokenizer

from llamarec_lkg import (
    KnowledgeGraph,
    LKGError,
    LlamaRecLKGConfig,
    LlamaRecLKGForRanking,
    LlamaRecLKGProcessor,
    LlamaRecLKGTrainer,
    LlamaRecLKGTrainingArguments,
)
from llamarec_lkg.evaluation.metrics import mean_metrics, target_ranks
from llamarec_lkg.ranking.scoring import score_heads
from llamarec_lkg.retrieval.candidates import evidence_scale, to_dataset, with_features
from llamarec_lkg.training.warm_up import fit_heads, heads_batch


def lora() -> LoraConfig:
    return LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")


def arguments(folder, **settings):
    defaults = {
        "per_device_train_batch_size": 4,
        "num_train_epochs": 2,
        "heads_warm_up_epochs": 0,
        "use_cpu": True,
        "disable_tqdm": True,
        "logging_steps": 1,
        "save_strategy": "no",
        "seed": 1,
    }
    return LlamaRecLKGTrainingArguments(str(folder), **{**defaults, **settings})


@pytest.fixture
def proc(film_dataset):
    return processor(film_dataset)


@pytest.fixture
def lists(film_dataset):
    return examples(film_dataset, count=8)


def test_every_trainable_parameter_moves_the_preference_modules_included(proc, lists, tmp_path):
    ranker = model(proc, lm_scale=1.0, user_dropout=0.0, preference_dropout=0.0, use_user_embedding=True)
    trainer = LlamaRecLKGTrainer(
        ranker, arguments(tmp_path, num_train_epochs=4), lists, None, proc, peft_config=lora()
    )
    before = {n: p.detach().clone() for n, p in ranker.named_parameters() if p.requires_grad}
    frozen = {n: p.detach().clone() for n, p in ranker.named_parameters() if not p.requires_grad}
    trainer.train()
    after = dict(ranker.named_parameters())
    still = [name for name, value in before.items() if torch.equal(value, after[name])]
    assert not still
    assert any("preference.user_embedding" in name for name in before) and any("lora" in name for name in before)
    assert all(torch.equal(value, after[name]) for name, value in frozen.items())


def test_gradient_accumulation_gives_the_update_of_one_big_batch(proc, lists, tmp_path):
    weights = []
    for batch_size, accumulation in ((8, 1), (2, 4)):
        ranker = model(proc, user_dropout=0.0, preference_dropout=0.0)
        args = arguments(
            tmp_path,
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=accumulation,
            max_steps=1,
            optim="sgd",
            learning_rate=1.0,
            heads_learning_rate=1.0,
            warmup_steps=0,
            max_grad_norm=1e9,
        )
        LlamaRecLKGTrainer(ranker, args, lists, None, proc).train()
        weights.append({n: p.detach() for n, p in ranker.named_parameters()})
    moved = 0.0
    start = dict(model(proc).named_parameters())
    for name, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][name], rtol=1e-3, atol=1e-5)
        moved += (value - start[name]).abs().sum().item()
    assert moved > 0.1


@pytest.mark.parametrize("ratio", [1.0, 16.0])
def test_preferences_and_fusion_have_their_own_learning_rate_and_so_has_lora_plus(proc, lists, tmp_path, ratio):
    ranker, args = model(proc), arguments(tmp_path, heads_learning_rate=0.07, lora_plus_ratio=ratio)
    trainer = LlamaRecLKGTrainer(ranker, args, lists, None, proc, lora())
    for _ in range(2):  # the second time, as after a checkpoint is loaded, it stays
        groups = trainer.create_optimizer().param_groups
        rates = {id(p): group["lr"] for group in groups for p in group["params"]}
        for name, parameter in ranker.named_parameters():
            if parameter.requires_grad:
                expected = 1e-4 if "lora_A" in name else 1e-4 * ratio if "lora_B" in name else 0.07
                assert rates[id(parameter)] == pytest.approx(expected), name
        assert len(rates) == sum(p.requires_grad for p in ranker.parameters())


def test_a_missed_target_counts_as_zero_and_is_not_run(proc, lists, tmp_path):
    missed = [replace(example, label=-1) for example in lists[:4]]
    trainer = LlamaRecLKGTrainer(model(proc), arguments(tmp_path), None, [*lists, *missed], proc)
    seen = []
    trainer.model.register_forward_hook(
        lambda module, args, kwargs, output: seen.append(len(kwargs["labels"])), with_kwargs=True
    )
    metrics = trainer.evaluate()
    with torch.no_grad():
        logits = trainer.model(**proc(lists)).logits.numpy()
    expected = mean_metrics(target_ranks(logits, np.array([example.label for example in lists])))
    assert sum(seen) - len(lists) == len(lists)  # once by the trainer, once by this test
    assert metrics["eval_ndcg@10"] == pytest.approx(expected["ndcg@10"] * 8 / 12, rel=1e-5)
    first_stage = target_ranks(np.stack([e.retrieval_scores for e in lists]), np.array([e.label for e in lists]))
    assert metrics["eval_retriever_recall@1"] == pytest.approx(float((first_stage == 1).mean()) * 8 / 12)


def test_the_terminal_shows_few_metrics_and_the_log_has_all(proc, lists, tmp_path, capsys):
    args = arguments(tmp_path, max_steps=1, disable_tqdm=False, eval_strategy="steps", eval_steps=1)
    trainer = LlamaRecLKGTrainer(model(proc), args, lists, lists, proc)
    trainer.train()
    (shown,) = [line for line in capsys.readouterr().out.splitlines() if "eval_loss" in line]
    assert "'eval_ndcg@10'" in shown and "'eval_retriever_ndcg@10'" in shown and shown.count("@") == 3
    record = next(record for record in trainer.state.log_history if "eval_loss" in record)
    assert {"eval_recall@1", "eval_mrr@5", "eval_retriever_recall@10"} <= record.keys()


def test_evaluation_with_nothing_retrieved_says_so(proc, lists, tmp_path):
    trainer = LlamaRecLKGTrainer(model(proc), arguments(tmp_path), None, to_dataset(lists), proc)
    with pytest.raises(LKGError, match="nothing to re-rank"):
        trainer.evaluate([replace(example, label=-1) for example in lists])


@pytest.mark.parametrize("sharing", [1, 2])
def test_best_model_is_loaded_and_a_stopped_run_resumes_to_the_same_weights(proc, lists, tmp_path, sharing):
    settings = {
        "share_histories": sharing,
        "max_steps": 6,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "save_strategy": "steps",
        "save_steps": 2,
        "heads_learning_rate": 0.05,
    }

    def run(folder, **extra):
        ranker = model(proc, user_dropout=0.0, preference_dropout=0.0)
        args = arguments(folder, **{**settings, **extra})
        return LlamaRecLKGTrainer(ranker, args, lists, lists, proc, peft_config=lora())

    whole = run(tmp_path / "whole")
    whole.train()
    resumed = run(tmp_path / "resumed")
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))
    for (name, first), second in zip(
        whole.model.named_parameters(), dict(resumed.model.named_parameters()).values(), strict=True
    ):
        torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-6, msg=name)

    best = run(tmp_path / "best", load_best_model_at_end=True, heads_learning_rate=3.0)
    best.train()
    losses = {h["step"]: h["eval_loss"] for h in best.state.log_history if "eval_loss" in h}
    assert best.evaluate()["eval_loss"] == pytest.approx(min(losses.values()), rel=1e-4)
    assert len(set(losses.values())) > 1


@pytest.mark.parametrize("kind", ["new adapter", "saved adapter", "saved heads", "new backbone"])
def test_weights_that_stay_as_they_are_may_be_half_as_wide_and_no_others(proc, lists, tmp_path, kind):
    backbone().save_pretrained(tmp_path / "base")
    ranker = LlamaRecLKGForRanking.from_backbone(str(tmp_path / "base"), proc.model_config())
    ranker.save_pretrained(tmp_path / "saved heads", include_backbone=False)
    ranker.add_adapter(lora())
    ranker.save_pretrained(tmp_path / "saved adapter")
    place = str(tmp_path / (kind if kind.startswith("saved") else "base"))
    peft_config = lora() if kind == "new adapter" else None
    trainer = LlamaRecLKGTrainer(place, arguments(tmp_path, bf16=True), lists, None, proc, peft_config=peft_config)
    widths = {name: p.dtype for name, p in trainer.model.named_parameters()}
    trained = {name for name, p in trainer.model.named_parameters() if p.requires_grad}
    assert {widths[name] for name in trained} == {torch.float32}
    if kind.endswith("adapter"):
        assert {widths[n] for n in widths if n.startswith("language_model") and n not in trained} == {torch.bfloat16}
        assert any("lora_B" in name for name in trained)
        trainer.train()


@pytest.mark.parametrize("start", ["new", "saved"])
def test_the_adapter_moves_with_activation_checkpointing_whether_new_or_saved(proc, lists, tmp_path, start):
    backbone().save_pretrained(tmp_path / "base")
    place, peft_config = str(tmp_path / "base"), lora()
    if start == "saved":
        ranker = LlamaRecLKGForRanking.from_backbone(place, proc.model_config())
        ranker.add_adapter(lora())
        ranker.save_pretrained(tmp_path / "saved")
        place, peft_config = str(tmp_path / "saved"), None
    # the readout moves first, then what it reads through B, then through A
    args = arguments(tmp_path, max_steps=3, learning_rate=1e-2, warmup_steps=0, activation_checkpointing=True)
    trainer = LlamaRecLKGTrainer(place, args, lists, None, proc, peft_config=peft_config)
    before = {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}
    assert trainer.model.get_input_embeddings()(torch.tensor([[1]])).requires_grad, "for reentrant kinds, too"
    trainer.train()
    still = [n for n, p in trainer.model.named_parameters() if n in before and torch.equal(p, before[n])]
    assert any("lora_A" in name for name in before) and not [name for name in still if "lora" in name]


@pytest.mark.parametrize("prefix", ["activation", "gradient"])
def test_reentrant_checkpointing_is_refused_with_the_reason(tmp_path, prefix):
    kind = {f"{prefix}_checkpointing_kwargs": {"use_reentrant": True}}
    with pytest.raises(LKGError, match="use_reentrant=True; use False.*gate every layer"):
        arguments(tmp_path, **{f"{prefix}_checkpointing": True}, **kind)
    arguments(tmp_path, **kind)
    arguments(tmp_path, activation_checkpointing=True, activation_checkpointing_kwargs={"use_reentrant": False})


def test_processor_without_scale_is_fitted_on_the_training_lists(proc, lists, tmp_path):
    assert proc.evidence_scale is None
    ranker, carried = model(proc), with_features(lists, proc.evidence_index, progress=False)
    with pytest.raises(LKGError, match="carry evidence, but the processor has no scale"):
        LlamaRecLKGTrainer(ranker, arguments(tmp_path), carried, None, proc)
    LlamaRecLKGTrainer(ranker, arguments(tmp_path), lists, None, proc)
    assert proc.evidence_scale == pytest.approx(evidence_scale(lists, proc.evidence_index).tolist())


def test_features_that_lists_carry_are_used_as_they_are_in_training_and_in_the_warm_up(proc, lists, tmp_path):
    index = proc.fit(lists).evidence_index
    carried = [
        replace(example, evidence=example.evidence + 1, history_relations=example.history_relations + 1)
        for example in with_features(lists, index, log_counts=proc.log_counts, progress=False)
    ]
    for data in (carried, to_dataset(carried)):
        trainer = LlamaRecLKGTrainer(model(proc), arguments(tmp_path, seed=3), data, lists, proc)
        train, evaluation = (
            torch.cat([batch["evidence"] for batch in loader])
            for loader in (trainer.get_train_dataloader(), trainer.get_eval_dataloader())
        )
        assert float((train.sum() - evaluation.sum()) / train.numel()) == pytest.approx(1.0, rel=1e-4)
        batch = heads_batch(proc, trainer.train_dataset, progress=False)
        torch.testing.assert_close(batch["evidence"], evaluation + 1)
        torch.testing.assert_close(
            batch["history_relations"], heads_batch(proc, lists, progress=False)["history_relations"] + 1
        )


def test_popularity_is_known_of_training_lists_and_of_others_or_of_none(proc, lists, film_dataset, tmp_path):
    index = proc.fit(lists).evidence_index
    silent = with_features(lists, index, progress=False)
    with pytest.raises(LKGError, match="8 of 8 lists carry evidence, but no popularity.*log_counts"):
        LlamaRecLKGTrainer(model(proc), arguments(tmp_path), silent, None, proc)
    LlamaRecLKGTrainer(model(proc, use_popularity=False), arguments(tmp_path), silent, None, proc)
    trainer = LlamaRecLKGTrainer(model(proc), arguments(tmp_path), lists, None, proc)
    with pytest.raises(LKGError, match="8 of 8 lists carry evidence, but no popularity"):
        trainer.fit_parts(silent)
    without = processor(film_dataset, item_counts=()).fit(lists)
    carried = with_features(lists, index, log_counts=proc.log_counts, progress=False)
    with pytest.raises(LKGError, match="8 of 8 lists carry popularity, but the processor has no counts.*item_counts"):
        LlamaRecLKGTrainer(model(without), arguments(tmp_path), carried, None, without)
    LlamaRecLKGTrainer(model(without, use_popularity=False), arguments(tmp_path), carried, None, without)


def test_a_data_set_is_read_once_however_often_it_is_evaluated(proc, lists, tmp_path, monkeypatch):
    reads, read = [], Dataset.__iter__
    monkeypatch.setattr(Dataset, "__iter__", lambda self: reads.append(1) or read(self))
    monkeypatch.setattr(Dataset, "__getitem__", lambda self, key: pytest.fail("it is read row by row"))
    trainer = LlamaRecLKGTrainer(model(proc), arguments(tmp_path), None, to_dataset(lists), proc)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(trainer.evaluate()["eval_loss"])
    assert reads == [1]


def test_wrong_inputs_are_refused(proc, lists, tmp_path):
    with pytest.raises(LKGError, match="processing_class is NoneType"):
        LlamaRecLKGTrainer(model(proc), arguments(tmp_path), lists)
    with pytest.raises(LKGError, match="1 of 8 training rows have no target"):
        LlamaRecLKGTrainer(model(proc), arguments(tmp_path), [replace(lists[0], label=-1), *lists[1:]], None, proc)
    other = model(proc)
    other.config.relations = ["SOMETHING_ELSE"]
    with pytest.raises(LKGError, match="was made for the relations"):
        LlamaRecLKGTrainer(other, arguments(tmp_path), lists, None, proc)
    with pytest.raises(ValueError, match="remove_unused_columns"):
        arguments(tmp_path, remove_unused_columns=True)


def test_heads_learn_which_relation_matters_without_the_backbone(proc, film_dataset):
    """Planted: the target is always the candidate with the most evidence along one relation."""
    lists = examples(film_dataset, count=40, seed=3)
    proc.fit(lists)
    batch = heads_batch(proc, lists, progress=False)
    planted = proc.relations.index("GENRE_IS")
    batch["evidence"] = torch.rand(batch["evidence"].shape, generator=torch.Generator().manual_seed(0))
    batch["recent_evidence"] = torch.zeros_like(batch["evidence"])
    batch["labels"] = batch["evidence"][..., planted].argmax(1)
    ranker = model(proc, use_retrieval_scores=False, use_popularity=False)
    untouched = {n: p.clone() for n, p in ranker.named_parameters() if n.startswith("language_model")}
    log = fit_heads(ranker, batch, epochs=60, batch_size=20, learning_rate=0.05, patience=60, progress=False)
    assert log[-1]["loss"] < log[0]["loss"]
    preferences = ranker.preferences({k: batch[k] for k in ("user_ids", "history_relations")})
    assert (preferences.argmax(-1) == planted).all()
    assert (score_heads(ranker, batch).argmax(1) == batch["labels"]).float().mean() > 0.9
    assert all(torch.equal(p, dict(ranker.named_parameters())[n]) for n, p in untouched.items())
    assert ranker.config.use_language_model


def test_the_warm_up_shrinks_ids_whatever_mode_the_model_is_in(proc, film_dataset):
    lists = examples(film_dataset, count=40, seed=3)
    batch = heads_batch(proc.fit(lists), lists, progress=False)
    sizes = []
    for shrinkage, training in ((10.0, True), (10.0, False), (0.0, False)):
        ranker = model(proc, user_shrinkage=shrinkage, use_history_preferences=False, use_user_embedding=True)
        ranker.train(training)
        fit_heads(ranker, batch, epochs=20, batch_size=20, learning_rate=0.05, weight_decay=0.0, progress=False)
        sizes.append(ranker.preference.user_embedding.weight.norm().item())
    assert sizes[0] == pytest.approx(sizes[1]) and sizes[2] > 2 * sizes[0] > 0


def test_heads_keep_their_start_when_training_only_hurts(proc, lists):
    proc.fit(lists)
    ranker = model(proc)
    before = {n: v.clone() for n, v in ranker.own_state_dict().items()}
    train = heads_batch(proc, lists, progress=False)
    validation = {**train, "labels": train["retrieval_scores"].argmax(1)}
    train = {**train, "labels": train["retrieval_scores"].argmin(1)}
    fit_heads(ranker, train, validation, epochs=5, learning_rate=0.1, progress=False)
    assert all(torch.equal(value, ranker.own_state_dict()[name]) for name, value in before.items())


def test_heads_that_come_trained_are_not_warmed_up_again(proc, lists, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("llamarec_lkg"), "propagate", True)
    rates = {"learning_rate": 0.0, "heads_learning_rate": 0.0, "heads_warm_up_learning_rate": 1e-2}
    args = arguments(tmp_path, heads_warm_up_epochs=3, max_steps=1, **rates)
    first = model(proc)
    assert not first.config.heads_trained
    LlamaRecLKGTrainer(first, args, lists, None, proc).warm_up_heads()
    first.save_pretrained(tmp_path / "saved")
    ranker = LlamaRecLKGForRanking.from_pretrained(tmp_path / "saved")
    assert ranker.config.heads_trained
    trainer = LlamaRecLKGTrainer(ranker, args, lists, None, proc)
    before = {name: weight.clone() for name, weight in ranker.own_state_dict().items()}
    trainer.train()
    assert all(torch.equal(weight, before[name]) for name, weight in ranker.own_state_dict().items())
    assert "trained already (`config.heads_trained`): their warm-up is left out" in caplog.text
    trainer.warm_up_heads()
    assert any(not torch.equal(weight, before[name]) for name, weight in ranker.own_state_dict().items())


def test_warm_up_runs_before_training_and_only_there(proc, lists, tmp_path, monkeypatch):
    ranker = model(proc)
    trainer = LlamaRecLKGTrainer(
        ranker, arguments(tmp_path, heads_warm_up_epochs=3, max_steps=1, learning_rate=0.0, heads_learning_rate=1e-2),
        lists, lists, proc,
    )  # fmt: skip
    calls = []
    fit = "llamarec_lkg.training.trainer.fit_heads"
    monkeypatch.setattr(fit, lambda *args, **kwargs: calls.append(kwargs["epochs"]) or [{"epoch": 1}])
    trainer.train()
    assert calls == [3] and trainer.state.global_step == 1
    trainer.train()
    assert calls == [3], "once is enough"
    assert trainer.args.heads_warm_up_epochs == 3, "what is saved says what was done"


def test_paper_configuration_trains_and_its_preferences_stay(film_dataset, lists, tmp_path):
    graph = KnowledgeGraph.from_dataset(film_dataset)
    items = film_dataset.items
    config = LlamaRecLKGConfig.paper(list(graph.relations), film_dataset.num_users, num_candidates=5)
    proc = LlamaRecLKGProcessor.from_config(config, tokenizer(), graph, items.ids, items.titles, film_dataset.user_ids)
    ranker = LlamaRecLKGForRanking.from_backbone(backbone(), config)
    before = {n: p.clone() for n, p in ranker.preference.named_parameters()}
    args = arguments(tmp_path, heads_warm_up_epochs=2, max_steps=2)
    LlamaRecLKGTrainer(ranker, args, lists, lists, proc, peft_config=lora()).train()
    assert all(torch.equal(value, dict(ranker.preference.named_parameters())[name]) for name, value in before.items())


def test_predict_gives_logits_for_every_row_and_no_other_sets_metrics(proc, lists, tmp_path):
    trainer = LlamaRecLKGTrainer(model(proc), arguments(tmp_path), None, lists, proc)
    fresh = trainer.predict(lists)
    assert fresh.predictions.shape == (8, 5) and "test_retriever_ndcg@10" not in fresh.metrics
    trainer.evaluate()
    assert "test_retriever_ndcg@10" not in trainer.predict(lists[::-1]).metrics


def test_a_tied_backbone_trained_whole_resumes(proc, lists, tmp_path):
    def run():
        ranker = LlamaRecLKGForRanking.from_backbone(backbone(tie_word_embeddings=True), proc.model_config())
        args = arguments(tmp_path, max_steps=2, save_strategy="steps", save_steps=1)
        return LlamaRecLKGTrainer(ranker, args, lists, None, proc)

    whole = run()
    whole.train()
    resumed = run()
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    weight = "language_model.model.layers.0.self_attn.q_proj.weight"
    first, second = (dict(trainer.model.named_parameters())[weight] for trainer in (whole, resumed))
    torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-6)


def test_a_step_without_finite_gradients_is_left_out_with_a_word_and_ten_in_a_row_end_the_training(
    proc, lists, tmp_path, caplog
):
    ranker, broken = model(proc, lm_scale=1.0), {3}
    trainer = LlamaRecLKGTrainer(
        ranker, arguments(tmp_path, num_train_epochs=4), lists, None, proc, peft_config=lora()
    )
    weight = next(p for name, p in ranker.named_parameters() if "lora_B" in name)
    steps, seen = [0], []

    def spoil(gradient):
        steps[0] += 1
        seen.append(weight.detach().clone())
        return torch.full_like(gradient, torch.nan) if steps[0] in broken else gradient

    weight.register_hook(spoil)
    with caplog.at_level("WARNING"):
        trainer.train()
    assert "Step 3 is left out" in caplog.text and "(1 so far)" in caplog.text
    assert torch.isfinite(weight).all() and torch.equal(seen[2], seen[3]) and not torch.equal(seen[3], seen[4])
    broken |= set(range(1000))
    trainer = LlamaRecLKGTrainer(ranker, arguments(tmp_path, num_train_epochs=9), lists, None, proc)
    for _ in range(2):  # counted anew each time
        with pytest.raises(LKGError, match="10 steps in a row.*Lower training.learning_rate"):
            trainer.train()
    assert torch.isfinite(weight).all()


def test_lists_are_grouped_by_how_long_their_histories_are(proc, lists, tmp_path):
    short = [replace(example, history=example.history[:1], ratings=example.ratings[:1]) for example in lists]
    mixed = 4 * [example for pair in zip(lists, short, strict=True) for example in pair]
    args = arguments(tmp_path, train_sampling_strategy="group_by_length", per_device_train_batch_size=4)
    trainer = LlamaRecLKGTrainer(model(proc), args, mixed, None, proc)
    lengths = proc.prefix_lengths(mixed)
    assert lengths == [int(proc([example])["prefix_attention_mask"].sum()) for example in mixed]
    order = list(trainer._get_train_sampler())
    assert sorted(order) == list(range(len(mixed)))
    batches = [[lengths[row] for row in order[start : start + 4]] for start in range(0, len(order), 4)]
    as_given = [lengths[start : start + 4] for start in range(0, len(order), 4)]
    spread, before = (sum(max(batch) - min(batch) for batch in some) for some in (batches, as_given))
    assert spread < before / 2
