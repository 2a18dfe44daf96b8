"""The data sets that a trainer is given: of training lists, and one or several of validation lists."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence, Sized
from copy import copy
from typing import Any

import numpy as np

from ..data.examples import as_examples
from ..data.schema import RankingExample
from ..evaluation.metrics import mean_metrics
from ..utils.errors import LKGError
from .training_args import LlamaRecLKGTrainingArguments


logger = logging.getLogger(__name__)


def training_examples(dataset: Any, args: LlamaRecLKGTrainingArguments) -> list[RankingExample] | None:
    """The training lists; of a stream, whose end nobody knows, those that `max_steps` need."""
    if dataset is None or isinstance(dataset, Sized):
        return None if dataset is None else as_examples(dataset, "train_dataset")
    if args.max_steps <= 0 and isinstance(dataset, Iterable):
        raise LKGError(
            f"train_dataset is a stream ({type(dataset).__name__}) without a length: it may never end. Set "
            "max_steps, for which as many rows are read as are needed, or give its rows as a list: `list(dataset)`."
        )
    batch = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    return as_examples(dataset, "train_dataset", most=args.max_steps * batch)


def validation_examples(dataset: Any) -> list[RankingExample] | dict[str, list[RankingExample]]:
    """The lists of a data set; of a dictionary of them, those of each."""
    if not isinstance(dataset, Mapping) or {"history", "candidates"} <= set(dataset):
        return as_examples(dataset, "eval_dataset")
    if not dataset:
        raise LKGError("eval_dataset is a dictionary without a data set. Give one, or leave it out.")
    return {str(name): as_examples(one, f"eval_dataset[{name!r}]") for name, one in dataset.items()}


def choosing(
    args: LlamaRecLKGTrainingArguments, names: Sequence[str], own_metrics: bool
) -> LlamaRecLKGTrainingArguments:
    """The arguments with a `metric_for_best_model` that evaluation gives.

    Args:
        names: of several validation sets; where the metric names none of them, it is the first one's.
        own_metrics: whether the caller adds metrics, of whatever names.

    Raises:
        LKGError: there is no such metric.
    """
    metric = (args.metric_for_best_model or "").removeprefix("eval_")
    if not metric or args.eval_strategy == "no":
        return args
    named = max((name for name in names if metric.startswith(f"{name}_")), key=len, default=None)
    bare = metric.removeprefix(f"{named}_") if named else metric
    ranking = list(mean_metrics(np.ones(1)))
    known = ["loss", *ranking, *(f"retriever_{name}" for name in ranking)]
    if bare not in known and not own_metrics:
        raise LKGError(
            f"metric_for_best_model={args.metric_for_best_model!r} is none that evaluation gives. Give one of "
            f"{known}" + (f", after one of {[f'{name}_' for name in names]}." if names else ".")
        )
    if names and not named:
        args = copy(args)  # the caller's own stay as they are, for other data
        args.metric_for_best_model = f"eval_{names[0]}_{bare}"
        logger.info("The first of %d validation sets chooses: %r.", len(names), args.metric_for_best_model)
    return args
