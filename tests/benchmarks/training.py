"""Training with LoRA beside TRL's SFTTrainer: the same lists, backbone, adapter, batches and precision.

TRL reads each list as a letter prompt in text, with its own defaults of padding and of what it logs; gradient
checkpointing, which it turns on by default, is off on both sides. The lists are the last four of each person, with
histories that begin at the same item (`share_histories`), the same on both sides.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, Trainer, TrainerCallback
from trl import SFTConfig, SFTTrainer

from llamarec_lkg import LlamaRecLKGForRanking, LlamaRecLKGTrainer, LlamaRecLKGTrainingArguments
from llamarec_lkg.data.schema import RankingExample
from llamarec_lkg.training.sampling import share_histories

from . import ranker
from .runner import Figure, alone, benchmark, forget_peak, in_turns, peak


WARM_UP = 2  # steps
SMALL = {"per_device_train_batch_size": 4, "bf16": False, "use_cpu": True}
LISTS, ROUNDS, SHARING = 32, 2, 4


def lora() -> LoraConfig:
    return LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")


def some_lists(count: int) -> list[RankingExample]:
    """Lists at the last training positions of some people, `SHARING` of each."""
    dataset, generator, lists = ranker.world().dataset, np.random.default_rng(42), []
    positions = dataset.positions("train")
    of_user = np.split(positions, np.flatnonzero(np.diff(dataset.user_of(positions))) + 1)
    for user in generator.permutation(len(of_user))[:count]:
        for position in of_user[user][-SHARING:]:
            history = dataset.item_sequence[dataset.history(position)].astype(np.int64)
            others = np.setdiff1d(np.arange(1, dataset.num_items + 1), history)
            candidates = generator.choice(others, min(20, len(others)), replace=False)
            scores = generator.random(len(candidates))
            lists.append(RankingExample(user + 1, history, np.ones(len(history)), candidates, scores, label=0))
    return lists[:count]


def arguments(how: dict[str, Any]) -> dict[str, Any]:
    quiet = {"report_to": [], "save_strategy": "no", "logging_strategy": "no", "disable_tqdm": True}
    return {"output_dir": "outputs/benchmarks/training", "activation_checkpointing": False, **quiet, **how}


def our_trainer(
    readout: str, lists: list[RankingExample], kind: type[LlamaRecLKGTrainer] = LlamaRecLKGTrainer, **how: Any
) -> LlamaRecLKGTrainer:
    name = str(ranker.world().backbone)
    own = {"share_histories": SHARING, "heads_warm_up_epochs": 0}
    return kind(
        model=name,
        args=LlamaRecLKGTrainingArguments(**arguments(how), **own),
        train_dataset=lists,
        processing_class=ranker.processor(readout=readout, num_paths=0),  # titles alone, as the other reads
        peft_config=lora(),
    )


def trl_trainer(lists: list[RankingExample], **how: Any) -> SFTTrainer:
    one = ranker.processor(readout="letters", num_paths=0)
    lists, _ = share_histories(lists, min(SHARING, how["per_device_train_batch_size"]), one.history_length)
    rows = {"prompt": ["".join(one.render(example)) for example in lists]}
    rows["completion"] = [chr(ord("A") + example.label) for example in lists]
    dtype = torch.bfloat16 if how["bf16"] else torch.float32
    return SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(ranker.world().backbone, dtype=dtype),
        args=SFTConfig(**arguments(how), max_length=None, completion_only_loss=True),
        train_dataset=Dataset.from_dict(rows),
        processing_class=ranker.world().tokenizer,
        peft_config=lora(),
    )


class StepClock(TrainerCallback):
    """Seconds from the first step's begin to the last one's end, fetching of batches between them included."""

    def on_step_begin(self, args: Any, state: Any, *rest: Any, **kwargs: Any) -> None:
        if state.global_step == 0:
            synchronise()
            self.begin = time.perf_counter()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        synchronise()
        self.seconds = time.perf_counter() - self.begin


def synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def per_example(trainers: list[Trainer], rounds: int) -> list[float]:
    """Seconds an example of each trainer, over whole epochs in turns, the best of them, after some steps that do not
    count."""
    clocks = [StepClock() for _ in trainers]
    for trainer, clock in zip(trainers, clocks, strict=True):
        trainer.add_callback(clock)
        trainer.args.max_steps = WARM_UP
        trainer.train()
        trainer.args.max_steps = -1
        trainer.args.num_train_epochs = 1
    best = [float("inf")] * len(trainers)
    for _ in range(rounds):
        for place, (trainer, clock) in enumerate(zip(trainers, clocks, strict=True)):
            trainer.train()
            best[place] = min(best[place], clock.seconds / len(trainer.train_dataset))
    return best


def train_alone(kind: str) -> float:
    """The most memory held in two steps of one trainer, in GB; what loading the backbone takes does not count."""
    lists = some_lists(WARM_UP * SMALL["per_device_train_batch_size"])
    trainer = trl_trainer(lists, **SMALL) if kind == "trl" else our_trainer(kind, lists, **SMALL)
    forget_peak()
    trainer.train()
    return peak()


def against_trl(how: dict[str, Any], count: int, rounds: int, target: float, where: str) -> Iterator[Figure]:
    lists = some_lists(count)
    made = [partial(our_trainer, "candidates"), partial(our_trainer, "letters"), trl_trainer]
    *ours, theirs = per_example([make(lists, **how) for make in made], rounds)
    for readout, took in zip(("candidates", "letters"), ours, strict=True):
        name = f"training examples a second against TRL, {readout}, {where}"
        yield Figure(name, took, theirs, "s", target, "SFTTrainer, seconds an example")


def in_rows(how: dict[str, Any], where: str) -> Iterator[Figure]:
    """A step with lists that share histories, laid out as on a GPU, beside the same with each prompt padded."""
    for readout in ("candidates", "letters"):
        trainer = our_trainer(readout, some_lists(how["per_device_train_batch_size"]), **how)
        batch, model = next(iter(trainer.get_train_dataloader())), trainer.model.train()
        model.config.candidates_per_pass = 64  # all at once, as on a GPU

        def step(layout: str, model: LlamaRecLKGForRanking = model, batch: Any = batch) -> None:
            model._layouts[model._how_it_reads] = [layout]
            with torch.autocast(model.device.type, torch.bfloat16, enabled=how["bf16"]):
                loss = model(**batch).loss
            loss.backward()
            model.zero_grad()
            synchronise()

        took = in_turns(partial(step, "shared rows"), partial(step, "padded"), 3)
        yield Figure(f"step of lists in shared rows, {readout}, {where}", *took, "s", 1.2, "padded prompts")


@benchmark
def shared_rows() -> Iterator[Figure]:
    yield from in_rows({**SMALL, "per_device_train_batch_size": 16}, "batch 16, CPU")


@benchmark
def training() -> Iterator[Figure]:
    yield from against_trl(SMALL, LISTS, ROUNDS, 3, "CPU")
    theirs = alone(train_alone, "trl")["found"]
    for readout in ("candidates", "letters"):
        held = alone(train_alone, readout)["found"]
        yield Figure(f"peak memory of training, {readout}, CPU", held, theirs, "GB", 1, "SFTTrainer")
