"""What the ranker's trainer does between steps."""

from __future__ import annotations

import logging
from typing import Any

import torch
from accelerate.utils import reduce
from transformers import ProgressCallback, TrainerCallback

from ..utils.errors import LKGError


logger = logging.getLogger(__name__)


SHOWN_METRICS = ("eval_loss", "eval_ndcg@10", "eval_retriever_ndcg@10", "epoch")
LEFT_OUT_IN_A_ROW = 10  # steps without a usable gradient that end a training


class ShortProgressCallback(ProgressCallback):
    """Shows the few metrics of an evaluation that say how it goes; `state.log_history` has them all."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if "eval_loss" in logs:
            logs = {name: logs[name] for name in SHOWN_METRICS if name in logs}
        super().on_log(args, state, control, logs=logs, **kwargs)


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
