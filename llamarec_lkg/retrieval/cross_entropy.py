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
ROWS_AT_ONCE = {"cpu": 384}  # positions in it, where more would only leave the cache


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


def _room(vectors: torch.Tensor, rows: int) -> torch.Tensor:
    """For the scores of a block and then their softmax, filled anew by each: room that is asked for again and again is
    cleared again and again."""
    return vectors.new_empty(rows, len(vectors))


def _zeros(like: torch.Tensor) -> torch.Tensor:
    """For a gradient that is summed up."""
    return torch.zeros(like.shape, dtype=torch.float32, device=like.device)


def _scores(bias: torch.Tensor, states: torch.Tensor, vectors: torch.Tensor, room: torch.Tensor) -> torch.Tensor:
    """Of all `vectors` for each of the `states`, in the `room` where a product can be told to use it."""
    if is_quick(len(states), states, vectors):
        return product(states, vectors, bias)
    return torch.addmm(bias, states, vectors.T, out=room[: len(states)])


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
        bias = bias.to(vectors.dtype)
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        # vectors are the columns of their gradient: its products are a third quicker than with rows
        grad_hidden, grad_vectors = torch.zeros_like(hidden), _zeros(vectors.T)
        grad_bias = _zeros(bias)
        room = _room(vectors, rows)
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, len(labels), rows):
                states = hidden[start : start + rows].to(vectors.dtype)
                targets = labels[start : start + rows, None]
                scores = _scores(bias, states, vectors, room).float()
                total += (scores.amax(1) - scores.gather(1, targets)[:, 0]).sum()
                error = torch.softmax(scores, dim=-1, out=scores)  # torch's fastest exponential
                # the logarithm of their sum by the likeliest item, whose chance is never too small to have one
                total -= error.amax(1).log().sum()
                if learns:
                    error.scatter_add_(1, targets, -torch.ones_like(error[:, :1]))
                    grad_bias += error.sum(0)
                    error = error.to(vectors.dtype)
                    grad_hidden[start : start + rows] = product(error, vectors.T)
                    add_product(grad_vectors, states, error)
        count = max(1, len(labels))
        if learns:
            ctx.save_for_backward(grad_hidden / count, grad_vectors.T / count, grad_bias / count)
            ctx.dtypes = hidden.dtype, vectors.dtype, bias.dtype
        return total / count


class _SampledCrossEntropy(_Learned):
    @staticmethod
    def forward(ctx, hidden, vectors, bias, own, hits, rows):
        bias = bias.to(vectors.dtype)
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        # vectors are the columns of their gradient: its products are a third quicker than with rows
        grad_hidden, grad_vectors = torch.zeros_like(hidden), _zeros(vectors.T)
        grad_bias, grad_own = _zeros(bias), _zeros(own)
        room = _room(vectors, rows)
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, len(hits), rows):
                part = slice(start, start + rows)
                states, hit = hidden[part].to(vectors.dtype), hits[part]
                scores = _scores(bias, states, vectors, room).float()
                found = (hit >= 0).nonzero()[:, 0]
                scores[found, hit[found]] = torch.finfo(scores.dtype).min
                most = scores.amax(1)
                error = torch.softmax(scores, dim=-1, out=scores)
                above = most - error.amax(1).log() - own[part].float()  # of all others together
                total += F.softplus(above).sum()
                share = above.sigmoid()
                error *= share[:, None]
                grad_own[part] = -share
                grad_bias += error.sum(0)
                error = error.to(vectors.dtype)
                grad_hidden[part] = product(error, vectors.T)
                add_product(grad_vectors, states, error)
        count, gradients = max(1, len(hits)), (grad_hidden, grad_vectors.T, grad_bias, grad_own)
        ctx.save_for_backward(*(found / count for found in gradients))
        ctx.dtypes = hidden.dtype, vectors.dtype, bias.dtype, own.dtype
        return total / count
