"""LRURec, the first stage: a linear recurrent unit over a user's item history that scores every item.

Linear Recurrent Units for Sequential Recommendation (Yue et al., WSDM 2024, arXiv 2310.02367); the unit itself is from
Resurrecting Recurrent Neural Networks for Long Sequences (Orvieto et al., ICML 2023, arXiv 2303.06349).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoModel, PreTrainedModel
from transformers.utils import ModelOutput

from ..data.schema import PADDING_ITEM
from ..hub.layout import CONFIG_FILE, RETRIEVER_FOLDER
from ..utils.hub import fetch
from .base import pad_left
from .configuration_lrurec import LRURecConfig


@dataclass
class RetrievalOutput(ModelOutput):
    """
    Args:
        loss (`torch.Tensor`, shape (), optional): mean cross-entropy over all items and labelled positions.
        logits (`torch.Tensor`, shape (B, num_items + 1), optional): scores of all items after the last position; the
            column of the padding item is -inf.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None


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
        """(B, L, D) and (B, L) -> (B, L, D). Padding contributes nothing to the state."""
        with torch.autocast(hidden.device.type, enabled=False):  # long products of eigenvalues need float32
            eigenvalues = torch.polar(torch.exp(-torch.exp(self.decay_log.float())), torch.exp(self.angle_log.float()))
            inputs = self.input_projection(hidden.to(self.input_projection.weight.dtype)).float()
            real, imaginary = (inputs * mask[..., None]).chunk(2, dim=-1)
            scale = torch.exp(self.input_scale_log.float())
            states = _LinearRecurrence.apply(torch.complex(real * scale, imaginary * scale), eigenvalues)
            states = torch.cat([states.real, states.imag], dim=-1)
            return self.output_projection(states.to(self.output_projection.weight.dtype))


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


class LRURecForRetrieval(PreTrainedModel):
    """Scores all items for a left-padded history of dense item ids."""

    config: LRURecConfig
    config_class = LRURecConfig
    base_model_prefix = "lrurec"
    main_input_name = "item_ids"
    accepts_loss_kwargs = False

    def __init__(self, config: LRURecConfig):
        super().__init__(config)
        self.item_embedding = nn.Embedding(config.num_items + 1, config.hidden_size, padding_idx=PADDING_ITEM)
        self.item_bias = nn.Parameter(torch.zeros(config.num_items + 1))
        self.embedding_norm = nn.LayerNorm(config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.blocks = nn.ModuleList([LRURecBlock(config) for _ in range(config.num_hidden_layers)])
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        std = self.config.initializer_range
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
            if isinstance(module, nn.Embedding):
                module.weight[PADDING_ITEM].zero_()
            elif module.bias is not None:
                module.bias.zero_()
        elif isinstance(module, nn.LayerNorm):
            module.weight.fill_(1.0)
            module.bias.zero_()
        elif isinstance(module, LRURecRecurrence):
            module.reset_eigenvalues(self.config.radius_min, self.config.radius_max)
        elif isinstance(module, LRURecForRetrieval):
            module.item_bias.zero_()

    def encode(self, item_ids: torch.Tensor) -> torch.Tensor:
        """(B, L) dense items, left-padded with 0 -> (B, L, D)."""
        mask = item_ids != PADDING_ITEM
        hidden = self.dropout(self.embedding_norm(self.item_embedding(item_ids)))
        for block in self.blocks:
            hidden = block(hidden, mask)
        return hidden

    def forward(self, item_ids: torch.Tensor, labels: torch.Tensor | None = None) -> RetrievalOutput:
        """
        Args:
            item_ids (`torch.Tensor` of `long`, shape (B, L)): dense items, oldest first, left-padded with 0.
            labels (`torch.Tensor` of `long`, shape (B, L), optional): the next item at each position, 0 where there
                is none.

        Returns:
            [`RetrievalOutput`] with the loss when labels are given, else with the scores after the last position.
        """
        hidden = self.encode(item_ids)
        if labels is not None:
            labelled = labels != PADDING_ITEM
            return RetrievalOutput(
                loss=F.cross_entropy(self._score(hidden[labelled])[:, 1:].float(), labels[labelled] - 1)
            )
        logits = self._score(hidden[:, -1]).float()
        logits[:, PADDING_ITEM] = -torch.inf
        return RetrievalOutput(logits=logits)

    def _score(self, hidden: torch.Tensor) -> torch.Tensor:
        return F.linear(hidden, self.item_embedding.weight, self.item_bias.to(hidden.dtype))


class LRURecRetriever:
    """LRURec behind the `Retriever` border: padding, batching and device are its business."""

    def __init__(self, model: LRURecForRetrieval, batch_size: int = 128):
        self.model = model
        self.batch_size = batch_size
        self.num_items = model.config.num_items

    @classmethod
    def from_repository(cls, name: str, hub: dict[str, Any]) -> LRURecRetriever | None:
        """The retriever of a saved folder or repository, where it holds one; `hub` as for `utils.hub.fetch`."""
        if fetch(name, f"{RETRIEVER_FOLDER}/{CONFIG_FILE}", optional=True, **hub) is None:
            return None
        place = {**hub, "subfolder": "/".join(filter(None, (hub.get("subfolder"), RETRIEVER_FOLDER)))}
        return cls(LRURecForRetrieval.from_pretrained(name, **place))

    @property
    def catalogue(self) -> str | None:
        """Fingerprint of the items it was trained to find, where it is known."""
        return self.model.config.catalogue

    @torch.inference_mode()
    def score(self, histories: Sequence[np.ndarray]) -> np.ndarray:
        training = self.model.training
        self.model.eval()
        scores = np.empty((len(histories), self.num_items + 1), dtype=np.float32)
        order = np.argsort([len(history) for history in histories], kind="stable")  # short with short: less padding
        for start in range(0, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            batch = pad_left([histories[row] for row in rows], self.model.config.max_length).to(self.model.device)
            scores[rows] = self.model(batch).logits.float().cpu().numpy()
        self.model.train(training)
        return scores


AutoModel.register(LRURecConfig, LRURecForRetrieval, exist_ok=True)
