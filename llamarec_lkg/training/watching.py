"""What a trainer logs beside the loss, wherever it reports to: how decided the preferences are, what each part of a
score weighs, and how far the ranker is ahead of its retriever."""

from __future__ import annotations

from typing import Any

import torch

from ..ranking.heads import ScoreFusion


class WatchingMixin:
    """Adds to each log of a [`LlamaRecLKGTrainer`]'s training steps:

    - `preference_entropy`: of the preferences, in nats, the mean over the lists since the last log; the logarithm of
      the number of relations where all are liked alike.
    - `weight_retriever`, `weight_language_model`, ...: as of [`ScoreFusion`], `weight_recent` as the mean over
      relations. Not of a model in shards.

    Of several processes the first says what it has seen.
    """

    _entropy: torch.Tensor | None = None
    _lists_seen = 0

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
        """As upstream; `args.label_smoothing_factor` smooths over the real candidates of each list."""
        inputs = {**inputs, "smoothing": self.args.label_smoothing_factor}
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
        if model.training:
            entropy = torch.special.entr(outputs.preferences.detach()).sum()
            self._entropy = entropy if self._entropy is None else self._entropy + entropy
            self._lists_seen += len(outputs.preferences)
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """As upstream."""
        if "loss" in logs and self._lists_seen:
            logs = {**logs, "preference_entropy": self._entropy.item() / self._lists_seen}
            self._entropy, self._lists_seen = None, 0
            if not (self.is_fsdp_enabled or self.is_deepspeed_enabled):
                logs |= part_weights(self.accelerator.unwrap_model(self.model, keep_torch_compile=False).fusion)
        super().log(logs, *args, **kwargs)


def part_weights(fusion: ScoreFusion) -> dict[str, float]:
    """`weight_{part}` of each part of a score that the configuration uses, beside the language model where there is
    one."""
    config = fusion.config
    weights = fusion.weights(config.use_language_model)
    used = {
        "language_model": fusion.lm_scale if config.use_language_model else None,
        "retriever": weights.retrieval_weight if config.use_retrieval_scores else None,
        "evidence": weights.evidence_weight if config.use_evidence_fusion else None,
        "recent": weights.recent_weight if config.use_evidence_fusion else None,
        "popularity": weights.popularity_weight if config.use_popularity else None,
    }
    return {f"weight_{part}": weight.mean().item() for part, weight in used.items() if weight is not None}
