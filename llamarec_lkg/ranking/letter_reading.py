"""The letter readout: candidates stand behind letters, and the next token's logits of the letters are the scores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from .heads import evaluating
from .packed_prompts import Packing, causal_pieces
from .path_gate import PathGateMixin
from .prompt_assembly import AssembledPrompt, assemble_prompt, score_paths, select_paths


class LetterMixin(PathGateMixin):
    """How a [`LlamaRecLKGForRanking`] with `readout="letters"` reads a prompt."""

    @torch.inference_mode()
    def letter_prompts(self, batch: Mapping[str, torch.Tensor]) -> tuple[AssembledPrompt, torch.Tensor]:
        """The prompts of a batch as `forward` reads them, and the paths in them, best first (`long`, (B, K), -1 where
        there is none). The language model is not run, and need not be there."""
        batch = {name: value.to(self.device) for name, value in batch.items()}
        given = batch.get("preferences")
        preferences = self.preferences(batch) if given is None else given
        scores = score_paths(batch["path_relation_weights"], batch["path_attention_mask"], preferences)
        sources = batch["path_sources"] if self.config.one_path_per_history_item else None
        selected, _, prompt = self._assemble_letters(batch, scores, sources)
        return prompt, selected.masked_fill(~prompt.holds(selected.shape[1]), -1)

    def _read_letters(
        self, texts: Mapping[str, torch.Tensor], path_scores: torch.Tensor, sources: torch.Tensor | None, count: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Selected paths (B, K), and the logits of the first `count` letters (B, count)."""
        selected, scores, prompt = self._assemble_letters(texts, path_scores, sources)
        return selected, self._letter_logits(prompt, scores, count)

    def _assemble_letters(
        self, texts: Mapping[str, torch.Tensor], path_scores: torch.Tensor, sources: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, AssembledPrompt]:
        """Selected paths and their scores, both (B, K), and the prompt with them."""
        selected, scores = select_paths(path_scores, self.config.num_paths, sources)
        names = ("prefix", "path", "suffix")
        parts = {
            f"{name}_{kind}": texts[f"{name}_{kind}"] for name in names for kind in ("input_ids", "attention_mask")
        }
        prompt = assemble_prompt(**parts, selected_paths=selected, max_length=self.config.max_length)
        return selected, scores, prompt

    def _letter_logits(self, prompt: AssembledPrompt, path_scores: torch.Tensor, count: int) -> torch.Tensor:
        """The backbone's logits of the first `count` letters after the last token, (B, count) in float32."""
        token_gate = None
        if self.config.use_path_gate and path_scores.shape[1]:
            # K * w_p is 1 for every path when all score alike, so an untrained gate changes nothing
            present = prompt.holds(path_scores.shape[1])
            scores = path_scores.clamp(min=-1e4) / self.config.path_gate_temperature
            share = scores.masked_fill(~present, -1e4).log_softmax(-1)
            log_gate = share + present.sum(1, keepdim=True).clamp(min=1).float().log()
            token_gate = log_gate.gather(1, prompt.path_rank.clamp(min=0)).masked_fill(prompt.path_rank < 0, 0.0)
        real = prompt.attention_mask.bool()
        position_ids = (prompt.attention_mask.cumsum(1) - 1).clamp(min=0)
        path = None if token_gate is None else prompt.path_rank
        # a gate is the row's own
        alike = (real if path is None else real & ((path >= 0).cumsum(1) == 0)).sum(1)
        layout = self._layout(real.device)
        rows = self._shared_rows(prompt.input_ids, real, alike) if layout == "shared rows" else None
        # the last positions only: one row of the vocabulary is a thousandth of the pass, and going through the model's
        # own head keeps what some of them do to it (soft caps, scales)
        if layout == "packed":
            packing = Packing.of(prompt.input_ids, real, alike)
            pieces = causal_pieces(packing, path)
            inputs = self._packed_inputs(prompt.input_ids, position_ids, packing.kept, token_gate, pieces)
            logits = self.language_model(**inputs, logits_to_keep=packing.places[:, -1]).logits[0]
        elif rows is not None:
            inputs = self._row_inputs(prompt.input_ids, position_ids, real.long() - 1, token_gate, rows)
            logits = rows.at_ends(self.language_model(**inputs, logits_to_keep=rows.ends).logits)
        else:
            logits = self.language_model(
                **self._gated_inputs(prompt.input_ids, token_gate),
                attention_mask=prompt.attention_mask,
                position_ids=position_ids,
                logits_to_keep=1,
                use_cache=False,
            ).logits[:, -1]
        return logits[:, self.config.letter_token_ids[:count]].float()

    def _letter_prior(self, count: int, device: torch.device) -> torch.Tensor:
        """The letters' logits on the empty prompt, (1, count), by the weights of this moment. Where no gradient is
        asked for they are kept until the weights change: a pass of a hundred tokens less for each batch."""
        state = None if torch.is_grad_enabled() else self._state_of_backbone(device)
        if state is None or self._kept_prior is None or self._kept_prior[0] != state:
            self._kept_prior = (state, self._read_prior(device))
        return self._kept_prior[1][:, :count]

    @torch.no_grad()
    def _read_prior(self, device: torch.device) -> torch.Tensor:
        ids = torch.tensor([self.config.prior_input_ids], device=device)
        with evaluating(self.language_model):
            output = self.language_model(ids, logits_to_keep=1, use_cache=False)
        return output.logits[:, -1, self.config.letter_token_ids].float()

    def _state_of_backbone(self, device: torch.device) -> tuple[Any, ...] | None:
        """Equal while the backbone says the same: of each weight which memory it is and how often it was written to,
        and which adapters are on. None where that is not counted. (What is written past the count, through
        `weight.data` or by a fused optimiser, is seen after the next pass with a gradient.)"""
        from peft.tuners.tuners_utils import BaseTunerLayer

        weights = list(self.language_model.parameters())
        if any(weight.is_inference() for weight in weights):
            return None
        layers = [module for module in self.language_model.modules() if isinstance(module, BaseTunerLayer)]
        adapters = [(*layer.active_adapters, layer.disable_adapters, *layer.merged_adapters) for layer in layers]
        scales = [tuple(getattr(layer, "scaling", {}).items()) for layer in layers]
        precision = torch.is_autocast_enabled(device.type), torch.get_autocast_dtype(device.type)
        written = [(weight.data_ptr(), weight._version, weight.dtype) for weight in weights]
        return precision, self.config.prior_input_ids, self.config.letter_token_ids, written, adapters, scales
