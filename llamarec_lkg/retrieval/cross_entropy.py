"""Cross-entropy over a whole catalogue in bounded memory.

The scores of a batch over 100,000 items are gigabytes, and their gradient as much again. Here a block of positions is
scored, its loss and its gradient are taken at once, and its scores are forgotten: nothing is computed twice, and a
block that fits the processor's cache is faster than one large product.
"""

from __future__ import annotations

import torch
from torch.autograd.function import once_differentiable


SCORES_AT_ONCE = {"cpu": 2**22, "cuda": 2**27}  # numbers in a block
ROWS_AT_ONCE = {"cpu": 192}  # positions in it, where more would only leave the cache


def catalogue_cross_entropy(
    hidden: torch.Tensor, vectors: torch.Tensor, bias: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    """Mean of -log softmax(hidden @ vectors.T + bias)[label], a number of `float32`.

    Args:
        hidden (N, D), vectors (I, D), bias (I,): what scores are made of. A bias of -inf leaves an item out.
        labels (`long`, (N,)): rows of `vectors`.
    """
    kind = hidden.device.type
    rows = max(1, SCORES_AT_ONCE.get(kind, SCORES_AT_ONCE["cpu"]) // max(1, len(vectors)))
    rows = min(rows, len(labels), ROWS_AT_ONCE.get(kind, rows))
    return _CrossEntropy.apply(hidden, vectors, bias, labels, rows)


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, vectors, bias, labels, rows):
        learns = any(ctx.needs_input_grad[:3])
        bias = bias.to(vectors.dtype)
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        grad_hidden, grad_vectors = torch.zeros_like(hidden), torch.zeros_like(vectors, dtype=torch.float32)
        grad_bias = torch.zeros(len(vectors), dtype=torch.float32, device=hidden.device)
        # filled anew by each block: room that is asked for again and again is cleared again and again
        room, chances = hidden.new_empty((2, rows, len(vectors)), dtype=vectors.dtype)
        if vectors.dtype != torch.float32:
            chances = torch.empty_like(chances, dtype=torch.float32)
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, len(labels), rows or 1):
                states = hidden[start : start + rows].to(vectors.dtype)
                targets = labels[start : start + rows, None]
                scores = torch.addmm(bias, states, vectors.T, out=room[: len(states)]).float()
                error = torch.softmax(scores, dim=-1, out=chances[: len(states)])  # torch's fastest exponential
                # the logarithm of their sum by the likeliest item, whose chance is never too small to have one
                total += (scores.amax(1) - error.amax(1).log() - scores.gather(1, targets)[:, 0]).sum()
                if learns:
                    error.scatter_add_(1, targets, -torch.ones_like(error[:, :1]))
                    grad_bias += error.sum(0)
                    error = error.to(vectors.dtype)
                    grad_hidden[start : start + rows] = error @ vectors
                    grad_vectors.addmm_(error.T.float(), states.float())
        count = max(1, len(labels))
        if learns:
            ctx.save_for_backward(grad_hidden / count, grad_vectors / count, grad_bias / count)
            ctx.dtypes = hidden.dtype, vectors.dtype, bias.dtype
        return total / count

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        gradients = (grad * found for found in ctx.saved_tensors)
        return *(found.to(dtype) for found, dtype in zip(gradients, ctx.dtypes, strict=True)), None, None
