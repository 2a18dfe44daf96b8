"""LRURec, a first stage: a linear recurrent unit over a user's item history that scores every item.

Linear Recurrent Units for Sequential Recommendation (Yue et al., WSDM 2024, arXiv 2310.02367); the unit itself is from
Resurrecting Recurrent Neural Networks for Long Sequences (Orvieto et al., ICML 2023, arXiv 2303.06349).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoModel

from .configuration_lrurec import LRURecConfig
from .sequential import NeuralRetriever, SequentialRetrieverModel


class _LinearRecurrence(torch.autograd.Function):
    """x_t = eigenvalue * x_{t-1} + u_t with x_{-1} = 0, over dimension 1 of a complex (B, L, H) tensor.

    Forward and backward are both one scan in two levels: all chunks step together, then each chunk receives what its
    predecessors carry over. That is sqrt(L) + sqrt(L) small steps of vector work in place of L, without the L log L
    work of a doubling scan, and nothing but the states is kept for the backward pass.
    """

    @staticmethod
    def forward(ctx, inputs: torch.Tensor, eigenvalues: torch.Tensor) -> torch.Tensor:
        states = _scan(inputs, eigenvalues)
        ctx.save_for_backward(states, eigenvalues)
        return states

    @staticmethod
    def backward(ctx, grad: torch.Tensor):
        states, eigenvalues = ctx.saved_tensors
        # the adjoint runs backwards in time: a_t = conj(eigenvalue) * a_{t+1} + grad_t
        adjoint = _scan(grad.flip(1), eigenvalues.conj()).flip(1)
        grad_eigenvalues = (adjoint[:, 1:] * states[:, :-1].conj()).sum((0, 1))
        return adjoint, grad_eigenvalues


def _scan(inputs: torch.Tensor, eigenvalues: torch.Tensor) -> torch.Tensor:
    batch, length, width = inputs.shape
    chunk = max(1, math.isqrt(length))
    num_chunks = -(-length // chunk)
    states = inputs.new_zeros(batch, num_chunks * chunk, width)
    states[:, :length] = inputs
    states = states.view(batch, num_chunks, chunk, width)
    for step in range(1, chunk):
        states[:, :, step].addcmul_(states[:, :, step - 1], eigenvalues)
    powers = eigenvalues[None, :] ** torch.arange(1, chunk + 1, device=inputs.device)[:, None]
    for index in range(1, num_chunks):
        states[:, index].addcmul_(states[:, index - 1, -1:], powers)
    return states.view(batch, -1, width)[:, :length]


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

    def forward(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """(N, D), the N places where `mask` (B, L) is true, in its order -> (N, D)."""
        with torch.autocast(hidden.device.type, enabled=False):  # long products of eigenvalues need float32
            eigenvalues = torch.polar(torch.exp(-torch.exp(self.decay_log.float())), torch.exp(self.angle_log.float()))
            inputs = self.input_projection(hidden.to(self.input_projection.weight.dtype)).float()
            real, imaginary = inputs.chunk(2, dim=-1)
            scale = torch.exp(self.input_scale_log.float())
            inputs = _at(mask, torch.complex(real * scale, imaginary * scale))
            states = _LinearRecurrence.apply(inputs, eigenvalues)[mask]
            states = torch.cat([states.real, states.imag], dim=-1)
            return self.output_projection(states.to(self.output_projection.weight.dtype))


def _at(mask: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """(N, D) -> (B, L, D): the rows where `mask` (B, L) is true, in its order, and zeros elsewhere."""
    dense = rows.new_zeros(*mask.shape, rows.shape[-1])
    dense[mask] = rows
    return dense


class LRURecBlock(nn.Module):
    def __init__(self, config: LRURecConfig):
        super().__init__()
        size = config.hidden_size
        self.recurrence = LRURecRecurrence(config)
        self.recurrence_norm = nn.LayerNorm(size)
        self.feed_forward_in = nn.Linear(size, 4 * size)
        self.feed_forward_out = nn.Linear(4 * size, size)
        self.feed_forward_norm = nn.LayerNorm(size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        hidden = self.recurrence_norm(hidden + self.dropout(self.recurrence(hidden, mask)))
        inner = self.dropout(F.gelu(self.feed_forward_in(hidden)))
        return self.feed_forward_norm(hidden + self.dropout(self.feed_forward_out(inner)))


class LRURecForRetrieval(SequentialRetrieverModel):
    """Scores all items for a left-padded history of dense item ids."""

    config: LRURecConfig
    config_class = LRURecConfig
    base_model_prefix = "lrurec"

    def __init__(self, config: LRURecConfig):
        super().__init__(config)
        self.embedding_norm = nn.LayerNorm(config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.blocks = nn.ModuleList([LRURecBlock(config) for _ in range(config.num_hidden_layers)])
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, LRURecRecurrence):
            module.reset_eigenvalues(self.config.radius_min, self.config.radius_max)
        else:
            super()._init_weights(module)

    def encode_vectors(self, vectors: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        # padding is left out of all but the recurrence: in a batch of short histories it is most of the places
        hidden = self.dropout(self.embedding_norm(vectors[mask]))
        for block in self.blocks:
            hidden = block(hidden, mask)
        return _at(mask, hidden)


LRURecRetriever = NeuralRetriever  # its name when there was no other
AutoModel.register(LRURecConfig, LRURecForRetrieval, exist_ok=True)
