"""LRURec, a first stage: a linear recurrent unit over a user's item history that scores every item.

Linear Recurrent Units for Sequential Recommendation (Yue et al., WSDM 2024, arXiv 2310.02367); the unit itself is from
Resurrecting Recurrent Neural Networks for Long Sequences (Orvieto et al., ICML 2023, arXiv 2303.06349).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable
from transformers import AutoModel

from .configuration_lrurec import LRURecConfig
from .dropout import add_dropped, dropout
from .packing import Chunks
from .products import ROUND, linear
from .sequential import NeuralRetriever, SequentialRetrieverModel


class _LinearRecurrence(torch.autograd.Function):
    """x_t = eigenvalue * x_{t-1} + u_t with x_{-1} = 0 over each history, in a complex (C, K, H) tensor of chunks as
    [`~packing.Chunks`] lays them out.

    Forward and backward are both one scan in two levels: all chunks step together, then each chunk receives what its
    predecessor carries over. That is a few dozen steps of vector work in place of L, without the L log L work of a
    doubling scan, and nothing but the states is kept for the backward pass. A chunk is filled up at its end, where
    nothing comes after, so no place has to be masked.
    """

    @staticmethod
    def forward(ctx, inputs: torch.Tensor, eigenvalues: torch.Tensor, groups: tuple[int, ...]) -> torch.Tensor:
        states, powers = torch.empty_like(inputs), eigenvalues.expand(len(inputs), -1).cumprod(0)
        states[0] = inputs[0]
        for step in range(1, len(inputs)):
            torch.addcmul(inputs[step], states[step - 1], eigenvalues, out=states[step])
        for before, chunks in _neighbours(groups):
            states[:, chunks].addcmul_(states[-1, before], powers[:, None])
        ctx.save_for_backward(states, eigenvalues, powers)
        ctx.groups = groups
        return states

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: torch.Tensor):
        states, eigenvalues, powers = ctx.saved_tensors
        # the adjoint runs backwards in time: a_t = conj(eigenvalue) * a_{t+1} + grad_t
        adjoint, factors = torch.empty_like(states), eigenvalues.conj_physical()
        powers = powers.flip(0).conj_physical()[:, None]
        adjoint[-1] = grad[-1]
        for step in range(len(states) - 2, -1, -1):
            torch.addcmul(grad[step], adjoint[step + 1], factors, out=adjoint[step])
        neighbours = list(_neighbours(ctx.groups))
        for before, chunks in reversed(neighbours):
            adjoint[:, before].addcmul_(adjoint[0, chunks], powers)
        states = states.conj_physical()
        grad_eigenvalues = (adjoint[1:] * states[:-1]).sum((0, 1))
        for before, chunks in neighbours:
            grad_eigenvalues += (adjoint[0, chunks] * states[-1, before]).sum(0)
        return adjoint, grad_eigenvalues, None


def _neighbours(groups: tuple[int, ...]) -> Iterator[tuple[slice, slice]]:
    """Chunks that have a successor, and their successors, in order of time."""
    start = 0
    for size, following in itertools.pairwise(groups):
        yield slice(start, start + following), slice(start + size, start + size + following)
        start += size


class LRURecRecurrence(nn.Module):
    """The linear recurrent unit (arXiv 2303.06349, equations 5 to 7). Complex numbers are kept as real pairs."""

    def __init__(self, config: LRURecConfig):
        super().__init__()
        width = 2 * config.hidden_size
        # eigenvalue = exp(-exp(decay_log) + i exp(angle_log)): inside the unit circle whatever the optimiser does
        self.decay_log = nn.Parameter(torch.empty(width))
        self.angle_log = nn.Parameter(torch.empty(width))
        self.input_scale_log = nn.Parameter(torch.empty(width))
        self.input_projection = nn.Linear(config.hidden_size, 2 * width)
        self.output_projection = nn.Linear(2 * width, config.hidden_size)

    def reset_eigenvalues(self, radius_min: float, radius_max: float) -> None:
        """Eigenvalues uniform on the ring, inputs scaled so that the state's variance does not depend on the
        radius."""
        radius_squared = torch.empty_like(self.decay_log).uniform_(radius_min**2, radius_max**2)
        angle = torch.empty_like(self.angle_log).uniform_(1e-4, 2 * math.pi)
        with torch.no_grad():
            self.decay_log.copy_((-0.5 * radius_squared.log()).log())
            self.angle_log.copy_(angle.log())
            self.input_scale_log.copy_(0.5 * torch.log1p(-radius_squared))

    def forward(self, hidden: torch.Tensor, groups: tuple[int, ...]) -> torch.Tensor:
        """(C, K, D), as [`~packing.Chunks`] lays them out, and its `groups` -> (C, K, D)."""
        with torch.autocast(hidden.device.type, enabled=False):  # long products of eigenvalues need float32
            eigenvalues = torch.polar(torch.exp(-torch.exp(self.decay_log.float())), torch.exp(self.angle_log.float()))
            scale = torch.exp(self.input_scale_log.float())
            # the small weights are brought into the order of complex numbers, and scaled, not the large states
            weight, bias = self.input_projection.weight.float(), self.input_projection.bias.float()
            weight = _interleaved(weight.unflatten(0, (2, -1)) * scale[:, None])
            inputs = linear(hidden.float(), weight, _interleaved(bias.unflatten(0, (2, -1)) * scale))
            inputs = torch.view_as_complex(inputs.unflatten(-1, (-1, 2)))
            states = torch.view_as_real(_LinearRecurrence.apply(inputs, eigenvalues, groups)).flatten(-2)
            weight = _interleaved(self.output_projection.weight.T.unflatten(0, (2, -1))).T
            return linear(states.to(weight.dtype), weight, self.output_projection.bias)


def _interleaved(pair: torch.Tensor) -> torch.Tensor:
    """Real parts, then imaginary ones, (2, H, ...) -> each beside its own, (2 * H, ...)."""
    return pair.transpose(0, 1).flatten(0, 1)


class LRURecBlock(nn.Module):
    def __init__(self, config: LRURecConfig):
        super().__init__()
        size = config.hidden_size
        self.recurrence = LRURecRecurrence(config)
        self.recurrence_norm = nn.LayerNorm(size)
        self.feed_forward_in = nn.Linear(size, 4 * size)
        self.feed_forward_out = nn.Linear(4 * size, size)
        self.feed_forward_norm = nn.LayerNorm(size)
        self.dropout = config.hidden_dropout_prob

    def forward(self, hidden: torch.Tensor, groups: tuple[int, ...]) -> torch.Tensor:
        drop = self.dropout, self.training
        hidden = self.recurrence_norm(add_dropped(hidden, self.recurrence(hidden, groups), *drop))
        inner = linear(hidden, self.feed_forward_in.weight, self.feed_forward_in.bias)
        update = linear(dropout(F.gelu(inner), *drop), self.feed_forward_out.weight, self.feed_forward_out.bias)
        return self.feed_forward_norm(add_dropped(hidden, update, *drop))


class LRURecForRetrieval(SequentialRetrieverModel):
    """Scores all items for a left-padded history of dense item ids."""

    config: LRURecConfig
    config_class = LRURecConfig
    base_model_prefix = "lrurec"

    def __init__(self, config: LRURecConfig):
        super().__init__(config)
        self.embedding_norm = nn.LayerNorm(config.hidden_size)
        self.blocks = nn.ModuleList([LRURecBlock(config) for _ in range(config.num_hidden_layers)])
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, LRURecRecurrence):
            module.reset_eigenvalues(self.config.radius_min, self.config.radius_max)
        else:
            super()._init_weights(module)

    def encode_packed(self, vectors: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
        # short chunks waste little, and their number is what the scan takes steps for
        chunks = Chunks.of(lengths, max(1, math.isqrt(max(lengths, default=0)) // 2), multiple=ROUND)
        slots = torch.from_numpy(chunks.slots).to(vectors.device)
        hidden = dropout(self.embedding_norm(vectors), self.config.hidden_dropout_prob, self.training)
        hidden = hidden.new_zeros(chunks.size * chunks.num_chunks, hidden.shape[-1]).index_copy(0, slots, hidden)
        hidden = hidden.unflatten(0, (chunks.size, chunks.num_chunks))
        for block in self.blocks:
            hidden = block(hidden, chunks.groups)
        return hidden.flatten(0, 1).index_select(0, slots)


LRURecRetriever = NeuralRetriever  # its name when there was no other
AutoModel.register(LRURecConfig, LRURecForRetrieval, exist_ok=True)
