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
from .products import ROUND, linear, product, weight_gradient
from .sequential import NeuralRetriever, SequentialRetrieverModel


class _LinearRecurrence(torch.autograd.Function):
    """x_t = eigenvalue * x_{t-1} + enter(h_t) with x_{-1} = 0 over each history, and leave(x_t), where h are (C, K, D)
    chunks as [`~packing.Chunks`] lays them out, and x complex numbers, real and imaginary part beside each other.

    Both projections belong to it, so that the states can take the place of their inputs, and in the backward pass the
    adjoint that of its own: the scans need no memory.
    """

    @staticmethod
    def forward(ctx, hidden, enter, enter_bias, eigenvalues, leave, leave_bias, groups: tuple[int, ...]):
        states = product(hidden.flatten(0, 1), enter, enter_bias)
        powers = eigenvalues.expand(len(hidden), -1).cumprod(0)
        _scan(_complex(states, hidden), powers, groups)
        ctx.save_for_backward(hidden, states, enter, powers, leave)
        ctx.groups = groups
        return product(states, leave, leave_bias).view(*hidden.shape[:-1], len(leave))

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: torch.Tensor):
        hidden, states, enter, powers, leave = ctx.saved_tensors
        with torch.autocast(grad.device.type, enabled=False):  # states are float32, of whatever precision the rest is
            grad = grad.flatten(0, 1)
            # The adjoint is a_t = conj(eigenvalue) * a_{t+1} + grad_t. Its conjugate, scanned in its place, needs no
            # conjugate of anything large: of each weight the imaginary part changes its sign.
            sign = torch.ones_like(enter[:, 0])
            sign[1::2] = -1
            adjoint = product(grad, (leave * sign).T)
            across, found = _complex(adjoint, hidden), _complex(states, hidden)
            _scan_back(across, powers, ctx.groups)
            grad_eigenvalues = (across[1:] * found[:-1]).sum((0, 1))
            if len(ctx.groups) > 1:
                followed = torch.cat([before for before, _ in _neighbours(found[-1], ctx.groups)])
                grad_eigenvalues += (across[0, ctx.groups[0] : sum(ctx.groups)] * followed).sum(0)
            return (
                product(adjoint, (enter * sign[:, None]).T).view_as(hidden),
                weight_gradient(adjoint, hidden.flatten(0, 1)) * sign[:, None],
                adjoint.sum(0) * sign,
                grad_eigenvalues.conj_physical(),
                weight_gradient(grad, states),
                grad.sum(0),
                None,
            )


def _complex(pairs: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """A view of (C * K, 2 * H) as complex (C, K, H), C and K as in `hidden`."""
    return torch.view_as_complex(pairs.view(*hidden.shape[:-1], pairs.shape[-1] // 2, 2))


def _scan(states: torch.Tensor, powers: torch.Tensor, groups: tuple[int, ...]) -> None:
    """Puts the states in the place of their inputs, complex (C, K, H); `powers` (C, H) are those of the eigenvalues,
    from 1 to C.

    A scan in two levels: all chunks step together, then each receives what its predecessor carries over, first at its
    end, which the next one waits for. That is a few dozen steps of vector work in place of L, without the L log L work
    of a doubling scan. A chunk is filled up at its end, where nothing comes after, so no place has to be masked.
    """
    first, last = powers[0], powers[-1]
    for before, state in itertools.pairwise(states.unbind()):
        state.addcmul_(before, first)
    carried = []
    for before, end in _neighbours(states[-1], groups):
        carried.append(before)
        end.addcmul_(before, last)
    if carried and len(states) > 1:
        states[:-1, groups[0] : sum(groups)].addcmul_(torch.cat(carried), powers[:-1, None])


def _scan_back(adjoint: torch.Tensor, powers: torch.Tensor, groups: tuple[int, ...]) -> None:
    """As `_scan`, backwards in time."""
    first, last = powers[0], powers[-1]
    for after, state in itertools.pairwise(reversed(adjoint.unbind())):
        state.addcmul_(after, first)
    carried = torch.zeros_like(adjoint[0])
    neighbours, rooms = list(_neighbours(adjoint[0], groups)), list(_neighbours(carried, groups))
    for (start, after), (room, _) in zip(reversed(neighbours), reversed(rooms), strict=True):
        start.addcmul_(after, last)
        room.copy_(after)
    if neighbours and len(adjoint) > 1:
        adjoint[1:].addcmul_(carried, powers[:-1].flip(0)[:, None])


def _neighbours(chunks: torch.Tensor, groups: tuple[int, ...]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Views of chunks (K, ...) that have a successor, and of their successors, in order of time."""
    for before, after in itertools.pairwise(chunks[: sum(groups)].split(groups)):
        yield before if len(before) == len(after) else before[: len(after)], after


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
            enter, bias = self.input_projection.weight.float(), self.input_projection.bias.float()
            enter = _interleaved(enter.unflatten(0, (2, -1)) * scale[:, None])
            bias = _interleaved(bias.unflatten(0, (2, -1)) * scale)
            leave = _interleaved(self.output_projection.weight.float().T.unflatten(0, (2, -1))).T
            last = leave, self.output_projection.bias.float(), groups
            found = _LinearRecurrence.apply(hidden.float(), enter, bias, eigenvalues, *last)
            return found.to(self.output_projection.weight.dtype)


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
