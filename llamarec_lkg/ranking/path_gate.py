"""The path gate: how strongly the backbone reads a path's tokens follows from the preferences, so that the ranking
loss reaches them through the backbone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from .heads import straight_through
from .packed_attention import PackedMask, Piece


def log_path_gate(path_scores: torch.Tensor, path_relation_weights: torch.Tensor, temperature: float) -> torch.Tensor:
    """Log of how much more a path is preferred than under uniform preferences, over the temperature, (B, P).

    It is 0 for every path when all relations are liked alike, so an untrained gate changes nothing; and it is a path's
    own, whatever others there are, so that a candidate is read alike in any list.
    """
    weights = path_relation_weights.float()
    even = weights.mean(-1).clamp(min=1e-9)
    ratio = path_scores / even
    known = (weights.sum(-1) > 0) & path_scores.isfinite()
    return torch.where(known, ratio, 1.0).clamp(min=1e-9).log() / temperature


class PathGateMixin:
    """The backbone's inputs under the gate of a [`LlamaRecLKGForRanking`]."""

    @property
    def _bias_dtype(self) -> torch.dtype:
        """Under autocast the kernel casts a bias. Upstream first fills it with the least number of the keys' type,
        which is float32 in a quantized backbone."""
        embedded = self.get_input_embeddings().weight
        return torch.float32 if torch.is_autocast_enabled(embedded.device.type) else embedded.dtype

    def _gated_inputs(self, input_ids: torch.Tensor, log_gate: torch.Tensor | None) -> dict[str, torch.Tensor]:
        """Tokens (B, L) whose gates are given by their logarithm (B, L), for a backbone that makes the mask itself."""
        if log_gate is None:
            return {"input_ids": input_ids}
        if self.config.path_gate == "straight_through":
            return self._gated_embeddings(input_ids, log_gate)
        return {"input_ids": input_ids, "position_bias": log_gate[:, None, None, :].to(self._bias_dtype)}

    def _packed_inputs(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        real: torch.Tensor,
        log_gate: torch.Tensor | None,
        pieces: Sequence[Piece],
    ) -> dict[str, Any]:
        """The same for the tokens that are `real` (`bool`, (B, L)) alone, one row behind the other, L' in all:
        everything the backbone takes, each tensor (1, L')."""
        inputs, bias = {"input_ids": input_ids[real][None]}, None
        if log_gate is not None and self.config.path_gate == "straight_through":
            inputs = self._gated_embeddings(inputs["input_ids"], log_gate[real][None])
        elif log_gate is not None:
            bias = log_gate[real]
        # upstream's name for how often its kernels repeat keys and values
        groups = (getattr(module, "num_key_value_groups", None) for module in self._decoder().modules())
        mask = PackedMask.of(pieces, int(real.sum()), bias, next(filter(None, groups), 1))
        return {**inputs, "attention_mask": mask, "position_ids": position_ids[real][None], "use_cache": False}

    def _gated_embeddings(self, input_ids: torch.Tensor, log_gate: torch.Tensor) -> dict[str, torch.Tensor]:
        embeds = self.get_input_embeddings()(input_ids)
        return {"inputs_embeds": embeds * straight_through(log_gate.exp())[..., None].to(embeds.dtype)}
