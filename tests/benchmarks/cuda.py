"""On a GPU: training beside TRL, how long it waits for data, scoring beside the bare backbone, and 4-bit weights."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial, wraps
from typing import Any

import torch
from transformers import BitsAndBytesConfig

from llamarec_lkg import LlamaRecLKGForRanking, LlamaRecLKGTrainer

from . import ranker
from .runner import Benchmark, Figure, benchmark, in_turns
from .training import StepClock, against_trl, in_rows, lora, our_trainer, some_lists, synchronise


BATCH, MANY = 16, 64  # lists
HOW = {
    "per_device_train_batch_size": BATCH,
    "bf16": True,
    "dataloader_num_workers": 4,
    "dataloader_pin_memory": True,
}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FOUR_BITS = {
    "quantization_config": BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
    )
}


def on_gpu(function: Benchmark) -> Benchmark:
    """Without a GPU a benchmark yields nothing."""

    @wraps(function)
    def run() -> Iterator[Figure]:
        if torch.cuda.is_available():
            yield from function()

    return benchmark(run)


def waited(run: Callable[[], Any]) -> Callable[[], Any]:
    """`run`, and what it has asked of the GPU."""

    def whole() -> None:
        run()
        synchronise()

    return whole


def peak(run: Callable[[], Any], beside: LlamaRecLKGForRanking) -> float:
    """The most gigabytes that tensors hold while it runs, less a model that only lies there."""
    if not torch.cuda.is_available():
        run()
        return 1.0
    torch.cuda.reset_peak_memory_stats()
    waited(run)()
    return (torch.cuda.max_memory_allocated() - beside.get_memory_footprint()) / 1e9


@on_gpu
def cuda_training() -> Iterator[Figure]:
    for lists in (BATCH, MANY):
        how = {**HOW, "per_device_train_batch_size": lists}
        yield from against_trl(how, 8 * lists, 3, 1.3, f"batch {lists}, GPU, bfloat16")


@on_gpu
def cuda_shared_rows() -> Iterator[Figure]:
    yield from in_rows({**HOW, "per_device_train_batch_size": MANY}, f"batch {MANY}, GPU, bfloat16")


@on_gpu
def cuda_loading() -> Iterator[Figure]:
    """How long the trainer waits for its workers, of the time of its steps."""
    waits = []

    class Waiting(LlamaRecLKGTrainer):
        def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            found = super().get_batch_samples(*args, **kwargs)
            waits.append(time.perf_counter() - start)
            return found

    clock = StepClock()
    trainer = our_trainer("candidates", some_lists(128), kind=Waiting, **HOW, num_train_epochs=2)
    trainer.add_callback(clock)
    trainer.train()
    between = sum(waits[1:])  # the first wait, for the workers' start, is before the first step
    yield Figure("waiting for data, GPU, bfloat16", between, clock.seconds, "s", 0.05, "all of training", True)


def loaded(readout: str, **how: Any) -> tuple[LlamaRecLKGForRanking, Any]:
    """A ranker in bfloat16, or as its options say, and a batch."""
    one = ranker.processor(readout=readout)
    name = ranker.world().backbone
    model = LlamaRecLKGForRanking.from_backbone(
        name, one.model_config(), dtype=torch.bfloat16, device_map={"": DEVICE}, **how
    )
    return model, one(some_lists(BATCH)).to(DEVICE)


@on_gpu
def cuda_scoring() -> Iterator[Figure]:
    for readout in ("candidates", "letters"):
        model, batch = loaded(readout)
        with torch.autocast(DEVICE, dtype=torch.bfloat16):
            ids = ranker.tokens_of(model, batch).to(DEVICE)
        bare = torch.inference_mode()(partial(ranker.states, model, ids))
        took = in_turns(waited(partial(model.score, batch)), waited(bare))
        name = f"score 20 candidates, {readout}, batch {BATCH}, GPU, bfloat16"
        yield Figure(name, *took, "s", 1.05, "bare backbone", True)


@on_gpu
def cuda_four_bits() -> Iterator[Figure]:
    """So small a backbone has little to save: the bounds say what 4 bits may cost."""
    four, batch = loaded("candidates", **FOUR_BITS)
    sixteen, _ = loaded("candidates")
    both = (four, sixteen)

    def step(model: LlamaRecLKGForRanking) -> None:
        with torch.autocast(DEVICE, dtype=torch.bfloat16):
            model(**batch).loss.backward()
        model.zero_grad()

    scoring = [partial(model.score, batch) for model in both]
    for model in both:
        model.add_adapter(lora())
    yield Figure("score, 4 bits, GPU", *in_turns(*map(waited, scoring)), "s", 1.5, "bfloat16", True)
    yield Figure("memory of scoring, 4 bits, GPU", *map(peak, scoring, both[::-1]), "GB", 1.25, "bfloat16", True)
    for model in both:
        model.train()
    steps = [partial(step, model) for model in both]
    yield Figure("LoRA step, 4 bits, GPU", *in_turns(*map(waited, steps)), "s", 2, "bfloat16", True)
    yield Figure("memory of a LoRA step, 4 bits, GPU", *map(peak, steps, both[::-1]), "GB", 1.25, "bfloat16", True)
