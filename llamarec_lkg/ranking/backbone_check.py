"""Whether a backbone can be read as a configuration wants it, candidates as blocks and paths through their gate: tried
out on a few tokens when a ranker is built, because which kernels and architectures can is written down nowhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from typing import TYPE_CHECKING, Any

import torch
from transformers.utils import logging

from ..data.schema import CO_RATED
from ..utils.errors import LKGError
from .candidate_blocks import assemble_blocks
from .configuration_llamarec_lkg import CHOICES, LlamaRecLKGConfig
from .heads import evaluating
from .prompt_assembly import AssembledPrompt


if TYPE_CHECKING:
    from .processing_llamarec_lkg import LlamaRecLKGProcessor


logger = logging.get_logger(__name__)

# how far states may be apart and still be called the same; half precision rounds
EXACT = (torch.float32, torch.float64)
TOLERANCE, HALF_TOLERANCE = 1e-4, 5e-2
# the same where only what stands beside is another, of the same length: hardly anything is rounded otherwise
BESIDE_ANOTHER = 1e-3

# one behind the other without padding (packed_prompts.py), or those that begin alike in a row (shared_rows.py)
LAYOUTS = ("packed", "shared rows")

REMEDY = "readout='letters' (as published, for large backbones), or another backbone"
ISOLATED_REMEDY = f"candidate_attention='causal' (candidates then see each other), {REMEDY}"


class BackboneCheckMixin:
    """What a [`LlamaRecLKGForRanking`] asks of its backbone."""

    def check_reading(self, config: LlamaRecLKGConfig | None = None) -> None:
        """Raise `LKGError` where the backbone would read a prompt otherwise than a configuration (by default that in
        use) needs it; warn where it would read the end of a long one badly."""
        if self.language_model is None:
            return
        in_use, self.config = self.config, config or self.config
        self._layouts.pop(self._how_it_reads, None)
        try:
            self._check_positions()
            self._check_tokens(max([*self.config.prior_input_ids, *self.config.letter_token_ids], default=0))
            if any(weight.is_meta for weight in self.language_model.parameters()):
                return
            if self._check_kernel() and self.get_input_embeddings().weight.device.type == "cpu":
                return  # it may not run there
            if self._is_quantized and self.get_input_embeddings().weight.device.type == "cpu":
                return  # bitsandbytes would pack the weights for inference, and no gradient passes those
            if self.config.readout == "candidates":
                self._check_blocks(self.config.candidate_attention == "isolated")
            self._check_gate()
            self._try_layouts()
        finally:
            self.config = in_use

    def check_processor(self, processor: LlamaRecLKGProcessor) -> None:
        """Raise `LKGError` where what a processor writes is not what this ranker, with the adapter in use, reads."""
        processor.check_model(self.config)
        if self.language_model is not None:
            self._check_tokens(processor.highest_token)

    def set_attn_implementation(self, *args: Any, **kwargs: Any) -> None:
        """As upstream; raises `LKGError`, and keeps the kernel, where the backbone cannot be read with the new one."""
        before = None if self.language_model is None else self._kernel
        super().set_attn_implementation(*args, **kwargs)
        try:
            self.check_reading()
        except LKGError:
            super().set_attn_implementation(before)
            raise

    @property
    def _is_quantized(self) -> bool:
        # by itself, or with the whole ranker
        return any(getattr(model, "is_quantized", False) for model in (self.language_model, self))

    @property
    def _kernel(self) -> str:
        return self.language_model.config._attn_implementation

    @property
    def _tolerance(self) -> float:
        return TOLERANCE if self.language_model.dtype in EXACT else HALF_TOLERANCE

    def _layout(self, device: torch.device) -> str:
        """How the prompts of a batch are laid out on a device: one of `LAYOUTS`, or "padded", each by itself. On a GPU
        the attention of many small pieces would wait for their launch, and a compiled backbone be compiled for each
        batch."""
        suited = LAYOUTS if device.type == "cpu" and not self.compiled else LAYOUTS[1:]
        if self._kernel != "sdpa":
            suited = ()
        return next((one for one in suited if one in self._layouts.get(self._how_it_reads, ())), "padded")

    @property
    def _how_it_reads(self) -> tuple[Any, ...]:
        """What tenants of one backbone may do differently, as far as it decides how they can be laid out."""
        config, narrow = self.config, self._narrow_window() is not None
        return config.readout, config.candidate_attention, config.use_path_gate, config.path_gate, narrow

    @torch.no_grad()
    def _try_layouts(self) -> None:
        """Finds out in which of `LAYOUTS` the backbone reads prompts as it reads padded ones, and what is read of one
        stays when the one before it changes: some layers carry over less than half precision rounds."""
        how, device, works = self._how_it_reads, self.get_input_embeddings().weight.device, []
        if self._kernel != "sdpa" or self._narrow_window():
            return
        with self._trying_out():
            padded, other_padded = self._read_a_little(None), self._read_a_little(None, other=1)
            # experts are read for all prompts at once, however these are laid out, and round with how many tokens
            bound = max(BESIDE_ANOTHER, 4 * _distance(padded[1:], other_padded[1:]))
            for layout in LAYOUTS if device.type == "cpu" else LAYOUTS[1:]:
                self._layouts[how] = [layout]
                try:
                    found, other_found = self._read_a_little(None), self._read_a_little(None, other=1)
                except Exception as error:  # whatever an architecture does with a mask that it did not expect
                    logger.debug(f"Prompts are not read {layout}: {error!r}")
                    continue
                alike = _distance(found, padded) <= self._tolerance
                if alike and _distance(found[1:], other_found[1:]) <= bound:
                    works.append(layout)
        self._layouts[how] = works

    def _check_positions(self) -> None:
        """Positions that are fewer than `max_length`. Rotary ones go on, but nobody has trained what lies beyond."""
        backbone, length = self.language_model.config.get_text_config(), self.config.max_length
        known = getattr(backbone, "max_position_embeddings", None) or getattr(backbone, "max_seq_len", None) or 0
        if not 0 < known < length:
            return
        found = f"The backbone has positions for {known} tokens, and max_length is {length}"
        if not getattr(backbone, "rope_parameters", None):
            raise LKGError(f"{found}. Set max_length to {known} or less.")
        logger.warning(f"{found}: it may read the end of longer prompts badly. Set max_length to {known} or less.")

    def _check_tokens(self, highest: int) -> None:
        """Tokens that the backbone does not know."""
        rows = len(self.get_input_embeddings().weight)
        if highest >= rows:
            raise LKGError(
                f"The processor can write token {highest}, and the backbone has embeddings of tokens 0 to {rows - 1}: "
                "the tokenizer is another model's, or has grown. Give the processor the backbone's own tokenizer; or "
                "`backbone.resize_token_embeddings(len(tokenizer))`, save both to a folder and build on that."
            )

    def _check_kernel(self) -> bool:
        """Whether the attention kernel is one that takes neither a mask of ours nor a bias on keys: nothing tries out
        what it would do with them."""
        config, kernel = self.config, self._kernel
        if not any(name in kernel for name in ("flash", "flex")):
            return False
        if config.readout == "candidates" and config.candidate_attention == "isolated":
            raise LKGError(
                f"The attention kernel {kernel!r} takes no mask made by others, and isolated candidates need one. "
                f"Load the backbone with attn_implementation='sdpa', or use {ISOLATED_REMEDY}."
            )
        if self._writes_gated_paths and config.path_gate == "attention_bias":
            raise LKGError(
                f"path_gate='attention_bias' does not work with the attention kernel {kernel!r}, which takes no bias. "
                "To mend it, load the backbone with attn_implementation='sdpa', or set path_gate='straight_through', "
                "or set use_path_gate=False."
            )
        return True

    @property
    def _writes_gated_paths(self) -> bool:
        config = self.config
        return bool(config.use_path_gate and config.num_paths and not {CO_RATED}.issuperset(config.relations))

    def _check_blocks(self, isolated: bool) -> None:
        """What a candidate's state needs: it can be read at all and, of an isolated one, does not depend on others."""
        name, kernel = type(self.language_model).__name__, self._kernel
        # what takes no mask of ours can be loaded with one of those that do
        remedy = "Use " if kernel in ("sdpa", "eager") else "Load it with attn_implementation='sdpa', or use "
        remedy += ISOLATED_REMEDY if isolated else REMEDY
        if isolated:
            self._check_windows()
        try:
            by_place, by_company = self._moved(isolated)
        except Exception as error:  # whatever an architecture does with a mask that it did not expect
            if self._is_quantized:  # its kernels may not run where it lies now
                logger.warning(f"The quantized {name} could not be tried out where it lies ({error!r}).")
                return
            raise LKGError(
                f"The backbone {name} cannot be read at each candidate: with a mask and position ids given for each "
                f"token it does not run ({error!r}). {remedy}."
            ) from error
        if isolated and (by_place > self._tolerance or by_company > BESIDE_ANOTHER):
            raise LKGError(
                f"The backbone {name} does not keep candidates apart: a candidate's state moves by "
                f"{max(by_place, by_company):.1%} with its place and those before it. Its attention kernel "
                f"({kernel!r}) does not take the mask, or its positions do not come from the position ids, or some of "
                f"its layers read tokens one after the other. {remedy}."
            )

    def _check_gate(self) -> None:
        """What the path gate needs: at its start it changes nothing, and a gradient reaches it, so that it moves."""
        config, name = self.config, type(self.language_model).__name__
        if not self._writes_gated_paths or torch.is_inference_mode_enabled():
            return
        if (fault := self._gate_fault()) is None:
            return
        kernel = self._kernel
        found = f"path_gate={config.path_gate!r} does not work on {name} with the attention kernel {kernel!r}: {fault}"
        if self._is_quantized:
            logger.warning(f"{found}. It is quantized: perhaps it can be read so on another device.")
            return
        remedies = []
        if config.path_gate == "attention_bias" and kernel != "sdpa" and self._gate_works("sdpa"):
            remedies.append("load it with attn_implementation='sdpa'")
        for other in CHOICES["path_gate"]:
            if other != config.path_gate and self._gate_works(kernel, other):
                remedies.append(f"set path_gate={other!r}")
        raise LKGError(f"{found}. To mend it, {', or '.join([*remedies, 'set use_path_gate=False'])}.")

    def _gate_works(self, kernel: str, path_gate: str | None = None) -> bool:
        """Whether the gate would work with another kernel, or another kind of gate."""
        in_use, before = self.config, self._kernel
        self.config = copy(in_use)
        self.config.path_gate = path_gate or in_use.path_gate
        try:
            self.language_model.set_attn_implementation(kernel)
            return self._gate_fault() is None
        except (ValueError, ImportError):  # the architecture has no such kernel
            return False
        finally:
            self.config = in_use
            self.language_model.set_attn_implementation(before)

    def _gate_fault(self) -> str | None:
        """What is wrong with the gate; None if nothing is."""
        gate = torch.zeros(1, 2, device=self.get_input_embeddings().weight.device, requires_grad=True)
        try:
            with torch.enable_grad(), self._trying_out():
                plain, gated = self._read_a_little(None), self._read_a_little(gate)
                # by chance: a sum, or one of squares, is the same after any normalisation
                weights = torch.randn(gated.shape, generator=torch.Generator().manual_seed(0)).to(gated.device)
                value = (gated * weights).sum() + 0 * gate.sum()
                (gradient,) = torch.autograd.grad(value, gate)
        except Exception as error:  # whatever an architecture does with inputs that it did not expect
            return f"it does not run ({error!r})"
        if not gradient.any():
            return "the gate changes nothing, and no gradient reaches it"
        moved = _distance(gated.detach(), plain.detach())
        return f"what is read moves by {moved:.1%} while all gates are 1" if moved > self._tolerance else None

    def _read_a_little(self, gate: torch.Tensor | None, other: int = 0) -> torch.Tensor:
        """What is read of two rows of a few tokens, with two paths among them: (2, N), or of two candidates
        (2, 2, N), in float32. The rows begin alike, and the second, which is shorter, goes on with a single token at
        whose end it is read. `gate` (1, 2): what opens each path, its score with letters, else the logarithm of its
        gate; None is no gate. With each `other` the first row goes on otherwise."""
        tokens = self._few_tokens(15 + 12)
        others = tokens[15 + 6 * other :]
        gate = None if gate is None else gate.expand(2, -1)
        if self.config.readout == "letters":
            ranks = torch.tensor([*[-1] * 9, 0, 0, 1, 1, -1, -1], device=tokens.device)
            ranks = torch.stack([ranks, ranks.roll(1)])
            tokens = torch.stack([torch.cat([tokens[:13], others[:2]]), tokens[:15].roll(1)])
            mask = torch.ones_like(tokens)
            mask[1, 0] = 0
            scores = torch.zeros(2, 0, device=tokens.device) if gate is None else gate
            return self._letter_logits(AssembledPrompt(tokens, mask, ranks), scores, self.config.num_candidates)
        tokens = torch.stack([torch.cat([tokens[:9], others[:6]]), tokens[:15]])
        mask = torch.ones_like(tokens)
        mask[1, -1] = 0
        parts = (tokens, mask)
        prefix, titles = [part[:, :9] for part in parts], [part[:, 9:11, None] for part in parts]
        paths = [part[:, 11:].reshape(2, 2, 2) for part in parts]
        selected = torch.tensor([[-1, -1], [0, 1]], device=tokens.device).expand(2, -1, -1)
        isolated = self.config.candidate_attention == "isolated"
        prompt = assemble_blocks(*prefix, *titles, *paths, selected, isolated=isolated)
        return self._end_states(prompt, gate, isolated)[:, 1:].float()

    @contextmanager
    def warned_of_change(self, cause: str) -> Iterator[None]:
        """After the block, warn where the backbone says other things than before it, by more than rounding."""
        if self._is_quantized or any(weight.is_meta for weight in self.language_model.parameters()):
            yield
            return
        with torch.no_grad(), self._trying_out():
            before = self._read_a_little(None)
        yield
        with torch.no_grad(), self._trying_out():
            moved = _distance(self._read_a_little(None), before)
        if not moved <= self._tolerance:
            logger.warning(f"{cause} has moved what the backbone says by {moved:.1%}: do not save it. Load it again.")

    def _check_windows(self) -> None:
        """Layers that see only the last tokens: kernels leave that to whoever makes the mask."""
        if "local" in getattr(self.language_model.config.get_text_config(), "attention_layers", ()):
            raise LKGError(
                f"The backbone has local layers, which count tokens and not positions. Use {ISOLATED_REMEDY}."
            )
        if window := self._narrow_window():
            raise LKGError(
                f"The backbone's sliding window is {window} tokens wide, and max_length is {self.config.max_length}: "
                "blocks would be read through another window than it was trained with. Set max_length to "
                f"{window} or less, or use {ISOLATED_REMEDY}."
            )

    def _narrow_window(self) -> int | None:
        """How many tokens its layers see that do not see a whole prompt; None where all do."""
        config = self.language_model.config.get_text_config()
        kinds, window = getattr(config, "layer_types", None), getattr(config, "sliding_window", None)
        slides = getattr(config, "use_sliding_window", True) and (kinds is None or "sliding_attention" in kinds)
        if "local" in getattr(config, "attention_layers", ()):
            window, slides = config.window_size, True
        if "chunked_attention" in (kinds or ()):
            window, slides = config.attention_chunk_size, True
        return window if window and slides and window < self.config.max_length else None

    @torch.no_grad()
    def _moved(self, isolated: bool) -> tuple[float, float]:
        """How far the states of two candidates, by their own length, are apart between the two orders of a list, and
        that of one, which is a single token, between two lists with another of the same length before it."""
        tokens = self._few_tokens(8)
        device = tokens.device
        first, second, third = tokens[3:5], tokens[5:6], tokens[6:]
        candidates = torch.zeros(3, 2, 2, dtype=torch.long, device=device)
        mask = torch.zeros_like(candidates)
        for row, shown in enumerate(((first, second), (second, first), (third, second))):
            for place, block in enumerate(shown):
                candidates[row, place, : len(block)], mask[row, place, : len(block)] = block, 1
        prefix, path = tokens[None, :3].expand(3, -1), torch.zeros(3, 1, 1, dtype=torch.long, device=device)
        none = torch.full((3, 2, 0), -1, device=device)
        parts = (prefix, torch.ones_like(prefix), candidates, mask, path, path, none)
        prompt = assemble_blocks(*parts, isolated=isolated)
        with self._trying_out():
            ends = self._end_states(prompt, None, isolated)[:, 1:].float()
        if not ends.isfinite().all():
            raise ValueError("its states are not finite")
        return _distance(ends[0], ends[1].flip(0)), _distance(ends[0, 1:], ends[2, 1:])

    def _few_tokens(self, count: int) -> torch.Tensor:
        """Tokens by chance, the same each time, (count,)."""
        words = self.get_input_embeddings().weight
        generator = torch.Generator().manual_seed(0)
        return torch.randint(0, min(1000, len(words)), (count,), generator=generator).to(words.device)

    @contextmanager
    def _trying_out(self) -> Iterator[None]:
        """Inside, the backbone computes as in evaluation."""
        device, dtype = self.get_input_embeddings().weight.device, self.language_model.dtype
        autocast = torch.autocast(device.type, dtype=dtype, enabled=dtype not in EXACT)
        with evaluating(self.language_model), autocast:
            yield


def _distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """How far vectors are apart, as a share of their length; the most of all."""
    return float(((one - other).norm(dim=-1) / one.norm(dim=-1).clamp(min=1e-12)).max())
