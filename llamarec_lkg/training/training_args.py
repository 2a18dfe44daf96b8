"""Training arguments of the ranker."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from transformers import TrainingArguments

from ..utils.errors import LKGError


_HALF = "preferences and fusion stay in float32; bf16=True or fp16=True has the rest computed in half precision"
USABLE: dict[str, tuple[tuple[Any, ...], str]] = {
    "remove_unused_columns": ((False,), "the collator needs every column"),
    "label_names": ((["labels"], None), "a batch has its targets under 'labels'"),
    "train_sampling_strategy": (("random", "sequential", "group_by_length"), "it reads a column of lengths"),
    "bf16_full_eval": ((False,), _HALF),
    "fp16_full_eval": ((False,), _HALF),
    "debug": (([],), "it watches numbers alone, and a batch has masks; steps that overflow are told of in any case"),
}
"""Arguments of which only some values can be used, and why."""


@dataclass
class LlamaRecLKGTrainingArguments(TrainingArguments):
    """`transformers.TrainingArguments` and what ranking adds.

    Defaults that differ from upstream: `learning_rate` 1e-4, `warmup_steps` 0.1 (a share of the steps), `label_names`
    ["labels"], `remove_unused_columns` False (the collator needs every column), `metric_for_best_model` "eval_loss":
    with a few hundred lists to validate on, the likelihood tells models apart that NDCG cannot.
    `label_smoothing_factor` smooths over the real candidates of a list, not in the heads' warm-up.
    """

    learning_rate: float = field(default=1e-4, metadata={"help": "Of the backbone's adapter, or of the backbone."})
    warmup_steps: float = field(default=0.1, metadata={"help": "Linear warm-up: steps, or a share of them below 1."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "Must stay False."})
    label_names: list[str] | None = field(default_factory=lambda: ["labels"], metadata={"help": "Keys of a batch."})
    metric_for_best_model: str | None = field(default="eval_loss", metadata={"help": "Picks the best checkpoint."})
    heads_learning_rate: float = field(default=2e-3, metadata={"help": "Of preferences, fusion weights and readout."})
    lora_plus_ratio: float = field(
        default=1.0, metadata={"help": "LoRA+ (arXiv 2402.12354): how many times learning_rate the B matrices get."}
    )
    heads_warm_up_epochs: int = field(
        default=20, metadata={"help": "Epochs in which preferences and fusion learn first, without the backbone."}
    )
    heads_warm_up_learning_rate: float | None = field(
        default=None, metadata={"help": "Of that warm-up; by default heads_learning_rate."}
    )
    heads_weight_decay: float = field(
        default=0.3, metadata={"help": "Of that warm-up: strong, because lists are few and alike."}
    )
    share_histories: int = field(
        default=1,
        metadata={
            "help": "So many lists of a user, near each other, show histories from the same item on and stand in "
            "one batch, which reads it once where that is less to compute."
        },
    )
    early_stopping_patience: int = field(
        default=3, metadata={"help": "With load_best_model_at_end: evaluations without a better one; 0 never stops."}
    )
    hub_share_users: bool = field(
        default=False, metadata={"help": "Push `private/` as well: user ids and the weights of single users."}
    )
    hub_backbone: str | None = field(
        default=None, metadata={"help": "Name for a backbone that is a local folder: its id on the Hub."}
    )

    def __post_init__(self):
        super().__post_init__()
        for name, (usable, reason) in USABLE.items():
            if getattr(self, name) not in usable:
                shown = " or ".join(map(repr, usable))
                raise LKGError(f"{name}={getattr(self, name)!r} cannot be used: {reason}. Give {shown}.")
        if self.share_histories > 1 and self.train_sampling_strategy != "random":
            raise LKGError(
                f"share_histories={self.share_histories} orders the lists, and train_sampling_strategy="
                f"{self.train_sampling_strategy!r} would, too. Leave one of them out."
            )
        if self.activation_checkpointing and (self.activation_checkpointing_kwargs or {}).get("use_reentrant"):
            raise LKGError(
                "activation_checkpointing_kwargs has use_reentrant=True; use False, the default: the preferences gate "
                "every layer of the backbone, whose gradients the reentrant kind would lose or repeat."
            )


def check_without_language_model(args: LlamaRecLKGTrainingArguments) -> None:
    """Raise `LKGError` where arguments are about what this ranker does not have."""
    asked = {
        name: getattr(args, name) for name in ("neftune_noise_alpha", "activation_checkpointing", "torch_compile")
    }
    asked["include_for_metrics"] = "inputs" in args.include_for_metrics  # the prompt's tokens
    if names := [name for name, value in asked.items() if value]:
        raise LKGError(f"{names} are about the language model, which this ranker does not use. Leave them out.")
