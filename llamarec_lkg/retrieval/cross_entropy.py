"""Cross-entropy over a whole catalogue in bounded memory.

The scores of a batch over 100,000 items are gigabytes, and their gradient as much again. Here a block of positions is
scored, its loss and its gradient are taken at once, and its scores are forgotten: nothing is computed twice, and a
block that fits the processor's cache is faster than one large product.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from .products import ROUND, add_product, is_quick, product


SCORES_AT_ONCE = {"cpu": 2**22, "cuda": 2**27}  # numbers in a block
ROWS_AT_ONCE = {"cpu": 768}  # positions in it, at most


def catalogue_cross_entropy(
    hidden: torch.Tensor, vectors: torch.Tensor, bias: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    """Mean of -log softmax(hidden @ vectors.T + bias)[label], a number of `float32`.

    Args:
        hidden (N, D), vectors (I, D), bias (I,): what scores are made of. A bias of -inf leaves an item out.
        labels (`long`, (N,)): rows of `vectors`.
    """
    return _CrossEntropy.apply(hidden, vectors, bias, labels, _rows(hidden, vectors))


def sampled_cross_entropy(
    hidden: torch.Tensor, vectors: torch.Tensor, bias: torch.Tensor, own: torch.Tensor, hits: torch.Tensor
) -> torch.Tensor:
    """Mean of -log (exp(own) / (exp(own) + sum of exp(hidden @ vectors.T + bias) but for the target)), a number of
    `float32`: the cross-entropy over a catalogue of which S items are a sample.

    Where a bias contains log(times drawn / times expected), the sum is, in the mean of many samples, that of the whole
    catalogue.

    Args:
        hidden (N, D), vectors (S, D), bias (S,): what scores of the sample are made of. An item is in it once.
        own (N,): scores of the targets.
        hits (`long`, (N,)): where in the sample the target is, -1 where it is not.
    """
    return _SampledCrossEntropy.apply(hidden, vectors, bias, own, hits, _rows(hidden, vectors))


def _rows(hidden: torch.Tensor, vectors: torch.Tensor) -> int:
    """Positions in a block."""
    kind = hidden.device.type
    rows = max(1, SCORES_AT_ONCE.get(kind, SCORES_AT_ONCE["cpu"]) // max(1, len(vectors)))
    rows = rows // ROUND * ROUND or rows  # a quick product's
    return max(1, min(rows, len(hidden), ROWS_AT_ONCE.get(kind, rows)))


class _Blocks:
    """Scores of all items for N positions, block by block, and the gradients that errors of the scores give.

    MKL copies a bias for every position before a product starts. So where it multiplies, the bias is one more number
    of each vector, beside a 1 of each state: a seventh less time, for a copy of the vectors no larger than a block.

    Args:
        hidden (N, D), vectors (I, D), bias (I,): what scores are made of.
        rows: positions in a block.
    """

    def __init__(self, hidden: torch.Tensor, vectors: torch.Tensor, bias: torch.Tensor, rows: int):
        self.rows, self.vectors = rows, vectors
        self.items, self.bias, self.states = vectors, bias.to(vectors.dtype), hidden.to(vectors.dtype)
        # a product of less than full precision would round the bias
        exact = vectors.dtype == torch.float32 and torch.get_float32_matmul_precision() == "highest"
        by_mkl = vectors.device.type == "cpu" and not is_quick(ROUND, self.states, vectors)
        self.joined = exact and by_mkl and rows >= vectors.shape[1]
        if self.joined:
            self.states = F.pad(self.states, (0, 1), value=1.0)
            self.items = torch.cat([vectors, self.bias[:, None]], dim=1)
        # room that is asked for again and again is cleared again and again: each block fills it anew
        self.room = vectors.new_empty(rows, len(vectors))
        self.grad_hidden = torch.zeros_like(hidden)
        # vectors are the columns of their gradient: its products are a third quicker than with rows
        self.grad_items, self.grad_bias = _zeros(self.items.T), None if self.joined else _zeros(bias)

    def scores(self, start: int) -> torch.Tensor:
        """Of the block from position `start` on, `float32`, to be written over: the next block takes their room."""
        states = self.states[start : start + self.rows]
        if self.joined:
            return torch.mm(states, self.items.T, out=self.room[: len(states)])
        if is_quick(len(states), states, self.items):
            return product(states, self.items, self.bias)
        return torch.addmm(self.bias, states, self.items.T, out=self.room[: len(states)]).float()

    def learn(self, start: int, error: torch.Tensor) -> None:
        """Takes in the gradient of the block's scores."""
        if not self.joined:
            self.grad_bias += error.sum(0)
        error, part = error.to(self.vectors.dtype), slice(start, start + self.rows)
        self.grad_hidden[part] = product(error, self.vectors.T)
        add_product(self.grad_items, self.states[part], error)

    def gradients(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Of `hidden`, `vectors` and `bias`."""
        if self.joined:
            return self.grad_hidden, self.grad_items[:-1].T, self.grad_items[-1]
        return self.grad_hidden, self.grad_items.T, self.grad_bias


def _zeros(like: torch.Tensor) -> torch.Tensor:
    """For a gradient that is summed up."""
    return torch.zeros(like.shape, dtype=torch.float32, device=like.device)


class _Learned(torch.autograd.Function):
    """A loss whose gradients were taken with it: its forward saves them, and what types they come back in."""

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        gradients = (grad * found for found in ctx.saved_tensors)
        return *(found.to(dtype) for found, dtype in zip(gradients, ctx.dtypes, strict=True)), None, None


class _CrossEntropy(_Learned):
    @staticmethod
    def forward(ctx, hidden, vectors, bias, labels, rows):
        learns = any(ctx.needs_input_grad[:3])
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        with torch.autocast(hidden.device.type, enabled=False):
            blocks = _Blocks(hidden, vectors, bias, rows)
            for start in range(0, len(labels), rows):
                targets, scores = labels[start : start + rows, None], blocks.scores(start)
                total += (scores.amax(1) - scores.gather(1, targets)[:, 0]).sum()
                error = torch.softmax(scores, dim=-1, out=scores)  # torch's fastest exponential
                # the logarithm of their sum by the likeliest item, whose chance is never too small to have one
                total -= error.amax(1).log().sum()
                if learns:
                    blocks.learn(start, error.scatter_add_(1, targets, -torch.ones_like(error[:, :1])))
        count = max(1, len(labels))
        if learns:
            ctx.save_for_backward(*(found / count for found in blocks.gradients()))
            ctx.dtypes = hidden.dtype, vectors.dtype, bias.dtype
        return total / count


class _SampledCrossEntropy(_Learned):
    @staticmethod
    def forward(ctx, hidden, vectors, bias, own, hits, rows):
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        with torch.autocast(hidden.device.type, enabled=False):
            blocks, grad_own = _Blocks(hidden, vectors, bias, rows), _zeros(own)
            for start in range(0, len(hits), rows):
                part, scores = slice(start, start + rows), blocks.scores(start)
                hit = hits[part]
                found = (hit >= 0).nonzero()[:, 0]
                scores[found, hit[found]] = torch.finfo(scores.dtype).min
                most = scores.amax(1)
                error = torch.softmax(scores, dim=-1, out=scores)
                above = most - error.amax(1).log() - own[part].float()  # of all others together
                total += F.softplus(above).sum()
                share = above.sigmoid()
                error *= share[:, None]
                grad_own[part] = -share
                blocks.learn(start, error)
        count = max(1, len(hits))
        ctx.save_for_backward(*(found / count for found in (*blocks.gradients(), grad_own)))
        ctx.dtypes = hidden.dtype, vectors.dtype, bias.dtype, own.dtype
        return total / count
