"""What transformers and datasets promise: each argument of the Trainer and each kind of data set works, or is refused
by the library itself."""

import itertools
import logging
from dataclasses import replace

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from peft import LoraConfig
from tiny import LORA, examples, model, processor
from torch.utils.data import ConcatDataset, IterableDataset, Subset, TensorDataset
from transformers import TrainingArguments

from llamarec_lkg import LKGError, LlamaRecLKGForRanking, LlamaRecLKGTrainer, LlamaRecLKGTrainingArguments
from llamarec_lkg.data.examples import as_examples
from llamarec_lkg.evaluation.metrics import mean_metrics, target_ranks
from llamarec_lkg.hub.model_card import ModelCard
from llamarec_lkg.retrieval.candidates import to_dataset, with_features
from llamarec_lkg.training.warm_up import heads_batch


def arguments(folder, **settings):
    defaults = {
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 3,  # the last batch is a shorter one
        "max_steps": 2,
        "heads_warm_up_epochs": 1,
        "use_cpu": True,
        "disable_tqdm": True,
        "logging_steps": 1,
        "save_strategy": "no",
        "eval_strategy": "steps",
        "eval_steps": 2,
    }
    return LlamaRecLKGTrainingArguments(str(folder), **{**defaults, **settings})


@pytest.fixture
def proc(film_dataset):
    return processor(film_dataset)


@pytest.fixture
def lists(film_dataset):
    """Eight lists, every second with two candidates."""
    found = examples(film_dataset, count=8)
    for row in range(1, 8, 2):
        one = found[row]
        other = 0 if one.label else 1
        kept = np.array([one.label, other])
        found[row] = replace(
            one, candidates=one.candidates[kept], retrieval_scores=one.retrieval_scores[kept], label=0
        )
    return found


