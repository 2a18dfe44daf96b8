"""Causal self-attention of packed histories, each of which sees itself alone, with rotary positions.

With dropout on a CPU its gradient is written by hand: torch's quick kernel for a CPU knows none, and of many small
products autograd would copy every operand and its gradient.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

from .dropout import noise
from .packing import Groups, places_of
from .products import ROUND, linear


FILLED = 4 * ROUND  # a batch has a multiple of so many places: few lengths, which come again, for quick products


@dataclass(frozen=True)
class AttentionLayout:
    """How queries, keys and values of H heads lie for attention: of each group of [`~packing.Groups`] a block
    (3, H, n, l, head size), one block after the other; and their states, (H, n, l, head size).

    Args:
        shapes: n and l of each group.
        heads: H.
        rows (`long`, (R,)): for each row of the blocks, the one of the projection, (N', 3, H), where N' is N filled up
            to a multiple of `FILLED`.
        turns (complex, (N', 3, 1, head size / 2)): what the projection is multiplied by before. Queries and keys are
            turned by their places, and queries scaled besides.
        returns: their conjugates, which the gradient is multiplied by.
        places (`long`, (N * 3 * H,)): for each row of the projection of the N places, the one of the blocks.
        back (`long`, (N' * H,)): for each row of the packed states, the one of the states of the blocks.
        states (`long`, (R / 3,)): for each row of the states of the blocks, the packed one.
        fillers (`long`): rows of the states of the blocks that fill a shorter history up.
    """

    shapes: tuple[tuple[int, int], ...]
    heads: int
    rows: torch.Tensor
    turns: torch.Tensor
    returns: torch.Tensor
    places: torch.Tensor
    back: torch.Tensor
    states: torch.Tensor
    fillers: torch.Tensor

    @classmethod
    def of(cls, lengths: Sequence[int], heads: int, frequencies: torch.Tensor) -> AttentionLayout:
        groups, lengths = Groups.of(lengths), np.asarray(lengths, dtype=np.int64)
        sources, filled = groups.sources[:, None], -len(groups.slots) % FILLED
        places, back = _rows(groups, 3 * heads), _rows(groups, heads)
        rows, states = np.empty(places.size, np.int64), np.empty(back.size, np.int64)
        rows[places] = sources * 3 * heads + np.arange(3 * heads)
        states[back] = sources * heads + np.arange(heads)
        fillers = np.delete(back, groups.slots, axis=0)
        places, back = places[groups.slots], np.pad(back[groups.slots], ((0, filled), (0, 0)))
        at = np.pad(places_of(lengths), (0, filled))
        rows, places, back, states, fillers, at = (
            torch.from_numpy(found.ravel()).to(frequencies.device)
            for found in (rows, places, back, states, fillers, at)
        )
        angles = torch.arange(int(lengths.max(initial=0)) + 1, device=at.device)[:, None] * frequencies.float()
        keys = torch.polar(torch.ones_like(angles), angles)
        turns = torch.stack([keys * (2 * len(frequencies)) ** -0.5, keys, torch.ones_like(keys)], dim=1)[:, :, None]
        turns, returns = (table.index_select(0, at) for table in (turns, turns.conj_physical()))
        return cls(groups.shapes, heads, rows, turns, returns, places, back, states, fillers)

    def blocks(self, rows: torch.Tensor, parts: int) -> Iterator[torch.Tensor]:
        """Views of the rows (R * parts / 3, head size) of each block, (parts, H * n, l, head size)."""
        sizes = [parts * self.heads * size * length for size, length in self.shapes]
        for block, (size, length) in zip(rows.split(sizes), self.shapes, strict=True):
            yield block.view(parts, self.heads * size, length, -1)

    def squares(self, cells: torch.Tensor) -> list[torch.Tensor]:
        """Views of numbers that stand for the weights of all blocks, of each (H * n, l, l)."""
        found = cells.split([self.heads * size * length**2 for size, length in self.shapes])
        return [part.view(-1, length, length) for part, (_, length) in zip(found, self.shapes, strict=True)]


def _rows(groups: Groups, parts: int) -> np.ndarray:
    """Where blocks (parts, n, l), one after the other, have the slots of `groups`, (S, parts)."""
    cells = np.array([size * length for size, length in groups.shapes], dtype=np.int64)
    starts, cells = np.repeat(cells.cumsum() - cells, cells)[:, None], np.repeat(cells, cells)[:, None]
    return starts * (parts - 1) + np.arange(parts) * cells + np.arange(len(groups.sources))[:, None]


def attend(
    attention: nn.Module, hidden: torch.Tensor, layout: AttentionLayout, probability: float, training: bool
) -> torch.Tensor:
    """What the attention of a GPT-NeoX layer gives for packed histories (N', D)."""
    heads, half = layout.heads, layout.turns.shape[-1]
    # in the order (q, k, v), heads, and the two numbers that turn together beside each other; the weights are brought
    # into it, which are small
    weight, bias = (
        values.unflatten(0, (heads, 3, 2, half)).transpose(0, 1).transpose(2, 3).flatten(0, 3)
        for values in (attention.query_key_value.weight, attention.query_key_value.bias)
    )
    rows = linear(hidden, weight, bias).view(-1, 2 * half)
    if not layout.shapes:
        states = rows
    elif training and probability and rows.device.type == "cpu":
        with torch.autocast("cpu", enabled=False):
            states = _Attention.apply(rows.float(), layout, probability).to(rows.dtype)
    else:
        states = _attention(rows, layout, probability if training else 0.0)
    weight = attention.dense.weight.unflatten(1, (heads, 2, half)).transpose(2, 3).flatten(1)
    return linear(states.view(len(hidden), weight.shape[1]), weight, attention.dense.bias)


def _attention(rows: torch.Tensor, layout: AttentionLayout, probability: float) -> torch.Tensor:
    """Rows of the projection (N' * 3 * H, head size) -> packed states (N' * H, head size)."""
    turned = _turned(rows.float(), layout.turns).to(rows.dtype).index_select(0, layout.rows)
    states = [
        F.scaled_dot_product_attention(*block[:, None], dropout_p=probability, is_causal=True, scale=1.0).flatten(0, 2)
        for block in layout.blocks(turned, 3)
    ]
    return torch.cat(states).index_select(0, layout.back)


class _Attention(torch.autograd.Function):
    """`_attention` with dropout, on a CPU, in `float32`: its parts are written side by side, and nothing is copied."""

    @staticmethod
    def forward(ctx, rows: torch.Tensor, layout: AttentionLayout, probability: float) -> torch.Tensor:
        turned = _turned(rows, layout.turns).index_select(0, layout.rows)
        weights = rows.new_empty(sum(layout.heads * size * length**2 for size, length in layout.shapes))
        later = rows.new_full((layout.shapes[0][1],) * 2, -torch.inf).triu(1)
        projected = [block.unbind() for block in layout.blocks(turned, 3)]
        for (query, key, _), square in zip(projected, layout.squares(weights), strict=True):
            scores = torch.baddbmm(later[: key.shape[1], : key.shape[1]], query, key.mT)
            torch.softmax(scores, dim=-1, out=square)
        factors = noise(weights, probability)
        dropped, states = weights * factors, rows.new_empty(len(turned) // 3, rows.shape[1])
        parts = layout.squares(dropped), layout.blocks(states, 1)
        for (_, _, value), square, found in zip(projected, *parts, strict=True):
            torch.bmm(square, value, out=found[0])
        ctx.save_for_backward(turned, weights, factors, dropped)
        ctx.layout, ctx.shape = layout, rows.shape
        return states.index_select(0, layout.back)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: torch.Tensor):
        (turned, *cells), layout = ctx.saved_tensors, ctx.layout
        with torch.autocast("cpu", enabled=False):
            grad_states = grad.index_select(0, layout.states)
            grad_states.index_fill_(0, layout.fillers, 0)  # nobody reads what they see
            grad_turned = torch.empty_like(turned)
            parts = layout.blocks(turned, 3), layout.blocks(grad_turned, 3), layout.blocks(grad_states, 1)
            squares = map(layout.squares, cells)
            for block, grad_block, given, chances, kept, square in zip(*parts, *squares, strict=True):
                (query, key, value), (grad_query, grad_key, grad_value) = block.unbind(), grad_block.unbind()
                given = given[0]
                torch.bmm(square.mT, given, out=grad_value)
                error = torch.bmm(given, value.mT).mul_(kept)
                error = torch._softmax_backward_data(error, chances, -1, error.dtype)
                torch.bmm(error, key, out=grad_query)
                torch.bmm(error.mT, query, out=grad_key)
            # each row is read once but for fillers, whose gradient is 0: no sum is needed
            grad_rows = grad.new_zeros(ctx.shape)
            torch.index_select(grad_turned, 0, layout.places, out=grad_rows[: len(layout.places)])
            return _turned(grad_rows, layout.returns), None, None


def _turned(rows: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
    """Rows of the projection (N' * 3 * H, head size), pairs of real numbers, times complex `turns`."""
    pairs = torch.view_as_complex(rows.view(len(turns), 3, -1, turns.shape[-1], 2))
    return torch.view_as_real(pairs * turns).view_as(rows)
