"""The candidate readout: the language model's state at the end of each candidate says how well it fits the history."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache

from .backbone_check import BackboneCheckMixin
from .candidate_blocks import BlockPrompt, assemble_blocks, block_attention, fitting, select_block_paths
from .packed_prompts import Packing, block_pieces, causal_pieces
from .path_gate import PathGateMixin, log_path_gate
from .shared_rows import SharedRows


class CandidateMixin(BackboneCheckMixin, PathGateMixin):
    """How a [`LlamaRecLKGForRanking`] with `readout="candidates"` reads a prompt."""

    def _read_candidates(
        self, texts: Mapping[str, torch.Tensor], path_scores: torch.Tensor, sources: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Selected paths (B, C, K), and the language model's scores (B, C) in float32."""
        config, count = self.config, texts["candidate_input_ids"].shape[1]
        isolated = config.candidate_attention == "isolated"
        selected = select_block_paths(path_scores, texts["path_candidates"], count, config.num_paths, sources)
        selected = self._shortened(texts, selected, path_scores)
        log_gate = None
        if config.use_path_gate and config.num_paths:
            weights = texts["path_relation_weights"]
            with torch.autocast(weights.device.type, enabled=False):
                log_gate = log_path_gate(path_scores, weights, config.path_gate_temperature)
        packs = config.candidates_per_pass is None and self._layout(path_scores.device) == "packed"
        # compiled layers read the prefix each time: with a cache each would be compiled by itself, too many of them
        few = path_scores.device.type == "cpu" and not self.compiled
        size = config.candidates_per_pass or (128 if packs else 10 if few else 64)
        size = size if isolated else count
        parts = [slice(first, first + size) for first in range(0, count, size)]
        remembers = len(parts) > 1 and not (packs or self.compiled or self._recomputes())
        prefix = self._remembered(texts) if remembers else None
        scores = []
        for part in parts:
            prompt = _assembled(texts, selected, part, isolated, prefix is None)
            states = self._end_states(prompt, log_gate, isolated, prefix)
            query = states[:, 0] if prefix is None else prefix[2]
            with torch.autocast(states.device.type, enabled=False):
                device = self.readout.out.weight.device
                scores.append(self.readout(query.to(device), states[:, 1:].to(device)))
        return selected, torch.cat(scores, dim=1)

    def _decoder(self) -> nn.Module:
        """The backbone without its output layer; an adapter's weights are inside."""
        model = self.language_model.get_base_model() if self.has_adapter else self.language_model
        return model.base_model

    def _recomputes(self) -> bool:
        """Whether layers are run again for the gradient: keys and values that were kept would then be kept twice."""
        if not self.language_model.training:
            return False
        wrapped = any(type(part).__name__ == "CheckpointWrapper" for part in self.language_model.modules())
        return wrapped or self._decoder().is_gradient_checkpointing

    def _shortened(
        self, texts: Mapping[str, torch.Tensor], selected: torch.Tensor, path_scores: torch.Tensor
    ) -> torch.Tensor:
        """`selected` (B, C, K) less the lowest-scored paths for which `max_length` leaves no room."""
        index = selected.flatten(1).clamp(min=0)
        lengths = texts["path_attention_mask"].sum(2).gather(1, index).view_as(selected).masked_fill(selected < 0, 0)
        scores = path_scores.gather(1, index).view_as(selected).masked_fill(selected < 0, -torch.inf)
        room = self.config.max_length - texts["prefix_attention_mask"].sum(1)
        titles = texts["candidate_attention_mask"].sum(2)
        if self.config.candidate_attention == "isolated":
            fits = fitting(lengths.flatten(0, 1), scores.flatten(0, 1), (room[:, None] - titles).flatten())
        else:
            fits = fitting(lengths.flatten(1), scores.flatten(1), room - titles.sum(1))
        return selected.masked_fill(~fits.view_as(selected), -1)

    def _end_states(
        self,
        prompt: BlockPrompt,
        log_gate: torch.Tensor | None,
        isolated: bool,
        prefix: tuple[DynamicCache, torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """The backbone's last states where the prefix and each block end, (B, C + 1, D); with `prefix`, from
        `_remembered`, the prompt holds the blocks alone."""
        token_gate = None
        if log_gate is not None:
            token_gate = log_gate.gather(1, prompt.path.clamp(min=0)).masked_fill(prompt.path < 0, 0.0)
        layout = None if prefix is not None else self._layout(prompt.owner.device)
        if layout == "packed":
            return self._packed_states(prompt, token_gate, isolated)
        rows = None
        if layout == "shared rows":
            rows = self._shared_rows(prompt.input_ids, prompt.owner >= 0, (prompt.owner == 0).sum(1))
        if rows is not None:
            return self._row_states(prompt, token_gate, isolated, rows)
        if not isolated:
            inputs = self._gated_inputs(prompt.input_ids, token_gate)
            mask = (prompt.owner >= 0).long()
            inputs |= {"attention_mask": mask, "position_ids": prompt.position_ids, "use_cache": False}
        else:
            owner = prompt.owner if prefix is None else torch.cat([prefix[1], prompt.owner], dim=1)
            mask = partial(self._attention_mask, block_attention(owner, prompt.owner.shape[1]))
            inputs = self._masked_inputs(prompt.input_ids, prompt.position_ids, token_gate, mask)
            if prefix is not None:
                inputs |= {"past_key_values": prefix[0], "use_cache": True}
        states = self._decoder()(**inputs).last_hidden_state
        if prefix is not None:
            prefix[0].crop(-prompt.owner.shape[1])
        return states[torch.arange(len(states), device=states.device)[:, None], prompt.ends.to(states.device)]

    def _packed_states(self, prompt: BlockPrompt, token_gate: torch.Tensor | None, isolated: bool) -> torch.Tensor:
        """The same, of all prompts one behind the other."""
        packing = Packing.of(prompt.input_ids, prompt.owner >= 0, (prompt.owner == 0).sum(1))
        gated = None if token_gate is None else prompt.path
        pieces = block_pieces(prompt.owner, packing) if isolated else causal_pieces(packing, gated)
        inputs = self._packed_inputs(prompt.input_ids, prompt.position_ids, packing.kept, token_gate, pieces)
        states = self._decoder()(**inputs).last_hidden_state[0]
        return states[packing.places.gather(1, prompt.ends)]

    def _row_states(
        self, prompt: BlockPrompt, token_gate: torch.Tensor | None, isolated: bool, rows: SharedRows
    ) -> torch.Tensor:
        """The same, of prompts in shared rows."""
        owner = prompt.owner if isolated else prompt.owner.clamp(max=0)
        inputs = self._row_inputs(prompt.input_ids, prompt.position_ids, owner, token_gate, rows)
        states = self._decoder()(**inputs).last_hidden_state.flatten(0, 1)
        return states[rows.places.gather(1, prompt.ends).to(states.device)]

    def _remembered(self, texts: Mapping[str, torch.Tensor]) -> tuple[DynamicCache, torch.Tensor, torch.Tensor]:
        """The prefix read once: keys and values, owners (B, Lp), and the state at its end (B, D)."""
        mask = texts["prefix_attention_mask"].bool()
        owner = mask.long() - 1
        cache = DynamicCache()
        states = self._decoder()(
            input_ids=texts["prefix_input_ids"],
            attention_mask=self._attention_mask(block_attention(owner), None),
            position_ids=(mask.cumsum(1) - 1).clamp(min=0),
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        return cache, owner, states[:, -1]


def _assembled(
    texts: Mapping[str, torch.Tensor], selected: torch.Tensor, part: slice, isolated: bool, with_prefix: bool
) -> BlockPrompt:
    """The blocks of some candidates, behind the prefix or alone."""
    names = ("input_ids", "attention_mask")
    prefix, candidates, paths = ([texts[f"{one}_{name}"] for name in names] for one in ("prefix", "candidate", "path"))
    start = prefix[1].sum(1)
    if not with_prefix:
        prefix = [tensor[:, :0] for tensor in prefix]
    candidates = [tensor[:, part] for tensor in candidates]
    return assemble_blocks(*prefix, *candidates, *paths, selected[:, part], isolated=isolated, start=start)


def state_size(text_config: Any) -> int:
    """Width of a backbone's last states."""
    text_config = text_config.get_text_config()
    return getattr(text_config, "word_embed_proj_dim", None) or text_config.hidden_size
