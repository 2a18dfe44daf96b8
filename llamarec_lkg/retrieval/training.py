"""Training a neural retriever: next-item cross-entropy over all items, stopped early on validation Recall@10."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from tqdm.auto import tqdm

from ..data.sequences import SequenceDataset
from ..evaluation.metrics import mean_metrics
from ..utils.errors import LKGError
from ..utils.fingerprints import catalogue_fingerprint
from .base import Retriever, pad_left, retriever_ranks
from .item_features import ItemFeatures, check_kind
from .item_vectors import feature_sizes
from .modeling_lrurec import LRURecConfig, LRURecForRetrieval
from .modeling_sasrec import SASRecConfig, SASRecForRetrieval
from .sequential import NeuralRetriever, SequentialRetrieverModel


MODELS = {"lrurec": (LRURecConfig, LRURecForRetrieval), "sasrec": (SASRecConfig, SASRecForRetrieval)}


@dataclass
class RetrieverTrainingArguments:
    """Settings of the first stage.

    The defaults are the reference settings for LRURec on MovieLens (arXiv 2310.02367) but for the schedule: a rate
    that warms up and falls reaches in 4,000 steps what a constant one needs a long wait of patience for.
    """

    model_type: Literal["lrurec", "sasrec"] = field(
        default="lrurec", metadata={"help": "'lrurec' (linear recurrence) or 'sasrec' (self-attention)."}
    )
    item_vectors: Literal["ids", "text", "entities", "text+entities"] = field(
        default="ids",
        metadata={"help": "What an item's vector knows beside its id: nothing, its text, its entities in the graph."},
    )
    text_scale: float = field(
        default=0.3,
        metadata={
            "help": "How fast the projection of text is learned beside the ids. Less is better for items that were "
            "trained on, rare ones as well (text that runs ahead leaves ids little to learn); more is better for "
            "those that never were."
        },
    )
    hidden_size: int = field(default=64, metadata={"help": "Width of item vectors."})
    num_hidden_layers: int = field(default=2, metadata={"help": "Layers of the encoder."})
    num_attention_heads: int = field(default=2, metadata={"help": "Of each layer of SASRec."})
    dropout: float = field(default=0.2, metadata={"help": "Dropout probability."})
    max_length: int = field(default=200, metadata={"help": "How much history is read."})
    learning_rate: float = field(default=1e-3, metadata={"help": "Of AdamW."})
    weight_decay: float = field(default=0.01, metadata={"help": "Of AdamW."})
    batch_size: int = field(default=16, metadata={"help": "Sequences in a batch."})
    sampled_items: int | None = field(
        default=None,
        metadata={
            "help": "Items drawn in each step that stand for the whole catalogue in the loss. 0: all items enter it. "
            "By default 8,192 where there are more than 100,000 items, else all enter."
        },
    )
    max_steps: int = field(default=4000, metadata={"help": "Upper bound on optimiser steps."})
    eval_steps: int = field(default=500, metadata={"help": "Steps between validations."})
    patience: int = field(default=20, metadata={"help": "Validations without a better Recall@10 before stopping."})
    lr_scheduler_type: str = field(
        default="one_cycle",
        metadata={"help": "'constant' (reference) or 'one_cycle': warm up, then fall to 0 at max_steps."},
    )
    seed: int = field(default=42, metadata={"help": "Of initialisation, order and dropout."})


def evaluate_retriever(retriever: Retriever, dataset: SequenceDataset, split: str) -> dict[str, float]:
    """Metrics at 1, 5, 10 and 20 over all items, history excluded unless the data allow repeats, for every target of
    `split`."""
    return mean_metrics(retriever_ranks(dataset, retriever, split), ks=(1, 5, 10, 20))


def train_retriever(
    dataset: SequenceDataset,
    args: RetrieverTrainingArguments | None = None,
    *,
    features: ItemFeatures | None = None,
    device: str = "cpu",
    progress: bool = True,
) -> tuple[SequentialRetrieverModel, list[dict[str, float]]]:
    """Train on `dataset`'s training part and return the best model by validation Recall@10, with the log.

    Args:
        features: of the data set's items, see [`~item_features.item_features`]; what they hold enters the item
            vectors.

    Returns:
        the model in eval mode, and one record `{"step", "loss", "recall@10", ...}` a validation.

    Raises:
        LKGError: no user has two training interactions, there is no validation target, a setting is unknown, or
            features are absent or of other items.
    """
    args = args or RetrieverTrainingArguments()
    sequences = training_windows(dataset, args.max_length)
    if not sequences:
        raise LKGError("No user has two training interactions, so there is no next item to learn from.")
    if not len(dataset.positions("validation")):
        raise LKGError("There is no validation target to choose the best model by. Leave a part for validation.")
    torch.manual_seed(args.seed)
    generator = np.random.default_rng(args.seed)
    model = _new_model(dataset, args, features).to(device)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=args.learning_rate, weight_decay=args.weight_decay, fused=True
    )
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, _schedule(args))
    retriever = NeuralRetriever(model)
    best, best_recall, best_step, log, losses = None, -1.0, 0, [], []
    batches = _batches(sequences, args.batch_size, generator)
    drawn = _sampled_items(args, dataset.num_items)
    sampler = ItemSampler(dataset.training_counts(), drawn, args.seed) if drawn else None
    with tqdm(total=args.max_steps, desc="train retriever", unit="step", disable=not progress) as bar:
        for step in range(1, args.max_steps + 1):
            model.train()
            sample = None if sampler is None else sampler.draw(device)
            losses.append(training_step(model, optimizer, next(batches), sample))
            scheduler.step()
            bar.update()
            if step % args.eval_steps == 0 or step == args.max_steps:
                metrics = evaluate_retriever(retriever, dataset, "validation")
                log.append({"step": step, "loss": float(torch.stack(losses).mean()), **metrics})
                losses.clear()
                bar.set_postfix({"loss": f"{log[-1]['loss']:.3f}", "recall@10": f"{metrics['recall@10']:.4f}"})
                if metrics["recall@10"] > best_recall:
                    best_recall, best_step = metrics["recall@10"], step
                    best = {name: value.detach().clone() for name, value in model.state_dict().items()}
                elif step - best_step >= args.patience * args.eval_steps:
                    break
    model.load_state_dict(best)
    return model.eval(), log


def training_step(
    model: SequentialRetrieverModel,
    optimizer: torch.optim.Optimizer,
    batch: Sequence[np.ndarray],
    sample: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> torch.Tensor:
    """One step on `batch`, sequences in which each item but the first is to be found from those before it, with the
    loss over a `sample` of the catalogue where one is given; returns the loss, shape ()."""
    length = max(map(len, batch))
    inputs, labels = (
        pad_left([sequence[part] for sequence in batch], length).to(model.device)
        for part in (slice(None, -1), slice(1, None))
    )
    loss = model(inputs, labels=labels, sample=sample).loss
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return loss.detach()


class ItemSampler:
    """Draws items that stand for a catalogue in the loss, half of them uniformly, half as often as they were trained
    on: rare items are not forgotten, and frequent ones, which weigh most in a softmax, vary little.

    Args:
        counts (shape (num_items + 1,)): how often items were trained on; that of padding is not read.
        size: items a draw; some come twice.
    """

    def __init__(self, counts: np.ndarray, size: int, seed: int):
        counts = np.asarray(counts[1:], dtype=np.float64)
        shares = 0.5 / len(counts) + 0.5 * (counts / counts.sum() if counts.any() else 1 / len(counts))
        self.ends, self.size, self.generator = shares.cumsum(), size, np.random.default_rng(seed)
        self.log_expected = np.log(size * shares)

    def draw(self, device: str | torch.device = "cpu") -> tuple[torch.Tensor, torch.Tensor]:
        """Items, each once, `long`, (S,), ascending, and the logarithm of how many items each stands for: how often it
        was drawn by how often that is to be expected, `float32`, (S,)."""
        places = np.searchsorted(self.ends, self.generator.random(self.size) * self.ends[-1], side="right")
        places, times = np.unique(places, return_counts=True)
        stands_for = (np.log(times) - self.log_expected[places]).astype(np.float32)
        return torch.from_numpy(places + 1).to(device), torch.from_numpy(stands_for).to(device)


def _sampled_items(args: RetrieverTrainingArguments, num_items: int) -> int:
    """How many items are drawn a step, 0 where all of them enter the loss."""
    if args.sampled_items is None:
        return 8192 if num_items > 100_000 else 0
    if args.sampled_items < 0:
        raise LKGError(f"sampled_items is {args.sampled_items}; it is a number of items, 0 for all, or None.")
    return args.sampled_items


def training_windows(dataset: SequenceDataset, max_length: int) -> list[np.ndarray]:
    """Training sequences cut, from the end, into pieces of `max_length` inputs and their next items."""
    windows = []
    for sequence in dataset.training_sequences():
        for stop in range(len(sequence), 1, -max_length):
            windows.append(sequence[max(0, stop - max_length - 1) : stop])
    return windows


def _new_model(
    dataset: SequenceDataset, args: RetrieverTrainingArguments, features: ItemFeatures | None
) -> SequentialRetrieverModel:
    if args.model_type not in MODELS:
        raise LKGError(f"model_type is {args.model_type!r}; it is {' or '.join(map(repr, MODELS))}.")
    check_kind(args.item_vectors)
    if features is None and args.item_vectors != "ids":
        raise LKGError(
            f"item_vectors is {args.item_vectors!r}, but no features are given. Make them with "
            f"`item_features({args.item_vectors!r}, dataset.items, ...)` and give `features=`."
        )
    if features is not None and features.num_items not in (None, dataset.num_items):
        raise LKGError(
            f"The features are those of {features.num_items} items, the data have {dataset.num_items}. Make them from "
            "`dataset.items`."
        )
    config_class, model_class = MODELS[args.model_type]
    config = config_class(
        num_items=dataset.num_items,
        hidden_size=args.hidden_size,
        num_hidden_layers=args.num_hidden_layers,
        hidden_dropout_prob=args.dropout,
        max_length=args.max_length,
        text_scale=args.text_scale,
        catalogue=catalogue_fingerprint(dataset.items.ids),
        **feature_sizes(features),
        **({"num_attention_heads": args.num_attention_heads} if args.model_type == "sasrec" else {}),
    )
    model = model_class(config)
    if model.item_content is not None:
        model.load_features(features, dataset.training_counts() > 0)
    return model


def _schedule(args: RetrieverTrainingArguments):
    if args.lr_scheduler_type == "constant":
        return lambda step: 1.0
    if args.lr_scheduler_type == "one_cycle":
        warm_up = max(1, args.max_steps // 10)
        return lambda step: min(
            (step + 1) / warm_up,
            0.5 * (1 + math.cos(math.pi * min(1, max(0, step - warm_up) / max(1, args.max_steps - warm_up)))),
        )
    raise LKGError(f"lr_scheduler_type is {args.lr_scheduler_type!r}; it is 'constant' or 'one_cycle'.")


def _batches(sequences: list[np.ndarray], batch_size: int, generator: np.random.Generator):
    while True:
        order = generator.permutation(len(sequences))
        for start in range(0, len(order), batch_size):
            yield [sequences[row] for row in order[start : start + batch_size]]


LRURecTrainingArguments, train_lrurec = RetrieverTrainingArguments, train_retriever  # when LRURec was all there was
