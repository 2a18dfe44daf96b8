"""The path gate: how strongly the backbone reads a path's tokens follows from the preferences, so that the ranking
loss reaches them through the backbone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from .heads import straight_through
from .packed_attention import PackedMask, Piece
from .shared_rows import SharedRows


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

    def _masked_inputs(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        log_gate: torch.Tensor | None,
        mask: Callable[[torch.Tensor | None], torch.Tensor],
    ) -> dict[str, Any]:
        """The same, with everything else that the backbone takes and a `mask` of ours, made with a bias (B, L) on
        keys or None."""
        inputs, bias = {"input_ids": input_ids}, log_gate
        if log_gate is not None and self.config.path_gate == "straight_through":
            inputs, bias = self._gated_embeddings(input_ids, log_gate), None
        return {**inputs, "attention_mask": mask(bias), "position_ids": position_ids, "use_cache": False}

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
        # upstream's name for how often its kernels repeat keys and values
        groups = (getattr(module, "num_key_value_groups", None) for module in self._decoder().modules())
        shared = next(filter(None, groups), 1)
        tokens, positions = (values[real][None] for values in (input_ids, position_ids))
        gate = None if log_gate is None else log_gate[real][None]
        return self._masked_inputs(
            tokens,
            positions,
            gate,
            lambda bias: PackedMask.of(pieces, tokens.shape[1], None if bias is None else bias[0], shared),
        )

    def _shared_rows(self, input_ids: torch.Tensor, real: torch.Tensor, alike: torch.Tensor) -> SharedRows | None:
        return SharedRows.of(input_ids, real, alike, self.config.text_config.get_text_config().hidden_size)

    def _row_inputs(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        owner: torch.Tensor,
        log_gate: torch.Tensor | None,
        rows: SharedRows,
    ) -> dict[str, Any]:
        """The same for the tokens of prompts (B, L) in shared rows, each tensor (R, W)."""
        gate = None if log_gate is None else rows.of_tokens(log_gate)
        tokens, positions = rows.of_tokens(input_ids), rows.of_tokens(position_ids)
        return self._masked_inputs(tokens, positions, gate, partial(self._attention_mask, rows.seen(owner)))

    def _attention_mask(self, seen: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """What attention kernels take: what is `seen` (B, 1, Q, L), with a `bias` (B, Q) on the last Q keys.

        It is of the type that they compute in, since of any other, `bool` too, each layer would make its own, and keep
        it for the gradient; but a gradient of the bias is summed over the layers in float32."""
        dtype, autocast = self._bias_dtype, torch.is_autocast_enabled(seen.device.type)
        if autocast and (bias is None or not bias.requires_grad):
            dtype = torch.get_autocast_dtype(seen.device.type)
        added = torch.zeros(1, dtype=dtype, device=seen.device)
        if bias is not None:
            added = nn.functional.pad(bias, (seen.shape[3] - bias.shape[1], 0))[:, None, None, :].to(dtype)
        mask = torch.where(seen, added, torch.finfo(dtype).min)
        # kernels of a GPU take rows that begin at multiples of eight places, or each layer would make its own again;
        # never without a gap, for which layers would be compiled once more
        return nn.functional.pad(mask, (0, 8 - mask.shape[3] % 8))[..., : mask.shape[3]]

    def _gated_embeddings(self, input_ids: torch.Tensor, log_gate: torch.Tensor) -> dict[str, torch.Tensor]:
        embeds = self.get_input_embeddings()(input_ids)
        return {"inputs_embeds": embeds * straight_through(log_gate.exp())[..., None].to(embeds.dtype)}
