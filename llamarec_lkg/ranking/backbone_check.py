"""Whether a backbone can read candidates as blocks: tried out on a few tokens when a ranker is built, because which
kernels and architectures can is not written down anywhere."""

from __future__ import annotations

import re

import torch
from torch import nn
from transformers.utils import logging

from ..utils.errors import LKGError
from .candidate_blocks import assemble_blocks
from .configuration_llamarec_lkg import LlamaRecLKGConfig
from .heads import evaluating


logger = logging.get_logger(__name__)

# how far states may be apart and still be called the same; half precision rounds
EXACT = (torch.float32, torch.float64)
TOLERANCE, HALF_TOLERANCE = 1e-4, 5e-2

KERNELS = "attn_implementation='sdpa' or 'eager'"
REMEDY = (
    "Else use candidate_attention='causal' (candidates then see each other), readout='letters' (as published, for "
    "large backbones), or another backbone"
)


class BackboneCheckMixin:
    """What a [`LlamaRecLKGForRanking`] asks of its backbone."""

    def check_reading(self, config: LlamaRecLKGConfig | None = None) -> None:
        """Raise `LKGError` where the backbone would read a prompt otherwise than a configuration (by default that in
        use) needs it."""
        config = config or self.config
        if self.language_model is None:
            return
        self._check_positions(config.max_length)
        isolated = config.candidate_attention == "isolated"
        if config.readout == "letters" or any(weight.is_meta for weight in self.language_model.parameters()):
            return
        name, kernel = type(self.language_model).__name__, self.language_model.config._attn_implementation
        quantized = getattr(self.language_model, "is_quantized", False)
        if isolated:
            self._check_windows(config.max_length)
        if isolated and kernel == "flex_attention":
            raise LKGError(
                f"The kernel {kernel!r} takes no mask made by others. Load {name} with {KERNELS}. {REMEDY}."
            )
        if quantized and self.get_input_embeddings().weight.device.type == "cpu":
            return  # bitsandbytes would pack the weights for inference, and no gradient passes those
        try:
            moved = self._moved_by_company(isolated)
        except Exception as error:  # whatever an architecture does with a mask that it did not expect
            if quantized:  # its kernels may not run where it lies now
                logger.warning(f"The quantized {name} could not be tried out where it lies ({error!r}).")
                return
            raise LKGError(
                f"The backbone {name} cannot be read at each candidate: with a mask and position ids given for each "
                f"token it does not run ({error!r}). Load it with {KERNELS}. {REMEDY}."
            ) from error
        if isolated and moved > (TOLERANCE if self.language_model.dtype in EXACT else HALF_TOLERANCE):
            raise LKGError(
                f"The backbone {name} does not keep candidates apart: a candidate's state moves by {moved:.1%} when "
                f"it changes places with another. Its attention kernel ({kernel!r}) does not take the mask, or its "
                "positions do not come from the position ids, or some of its layers read tokens one after the other. "
                f"Load it with {KERNELS}. {REMEDY}."
            )

    def _check_positions(self, length: int) -> None:
        """Learned positions that are fewer than `max_length`."""
        inputs = self.get_input_embeddings()
        for name, part in self.language_model.named_modules():
            learned = isinstance(part, nn.Embedding) and part is not inputs and re.search(r"pos|wpe", name)
            if learned and part.num_embeddings < length:
                raise LKGError(
                    f"The backbone has learned positions for {part.num_embeddings} tokens ({name}), and max_length is "
                    f"{length}. Lower max_length."
                )

    def _check_windows(self, length: int) -> None:
        """Layers that see only the last tokens: kernels leave that to whoever makes the mask."""
        config = self.language_model.config.get_text_config()
        if "local" in getattr(config, "attention_layers", ()):
            raise LKGError(f"The backbone has local layers, which count tokens and not positions. {REMEDY}.")
        kinds, window = getattr(config, "layer_types", None), getattr(config, "sliding_window", None)
        slides = getattr(config, "use_sliding_window", True) and (kinds is None or "sliding_attention" in kinds)
        if window and slides and window < length:
            raise LKGError(
                f"The backbone's sliding window is {window} tokens wide, and max_length is {length}: blocks would be "
                f"read through another window than it was trained with. Set max_length to {window} or less. {REMEDY}."
            )

    @torch.no_grad()
    def _moved_by_company(self, isolated: bool) -> float:
        """How far the states of two candidates, by their own length, are apart between the two orders of a list."""
        device, dtype = self.get_input_embeddings().weight.device, self.language_model.dtype
        generator = torch.Generator().manual_seed(0)
        words = min(1000, self.get_input_embeddings().num_embeddings)
        tokens = torch.randint(0, words, (8,), generator=generator).to(device)
        first, second = tokens[3:5], tokens[5:]
        candidates = torch.zeros(2, 2, 3, dtype=torch.long, device=device)
        mask = torch.zeros_like(candidates)
        for row, shown in enumerate(((first, second), (second, first))):
            for place, block in enumerate(shown):
                candidates[row, place, : len(block)], mask[row, place, : len(block)] = block, 1
        prefix, path = tokens[None, :3].expand(2, -1), torch.zeros(2, 1, 1, dtype=torch.long, device=device)
        none = torch.full((2, 2, 0), -1, device=device)
        parts = (prefix, torch.ones_like(prefix), candidates, mask, path, path, none)
        prompt = assemble_blocks(*parts, isolated=isolated)
        autocast = torch.autocast(device.type, dtype=dtype, enabled=dtype not in EXACT)
        with evaluating(self.language_model), autocast:
            states = self._states(prompt, None, isolated).float()
        rows = torch.arange(2, device=states.device)[:, None]
        ends = states[rows, prompt.ends[:, 1:].to(states.device)]
        if not ends.isfinite().all():
            raise ValueError("its states are not finite")
        moved = ends[0] - ends[1].flip(0)
        return float((moved.norm(dim=-1) / ends[0].norm(dim=-1).clamp(min=1e-12)).max())
