"""Products of matrices by oneDNN, which is part of torch, on a CPU with AVX-512 that is not Intel's.

torch multiplies `float32` by MKL, which uses half the width of the vectors of AMD's processors; there oneDNN takes
half the time. On Intel's it takes longer, a third more for the gradients of weights. It prepares anew for each shape,
in 0.3 ms, so only shapes that come again are worth it: see `ROUND`.
"""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable


ROUND = 16  # products of a multiple of so many rows are oneDNN's: who lays out a batch fills it up to that
# the operator that torch.compile puts in place of a linear layer; it knows all strides, and no gradient
_LINEAR = getattr(torch.ops.mkldnn, "_linear_pointwise", None)


@cache
def _works() -> bool:
    """Whether the operator, whose name torch keeps for itself, is there, and takes what we give it."""
    if _LINEAR is None or not torch.backends.cpu.get_cpu_capability().startswith("AVX512"):
        return False
    try:
        return bool(_LINEAR(torch.ones(1, 1), torch.ones(1, 1), None, "none", [], "") == 1)
    except (RuntimeError, TypeError):
        return False


@cache
def _is_intel() -> bool:
    """Whether the processor is Intel's, where MKL is at its best."""
    try:
        return "GenuineIntel" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return "GenuineIntel" in platform.processor()


def product(left: torch.Tensor, right: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """`left` (M, K) times the transposed `right` (N, K), plus `bias` (N,), as `F.linear`; without a gradient."""
    if is_quick(len(left), left, right):
        return _LINEAR(left, right, bias, "none", [], "")
    return F.linear(left, right, bias)


def add_product(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """Adds to `total` (M, N) the product of the transposed `left` (K, M) and `right` (K, N), in `total`'s type."""
    if is_quick(len(left), left, right, total):
        total += _LINEAR(left.T, right.T, None, "none", [], "")
    else:
        total.addmm_(left.T.to(total.dtype), right.to(total.dtype))


def weight_gradient(grad: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """Of a linear layer's weight, (N, K), by the gradient of what it gave, (R, N), and what it was given, (R, K)."""
    if not is_quick(len(hidden), hidden, grad):
        return grad.T @ hidden
    # few long rows are quicker than many short ones
    return product(hidden.T, grad.T).T if grad.shape[1] > hidden.shape[1] else product(grad.T, hidden.T)


def is_quick(rows: int, *tensors: torch.Tensor) -> bool:
    """Whether a product of so many rows of these tensors is oneDNN's."""
    if not _works() or _is_intel() or rows == 0 or rows % ROUND or torch.is_autocast_enabled("cpu"):
        return False
    return all(tensor.dtype == torch.float32 and tensor.device.type == "cpu" for tensor in tensors)


def linear(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """`F.linear` of `hidden` (..., K), `weight` (N, K) and `bias` (N,), whose gradient can be taken once."""
    if is_quick(hidden.numel() // max(1, hidden.shape[-1]), hidden, weight):
        return _Linear.apply(hidden.flatten(0, -2), weight, bias).unflatten(0, hidden.shape[:-1])
    return F.linear(hidden, weight, bias)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, bias):
        ctx.save_for_backward(hidden, weight)
        return product(hidden, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        hidden, weight = ctx.saved_tensors
        grad_hidden = product(grad, weight.T) if ctx.needs_input_grad[0] else None
        return grad_hidden, weight_gradient(grad, hidden), grad.sum(0)