class Numbered(torch.utils.data.Dataset):
    """Rows by number alone, round and round: nothing raises an IndexError."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, number):
        assert isinstance(number, int)
        return self.rows[number % len(self.rows)]


class Stream(IterableDataset):
    def __init__(self, rows):
        self.rows = rows

    def __iter__(self):
        return iter(self.rows)


def rows_of(lists):
    return [dict(row) for row in to_dataset(lists)]


# -- kinds of data set ----------------------------------------------------------------------------------------------

KINDS = {
    "list": list,
    "tuple": tuple,
    "rows": rows_of,
    "Dataset": to_dataset,
    "Dataset, numpy": lambda lists: to_dataset(lists).with_format("numpy"),
    "Dataset, torch": lambda lists: to_dataset(lists).with_format("torch"),
    "Dataset, selected": lambda lists: to_dataset([*lists, *lists]).select(range(8)),
    "Dataset, from_list": lambda lists: datasets.Dataset.from_list(rows_of(lists)),
    "Dataset, from_pandas": lambda lists: datasets.Dataset.from_pandas(pd.DataFrame(rows_of(lists))),
    "rows of pandas": lambda lists: pd.DataFrame(rows_of(lists)).to_dict("records"),
    "Subset of a list": lambda lists: Subset(lists, list(range(8))),
    "Subset of a Dataset": lambda lists: Subset(to_dataset(lists), list(range(8))),
    "map-style": Numbered,
    "ConcatDataset": lambda lists: ConcatDataset([Numbered(lists[:3]), Numbered(lists[3:])]),
    "IterableDataset": Stream,
    "datasets.IterableDataset": lambda lists: to_dataset(lists).to_iterable_dataset(),
    "generator": iter,
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_data_set_trains_warms_up_evaluates_and_predicts_alike(proc, lists, tmp_path, kind):
    make = KINDS[kind]
    trainer = LlamaRecLKGTrainer(model(proc), arguments(tmp_path), make(lists), make(lists), proc)
    trainer.train()
    assert trainer.evaluate(make(lists))["eval_loss"] == pytest.approx(trainer.evaluate(lists)["eval_loss"])
    assert trainer.predict(make(lists)).predictions == pytest.approx(trainer.predict(lists).predictions)
    for read in (trainer.train_dataset, trainer.eval_dataset):
        assert [one.candidates.tolist() for one in read] == [one.candidates.tolist() for one in lists]
        assert [(one.user, one.label) for one in read] == [(one.user, one.label) for one in lists]


REFUSED = {
    "text": (lambda lists: "user/films", r"is 'user/films'; it needs a data set.*load_dataset", list),
    "nothing": (lambda lists: 7, "is 7; it needs a data set", list),
    "columns": (lambda lists: to_dataset(lists).to_dict(), r"dictionary.*Dataset\.from_dict", to_dataset),
    "DataFrame": (
        lambda lists: pd.DataFrame(rows_of(lists)), r"Row 0 of \w+ is 'user', a str.*Dataset\.from_pandas\(table\)",
        lambda lists: datasets.Dataset.from_pandas(pd.DataFrame(rows_of(lists))),
    ),
    "format": (
        lambda lists: to_dataset(lists).with_format("arrow"), r"Row 0 of \w+ is .*a Table.*with_format\(None\)",
        lambda lists: to_dataset(lists).with_format("arrow").with_format(None),
    ),
    "tensors": (lambda lists: TensorDataset(torch.zeros(4, 2)), r"Row 0 of \w+ is .*a tuple", list),
    "batches": (
        lambda lists: torch.utils.data.DataLoader(rows_of(lists[::2]), batch_size=2, collate_fn=lambda two: two),
        r"Row 0 of \w+ is .*a list", list,
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_other_kinds_are_refused_wherever_they_are_given_and_the_remedy_helps(proc, lists, tmp_path, kind):
    make, message, remedy = REFUSED[kind]
    ranker, args = model(proc), arguments(tmp_path)
    trainer = LlamaRecLKGTrainer(ranker, args, remedy(lists), remedy(lists), proc)
    for refused in (
        lambda given: LlamaRecLKGTrainer(ranker, args, given, lists, proc),
        lambda given: LlamaRecLKGTrainer(ranker, args, lists, given, proc),
        trainer.evaluate,
        trainer.predict,
        lambda given: heads_batch(proc, given, progress=False),
        proc,
    ):
        with pytest.raises(LKGError, match=message):
            refused(make(lists))
    assert trainer.evaluate(remedy(lists))["eval_loss"] > 0


def test_a_stream_gives_as_many_rows_as_training_needs_and_without_max_steps_it_is_refused(proc, lists, tmp_path):
    endless = Stream(itertools.cycle(lists))
    settings = {"gradient_accumulation_steps": 2, "eval_strategy": "no"}
    trainer = LlamaRecLKGTrainer(model(proc), arguments(tmp_path, **settings), endless, None, proc)
    assert len(trainer.train_dataset) == 2 * 2 * 4
    trainer.train()
    assert trainer.state.global_step == 2
    args = arguments(tmp_path, max_steps=-1, num_train_epochs=1, eval_strategy="no")
    with pytest.raises(LKGError, match=r"stream \(Stream\) without a length.*Set max_steps.*list\(dataset\)"):
        LlamaRecLKGTrainer(model(proc), args, endless, None, proc)
    LlamaRecLKGTrainer(model(proc), args, list(Stream(lists)), None, proc).train()


def test_nothing_to_train_on_evaluate_or_predict_is_said(proc, lists, tmp_path):
    for nothing in (None, []):
        trainer = LlamaRecLKGTrainer(model(proc), arguments(tmp_path, eval_strategy="no"), nothing, None, proc)
        with pytest.raises(LKGError, match="no lists to train on.*train_dataset"):
            trainer.train()
    with pytest.raises(LKGError, match="eval_dataset is None; it needs a data set"):
        trainer.evaluate()
    with pytest.raises(LKGError, match="No target is retrieved in 0 lists"):
        trainer.evaluate([])
    with pytest.raises(LKGError, match="test_dataset has no rows"):
        trainer.predict([])
    with pytest.raises(LKGError, match="no list to make a batch of"):
        proc([])


# -- rows -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lacking", ["user", "ratings", "retrieval_scores"])
@pytest.mark.parametrize("order", [1, -1])
def test_what_from_list_fills_with_none_is_not_given(proc, lists, tmp_path, lacking, order):
    rows = rows_of(lists[:2])
    del rows[0][lacking]
    table = datasets.Dataset.from_list(rows[::order])
    assert all(row[lacking] is None for row in table if lacking in row and row["history"] == rows[0]["history"])
    trainer = LlamaRecLKGTrainer(model(proc), arguments(tmp_path), table, table, proc)
    trainer.train()
    left_out = [{name: value for name, value in row.items() if value is not None} for row in table]
    for name, values in proc(table, with_prompt=False).items():
        torch.testing.assert_close(values, proc(left_out, with_prompt=False)[name])


def test_a_training_row_without_a_label_is_refused_by_its_number(proc, lists, tmp_path):
    rows = rows_of(lists)
    for absent in (None, -1, float("nan")):
        rows[5]["label"] = absent
        with pytest.raises(LKGError, match=r"1 of 8 training rows have no target .*no label, or -1.*first is row 5"):
            LlamaRecLKGTrainer(model(proc), arguments(tmp_path), rows, None, proc)
    del rows[5]["label"]
    with pytest.raises(LKGError, match="first is row 5"):
        LlamaRecLKGTrainer(model(proc), arguments(tmp_path), Numbered(rows), None, proc)
    kept = [row for row in rows if row.get("label") is not None]
    trainer = LlamaRecLKGTrainer(model(proc), arguments(tmp_path), kept, rows, proc)
    trainer.train()
    assert trainer.predict(rows).predictions.shape[0] == 8, "for prediction and evaluation it is a miss"


@pytest.mark.parametrize("field", ["history", "candidates", "user", "label"])
def test_text_is_never_a_dense_id_and_the_processor_makes_examples_of_raw_ids(proc, lists, tmp_path, field):
    rows = rows_of(lists)
    value = rows[2][field]
    rows[2][field] = [str(item) for item in value] if isinstance(value, list) else str(value)
    ranker, args = model(proc), arguments(tmp_path)
    trainer = LlamaRecLKGTrainer(ranker, args, lists, lists, proc)
    for given in (
        lambda rows: LlamaRecLKGTrainer(ranker, args, rows, lists, proc),
        trainer.evaluate,
        trainer.predict,
        lambda rows: heads_batch(proc, rows, progress=False),
        proc.fit,
        proc,
    ):
        with pytest.raises(LKGError, match=rf"Row 2 of \w+: '{field}' is .*text.*dense numbers.*processor\.example\("):
            given(rows)
    for number in (0, 2, 4):
        one = lists[number]
        raw = [[proc.item_ids[item - 1] for item in items] for items in (one.history, one.candidates)]
        rows[number] = proc.example(*raw, user=proc.user_ids[one.user - 1], label=raw[1][one.label])
        assert rows[number].candidates.tolist() == one.candidates.tolist() and rows[number].label == one.label
    assert trainer.evaluate(rows)["eval_loss"] > 0


@pytest.mark.parametrize("name", ["evidence", "recent_evidence", "popularity"])
def test_features_of_other_candidates_than_the_rows_are_refused(proc, lists, name):
    index = proc.fit(lists).evidence_index
    rows = rows_of(with_features(lists, index, log_counts=proc.log_counts, progress=False))
    rows[1][name] = rows[0][name]
    with pytest.raises(LKGError, match=rf"carries {name} of shape \(5,.*2 candidates.*or leave it out"):
        proc(rows)
    rows[1][name] = None
    assert proc(rows)[name].isfinite().all()


# -- several validation sets ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["list", "Dataset", "map-style", "datasets.IterableDataset"])
def test_a_dictionary_may_hold_any_kind_of_data_set(proc, lists, tmp_path, kind):
    parts = {name: KINDS[kind](part) for name, part in {"warm": lists[:4], "cold": lists[4:]}.items()}
    given = datasets.DatasetDict(parts) if kind == "Dataset" else parts
    trainer = LlamaRecLKGTrainer(model(proc), arguments(tmp_path, max_steps=1), None, given, proc)
    metrics = trainer.evaluate()
    assert metrics["eval_warm_loss"] == pytest.approx(trainer.evaluate(lists[:4])["eval_loss"])
    assert {"eval_warm_ndcg@10", "eval_cold_ndcg@10", "eval_cold_retriever_ndcg@10"} <= metrics.keys()


def test_several_validation_sets_give_the_metrics_of_each_by_name_and_the_first_chooses(
    proc, lists, tmp_path, caplog, capsys
):
    missed = replace(lists[7], label=-1)
    parts = {"warm": lists[:5], "cold": [*lists[5:7], missed]}
    args = arguments(
        tmp_path, max_steps=3, eval_steps=1, save_strategy="steps", save_steps=1, load_best_model_at_end=True,
        save_total_limit=1, heads_learning_rate=3.0, disable_tqdm=False, dataloader_num_workers=1,
        dataloader_persistent_workers=True,
    )  # fmt: skip
    trainer = LlamaRecLKGTrainer(model(proc), args, to_dataset(lists), parts, proc, LoraConfig(**LORA))
    trainer.train()
    log = trainer.state.log_history
    losses = {name: [e[name] for e in log if name in e] for name in ("eval_warm_loss", "eval_cold_loss")}
    assert [len(found) for found in losses.values()] == [3, 3]
    assert trainer.state.best_metric == pytest.approx(min(losses["eval_warm_loss"]))
    assert "early stopping is disabled" not in caplog.text
    shown = [line for line in capsys.readouterr().out.splitlines() if "eval_cold_loss" in line]
    assert shown and all("eval_cold_ndcg@10" in line and line.count("@") == 3 for line in shown)
    assert args.metric_for_best_model == "eval_loss", "whoever gave it may use it again"

    metrics = trainer.evaluate()
    for name, part in parts.items():
        alone = trainer.evaluate(part)
        for metric in ("loss", "ndcg@10", "retriever_ndcg@10"):
            assert metrics[f"eval_{name}_{metric}"] == pytest.approx(alone[f"eval_{metric}"], rel=1e-5)
        assert trainer.evaluate(name)["eval_loss"] == pytest.approx(alone["eval_loss"])
        assert trainer.evaluate({"new": part})["eval_new_loss"] == pytest.approx(alone["eval_loss"])
    found = trainer.evaluate(metric_key_prefix="last")
    assert "last_cold_ndcg@10" in found
    assert ModelCard.from_trainer(trainer).metrics.keys() >= {"warm_ndcg@10", "cold_ndcg@10"}
    with pytest.raises(LKGError, match=r"no 'hot'; it has \['warm', 'cold'\]"):
        trainer.evaluate("hot")


@pytest.mark.parametrize(
    "given, chosen",
    [("eval_loss", "eval_warm_loss"), ("ndcg@10", "eval_warm_ndcg@10"), ("eval_cold_loss", "eval_cold_loss"),
     ("cold_ndcg@10", "cold_ndcg@10"), ("warm_2_loss", "warm_2_loss")],
)  # fmt: skip
def test_the_best_checkpoint_is_chosen_by_a_metric_that_there_is(proc, lists, tmp_path, given, chosen):
    args = arguments(tmp_path, metric_for_best_model=given, load_best_model_at_end=True, save_strategy="best")
    parts = {"warm": lists[:4], "cold": lists[4:6], "warm_2": lists[6:]}
    trainer = LlamaRecLKGTrainer(model(proc), args, lists, parts, proc)
    trainer.train()
    assert trainer.args.metric_for_best_model == chosen and trainer.state.best_metric is not None
    assert trainer.args.greater_is_better == chosen.endswith("@10")


def test_the_warm_up_chooses_by_the_first_validation_set(proc, lists, tmp_path):
    rates = {"heads_warm_up_epochs": 4, "heads_warm_up_learning_rate": 0.1}
    logs = []
    for validation in ({"warm": lists[:4], "cold": lists[4:]}, lists[:4], {"cold": lists[4:]}):
        trainer = LlamaRecLKGTrainer(model(proc), arguments(tmp_path, **rates), lists, validation, proc)
        logs.append([record["eval_loss"] for record in trainer.warm_up_heads()])
    assert logs[0] == pytest.approx(logs[1]) and logs[0] != pytest.approx(logs[2])


def test_what_is_no_dictionary_of_validation_sets_is_refused(proc, lists, tmp_path):
    for wrong, message in (
        ({}, "dictionary without a data set"),
        ({"warm": {"cold": lists}}, r"eval_dataset\['warm'\] is a dictionary with \['cold'\].*Give one of them"),
        ({"warm": lists, "cold": "cold.json"}, r"eval_dataset\['cold'\] is 'cold.json'"),
    ):
        with pytest.raises(LKGError, match=message):
            LlamaRecLKGTrainer(model(proc), arguments(tmp_path), lists, wrong, proc)
    for given in ("train_dataset", "test_dataset"):
        with pytest.raises(LKGError, match=rf"{given} is a dictionary with \['a', 'b'\].*Give one of them.*eval_"):
            as_examples({"a": lists, "b": lists}, given)
    trainer = LlamaRecLKGTrainer(model(proc), arguments(tmp_path), lists, {"a": lists}, proc)
    with pytest.raises(LKGError, match=r"No target is retrieved in 1 lists \(eval_b\)"):
        trainer.evaluate({"b": [replace(lists[0], label=-1)]})


# -- the Trainer's arguments ----------------------------------------------------------------------------------------

WORK = [
    {"eval_do_concat_batches": False},
    {"eval_do_concat_batches": False, "eval_accumulation_steps": 1},
    {"eval_accumulation_steps": 1},
    {"batch_eval_metrics": True},
    {"batch_eval_metrics": True, "eval_do_concat_batches": False},
    {"include_for_metrics": ["inputs", "loss"]},
    {"dataloader_drop_last": True},
    {"dataloader_num_workers": 1, "dataloader_persistent_workers": True},
    {"label_smoothing_factor": 0.1},
    {"train_sampling_strategy": "sequential"},
    {"train_sampling_strategy": "group_by_length"},
    {"share_histories": 2},
    {"label_names": None},
    {"eval_on_start": True},
    {"eval_use_gather_object": True},
    {"logging_nan_inf_filter": False},
    {"include_num_input_tokens_seen": "all"},
    {"include_num_input_tokens_seen": "non_padding"},
    {"auto_find_batch_size": False, "gradient_accumulation_steps": 2},
    {"lr_scheduler_type": "reduce_lr_on_plateau"},
    {"optim": "adafactor"},
    {"neftune_noise_alpha": 5.0},
    {"full_determinism": False, "data_seed": 4},
    {"bf16": True},
    {"average_tokens_across_devices": False},
    {"torch_empty_cache_steps": 1},
    {"max_steps": -1, "num_train_epochs": 1, "eval_strategy": "epoch"},
    {"save_strategy": "best", "load_best_model_at_end": True, "metric_for_best_model": "ndcg@10"},
]


@pytest.mark.parametrize("settings", WORK, ids=str)
def test_these_arguments_work_and_evaluate_every_list(proc, lists, tmp_path, settings):
    missed = replace(lists[0], label=-1)
    trainer = LlamaRecLKGTrainer(
        model(proc), arguments(tmp_path, **settings), lists, [*lists, missed], proc, LoraConfig(**LORA)
    )
    trainer.train()
    log = trainer.state.log_history
    assert all(np.isfinite(entry["loss"]) and entry["loss"] > 0 for entry in log if "loss" in entry)
    metrics = trainer.evaluate()
    with torch.no_grad():
        scores = trainer.model.eval()(**proc(lists)).logits.float().numpy()
    expected = mean_metrics(target_ranks(scores, np.array([one.label for one in lists])))
    if not settings.get("bf16"):  # at another precision near ties may turn
        assert metrics["eval_ndcg@10"] == pytest.approx(expected["ndcg@10"] * 8 / 9, rel=1e-4)
    assert "eval_retriever_ndcg@10" in metrics and np.isfinite(metrics["eval_loss"])
    other = trainer.evaluate(lists[:3])
    alone = mean_metrics(target_ranks(scores[:3], np.array([one.label for one in lists[:3]])))
    assert other["eval_ndcg@10"] == pytest.approx(alone["ndcg@10"], rel=1e-4) or settings.get("bf16")
    predicted = trainer.predict(lists).predictions
    if not isinstance(predicted, list):
        assert len(predicted) == 8


def test_the_loss_alone_may_be_asked_for(proc, lists, tmp_path):
    trainer = LlamaRecLKGTrainer(model(proc), arguments(tmp_path, prediction_loss_only=True), lists, lists, proc)
    assert trainer.evaluate().keys() >= {"eval_loss"}


@pytest.mark.parametrize(
    "settings, message, remedy",
    [
        ({"remove_unused_columns": True}, "needs every column. Give False", {"remove_unused_columns": False}),
        ({"label_names": ["label"]}, r"label_names=\['label'\].*Give \['labels'\]", {"label_names": ["labels"]}),
        ({"train_sampling_strategy": "batch_rebalance"}, "'batch_rebalance' .*column of lengths.*or 'group_by_length'",
         {"train_sampling_strategy": "group_by_length"}),
        ({"bf16_full_eval": True}, "bf16_full_eval=True.*stay in float32; bf16=True", {"bf16": True}),
        ({"fp16_full_eval": True}, "fp16_full_eval=True.*stay in float32; bf16=True", {"bf16": True}),
        ({"debug": "underflow_overflow"}, r"debug=.*a batch has masks.*Give \[\]", {"debug": []}),
        ({"share_histories": 2, "train_sampling_strategy": "sequential"},
         "share_histories=2 orders the lists.*'sequential' would, too. Leave one of them out", {"share_histories": 2}),
    ],
)  # fmt: skip
def test_these_arguments_are_refused_with_a_remedy(proc, lists, tmp_path, settings, message, remedy):
    with pytest.raises(LKGError, match=message):
        arguments(tmp_path, **settings)
    LlamaRecLKGTrainer(model(proc), arguments(tmp_path, **remedy), lists, lists, proc).train()


@pytest.mark.parametrize(
    "settings", [{"neftune_noise_alpha": 5.0}, {"activation_checkpointing": True}, {"include_for_metrics": ["inputs"]}]
)
def test_what_is_about_the_language_model_is_refused_where_there_is_none(proc, lists, tmp_path, settings):
    ranker = LlamaRecLKGForRanking(proc.model_config(use_language_model=False))
    with pytest.raises(LKGError, match=f"{next(iter(settings))}.* are about the language model.*Leave them out"):
        LlamaRecLKGTrainer(ranker, arguments(tmp_path, **settings), lists, lists, proc)
    LlamaRecLKGTrainer(ranker, arguments(tmp_path), lists, lists, proc).train()


def test_a_metric_that_evaluation_does_not_give_is_refused_before_training(proc, lists, tmp_path):
    ranker, args = model(proc), arguments(tmp_path, metric_for_best_model="accuracy")
    with pytest.raises(LKGError, match=r"'accuracy' is none that evaluation gives.*'ndcg@10'.*'retriever_mrr@1'"):
        LlamaRecLKGTrainer(ranker, args, lists, lists, proc)
    args = arguments(tmp_path, metric_for_best_model="cold_accuracy")
    with pytest.raises(LKGError, match=r"'cold_accuracy' is none.*after one of \['warm_', 'cold_'\]"):
        LlamaRecLKGTrainer(ranker, args, lists, {"warm": lists, "cold": lists}, proc)
    args = arguments(tmp_path, metric_for_best_model="accuracy")
    own = {"compute_metrics": lambda prediction: {"accuracy": 0.5}}
    trainer = LlamaRecLKGTrainer(ranker, args, lists, lists, proc, **own)
    trainer.train()
    assert trainer.state.best_metric == 0.5
    args = arguments(tmp_path, metric_for_best_model="ndcg@10")
    LlamaRecLKGTrainer(ranker, args, lists, lists, proc).train()


def test_arguments_of_transformers_itself_are_refused(proc, lists, tmp_path):
    with pytest.raises(LKGError, match="args is TrainingArguments; the trainer needs LlamaRecLKGTrainingArguments"):
        LlamaRecLKGTrainer(model(proc), TrainingArguments(str(tmp_path), use_cpu=True), lists, lists, proc)


@pytest.mark.parametrize("name", ["model_init", "preprocess_logits_for_metrics"])
def test_parts_of_the_trainer_without_a_use_are_refused(proc, lists, tmp_path, name):
    with pytest.raises(LKGError, match=f"{name} has no use here.*Leave it out"):
        LlamaRecLKGTrainer(model(proc), arguments(tmp_path), lists, lists, proc, **{name: lambda *given: given[0]})
    LlamaRecLKGTrainer(model(proc), arguments(tmp_path), lists, lists, proc, **{name: None}).train()


@pytest.mark.parametrize("by_batch", [False, True])
def test_metrics_of_ones_own_stand_beside_the_others(proc, lists, tmp_path, by_batch):
    seen = []

    def count(prediction, compute_result=True):
        seen.append(len(prediction.label_ids))
        return {"lists": float(sum(seen))} if compute_result else {}

    args = arguments(tmp_path, batch_eval_metrics=by_batch)
    metrics = LlamaRecLKGTrainer(model(proc), args, None, lists, proc, compute_metrics=count).evaluate()
    assert metrics["eval_lists"] == 8 and "eval_ndcg@10" in metrics
    assert seen == ([3, 3, 2] if by_batch else [8])


def test_several_outputs_may_be_asked_for(proc, lists, tmp_path):
    trainer = LlamaRecLKGTrainer(model(proc), arguments(tmp_path), None, lists, proc)
    ignored = ["path_scores", "selected_paths", "lm_logits", "lm_scores"]
    asked = trainer.evaluate(ignore_keys=ignored)
    assert asked["eval_ndcg@10"] == pytest.approx(trainer.evaluate()["eval_ndcg@10"])
    scores, preferences = trainer.predict(lists, ignore_keys=ignored).predictions
    assert scores.shape == (8, 5) and preferences.shape == (8, len(proc.relations))


# -- smoothing ------------------------------------------------------------------------------------------------------


def test_labels_are_smoothed_over_the_real_candidates_of_each_list(proc, lists, tmp_path):
    share, ranker = 0.2, model(proc, lm_loss_weight=0.0)
    args = arguments(tmp_path, label_smoothing_factor=share, logging_nan_inf_filter=False)
    trainer = LlamaRecLKGTrainer(ranker, args, lists, lists, proc)
    found = trainer.evaluate()["eval_loss"]
    with torch.no_grad():
        scores = [ranker(**proc([one])).logits[0].log_softmax(-1) for one in lists]
    by_hand = [-(1 - share) * said[one.label] - share * said.mean() for said, one in zip(scores, lists, strict=True)]
    mean = np.average([np.mean(by_hand[:3]), np.mean(by_hand[3:6]), np.mean(by_hand[6:])], weights=[3, 3, 2])
    assert found == pytest.approx(mean, rel=1e-4)

    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 2 and np.isfinite(losses).all() and min(losses) > 0


def test_smoothing_counts_in_the_language_models_own_loss_too_and_leaves_rows_without_a_target_out(proc, lists):
    ranker = model(proc, lm_loss_weight=1.0, user_dropout=0.0, preference_dropout=0.0).train()
    batch = proc([*lists, replace(lists[0], label=-1)])
    plain, smoothed = ranker(**batch).loss, ranker(**batch, smoothing=0.1).loss
    assert torch.isfinite(smoothed) and smoothed != plain
    smoothed.backward()
    assert all(torch.isfinite(p.grad).all() for p in ranker.parameters() if p.grad is not None)
    torch.testing.assert_close(ranker(**proc(lists), smoothing=0.1).loss, smoothed)
    assert ranker(**proc([replace(lists[0], label=-1)]), smoothing=0.1).loss == 0


@pytest.fixture(autouse=True)
def messages_of_the_library(monkeypatch):
    monkeypatch.setattr(logging.getLogger("llamarec_lkg"), "propagate", True)
