"""Whether a backbone can read candidates as blocks: tried out on a few tokens when a ranker is built, because which
kernels and architectures can is not written down anywhere."""

from __future__ import annotations

import re

import torch
from torch import nn
from transformers.utils import logging

from ..utils.errors import LKGError
from .candidate_blocks import assemble_blocks
from .heads import evaluating


logger = logging.get_logger(__name__)

# how far states may be apart, by their own length, and still be called the same; half precision rounds
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-4}
HALF_TOLERANCE = 5e-2

REMEDY = (
    "Use candidate_attention='causal' (candidates then see each other), readout='letters' (as published, for large "
    "backbones), or another backbone"
)


class BackboneCheckMixin:
    """What a [`LlamaRecLKGForRanking`] with `readout="candidates"` asks of its backbone."""

    def check_reading(self) -> None:
        """Raise `LKGError` where the backbone would read a prompt otherwise than the readout needs it."""
        if self.language_model is None or self.config.readout != "candidates":
            return
        self._check_reach()
        isolated = self.config.candidate_attention == "isolated"
        name = type(self.language_model).__name__
        if any(weight.is_meta for weight in self.language_model.parameters()):
            return
        try:
            moved = self._moved_by_company(isolated)
        except (
            RuntimeError,
            ValueError,
            TypeError,
            AttributeError,
            IndexError,
            KeyError,
            NotImplementedError,
        ) as error:
            if getattr(self.language_model, "is_quantized", False):  # its kernels may not run where it lies now
                logger.warning(f"The quantized {name} could not be tried out where it lies ({error!r}).")
                return
            raise LKGError(
                f"The backbone {name} cannot be read at each candidate ({error!r}): with a mask of its own for each "
                f"token and given position ids it does not run. {REMEDY}."
            ) from error
        if isolated and moved > TOLERANCE.get(self.language_model.dtype, HALF_TOLERANCE):
            kernel = self.language_model.config._attn_implementation
            raise LKGError(
                f"The backbone {name} does not keep candidates apart: alone, in company and in another order the same "
                f"candidate's states are {moved:.1%} apart. Its attention kernel ({kernel!r}) does not take the mask, "
                "or its positions do not come from the position ids, or some of its layers read tokens one after the "
                f"other. Load it with attn_implementation='sdpa' or 'eager'. If that is not it: {REMEDY}."
            )

    def _check_reach(self) -> None:
        """Positions and windows that are too short for `max_length`."""
        config, length = self.language_model.config.get_text_config(), self.config.max_length
        inputs = self.get_input_embeddings()
        for name, part in self.language_model.named_modules():
            learned = isinstance(part, nn.Embedding) and part is not inputs and re.search(r"pos|wpe", name)
            if learned and part.num_embeddings < length:
                raise LKGError(
                    f"The backbone has learned positions for {part.num_embeddings} tokens ({name}), and max_length is "
                    f"{length}. Lower max_length."
                )
        kinds, window = getattr(config, "layer_types", None), getattr(config, "sliding_window", None)
        slides = getattr(config, "use_sliding_window", True) and (kinds is None or "sliding_attention" in kinds)
        if self.config.candidate_attention == "isolated" and window and slides and window < length:
            raise LKGError(
                f"The backbone's sliding window is {window} tokens wide, and max_length is {length}: blocks would be "
                f"read through another window than it was trained with. Set max_length to {window} or less. {REMEDY}."
            )

    @torch.no_grad()
    def _moved_by_company(self, isolated: bool) -> float:
        """How far the states of two candidates are apart between lists: both, both in the other order, each alone."""
        device = self.get_input_embeddings().weight.device
        generator = torch.Generator().manual_seed(0)
        words = min(1000, self.get_input_embeddings().num_embeddings)
        tokens = torch.randint(0, words, (12,), generator=generator).to(device)
        prefix, first, second = tokens[None, :5].expand(4, -1), tokens[5:8], tokens[8:12]
        candidates = torch.zeros(4, 2, 4, dtype=torch.long, device=device)
        mask = torch.zeros_like(candidates)
        for row, shown in enumerate(((first, second), (second, first), (first,), (second,))):
            for place, block in enumerate(shown):
                candidates[row, place, : len(block)], mask[row, place, : len(block)] = block, 1
        none = torch.zeros(4, 1, 1, dtype=torch.long, device=device)
        nothing = torch.full((4, 2, 0), -1, dtype=torch.long, device=device)
        prompt = assemble_blocks(
            prefix, torch.ones_like(prefix), candidates, mask, none, none, nothing, isolated=isolated
        )
        dtype = self.language_model.dtype
        autocast = torch.autocast(device.type, dtype=dtype, enabled=dtype in (torch.float16, torch.bfloat16))
        with evaluating(self.language_model), autocast:
            states = self._states(prompt, None, isolated).float()
        ends = states[torch.arange(4)[:, None], prompt.ends[:, 1:]]
        if not ends.isfinite().all():
            raise ValueError("its states are not finite")
        same = [(ends[0, 0], ends[1, 1]), (ends[0, 0], ends[2, 0]), (ends[0, 1], ends[1, 0]), (ends[0, 1], ends[3, 0])]
        return max(float((one - other).norm() / one.norm().clamp(min=1e-12)) for one, other in same)
