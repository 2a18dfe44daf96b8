"""What the ranker's trainer does between steps."""

from __future__ import annotations

import logging
import re
from typing import Any

import torch
from accelerate.utils import reduce
from transformers import EarlyStoppingCallback, ProgressCallback, TrainerCallback

from ..utils.errors import LKGError


logger = logging.getLogger(__name__)


SHOWN_METRICS = re.compile(r"eval_(.*_)?(loss|ndcg@10)|epoch")  # with the name of a set, where there are several
LEFT_OUT_IN_A_ROW = 10  # steps without a usable gradient that end a training


class ShortProgressCallback(ProgressCallback):
    """Shows the few metrics of an evaluation that say how it goes; `state.log_history` has them all."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if any(name.startswith("eval_") for name in logs):
            logs = {name: value for name, value in logs.items() if SHOWN_METRICS.fullmatch(name)}
        super().on_log(args, state, control, logs=logs, **kwargs)


class BestSoFarCallback(EarlyStoppingCallback):
    """Stops early by the evaluations that have the metric; those of other validation sets say nothing of it."""

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any, **kwargs: Any) -> None:
        if f"eval_{args.metric_for_best_model.removeprefix('eval_')}" in metrics:
            super().on_evaluate(args, state, control, metrics, **kwargs)


class FiniteStepsCallback(TrainerCallback):
    """Leaves out a step whose gradients are not finite, and says so: taken, it would turn every weight into NaN.

    Seen on an H200 in bfloat16, one step of some hundreds. In float16 the scaler of gradients leaves such steps out
    itself, without a word, and DeepSpeed has taken a step before callbacks are asked.

    Raises:
        LKGError: so many steps in a row gave none: the model has diverged.
    """

    def __init__(self) -> None:
        self.left_out, self.in_a_row = 0, 0

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.left_out, self.in_a_row = 0, 0

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any) -> None:
        if getattr(optimizer, "scaler", None) is not None or args.deepspeed:
            return
        given = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([g.to_local() if hasattr(g, "to_local") else g for g in given])
        broken = (~torch.isfinite(norm)).float().to(args.device)
        # of a sharded model each process sees its part; all have to agree
        if reduce(broken, "sum").item() == 0:
            self.in_a_row = 0
            return
        optimizer.zero_grad()
        self.left_out, self.in_a_row = self.left_out + 1, self.in_a_row + 1
        if self.in_a_row >= LEFT_OUT_IN_A_ROW:
            raise LKGError(
                f"The gradients of {self.in_a_row} steps in a row are not finite numbers: the model has diverged, or "
                "overflows its number format. Lower training.learning_rate, or train in float32 (backbone.dtype)."
            )
        if state.is_world_process_zero:
            step = state.global_step + 1
            logger.warning(f"Step {step} is left out: its gradients are not finite ({self.left_out} so far).")
