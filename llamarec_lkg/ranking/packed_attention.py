"""Attention of a packed row of prompts (packed_prompts.py), read piece by piece: nothing is computed for what a token
does not see."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable


# what torch computes attention with on a CPU, by names that it keeps for itself; before 2.9 it reads beyond the end of
# keys that heads share
_KERNELS = torch.ops.aten if torch.__version__ >= (2, 9) else None
_FLASH = getattr(_KERNELS, "_scaled_dot_product_flash_attention_for_cpu", None)
_FLASH_BACKWARD = getattr(_KERNELS, "_scaled_dot_product_flash_attention_for_cpu_backward", None)


@dataclass
class Piece:
    """Tokens that attention reads at once.

    Args:
        queries: which tokens of the row they are.
        keys: the tokens of the row that are before them, in stretches, the last of which ends where they end.
        seen (`bool`, (Q, K)): which of the keys each of them sees; None where it is all up to itself.
        gated: whether a bias can be other than 0 among the keys; `seen` is given then.
    """

    queries: slice
    keys: tuple[slice, ...]
    seen: torch.Tensor | None = None
    gated: bool = False


class PackedMask(torch.Tensor):
    """What stands for the attention mask of a packed row, as torch's own `CausalBias` stands for a causal one: a
    tensor (1, 1, 1, L) without content, for which `scaled_dot_product_attention` reads a row piece by piece."""

    pieces: Sequence[Piece]
    bias: torch.Tensor | None
    shared: int
    _added: dict[tuple[int, torch.dtype], torch.Tensor]

    @staticmethod
    def of(pieces: Sequence[Piece], length: int, bias: torch.Tensor | None = None, shared: int = 1) -> PackedMask:
        """The mask of a row of `length` tokens; `bias` (L,) is added wherever a key is looked at. So many heads that
        follow one another have their keys and values `shared`."""
        mask = torch.empty(1, 1, 1, length, dtype=torch.bool).as_subclass(PackedMask)
        mask.pieces, mask.bias, mask.shared, mask._added = pieces, bias, shared, {}
        return mask

    def added(self, place: int, dtype: torch.dtype) -> torch.Tensor | None:
        """What is added where a piece's keys are looked at, (Q, K), the same in all layers."""
        piece = self.pieces[place]
        if piece.seen is None:
            return None
        if (place, dtype) not in self._added:
            bias = torch.zeros(1, dtype=dtype)
            if self.bias is not None and piece.gated and not self.bias.requires_grad:
                bias = torch.cat([self.bias[keys] for keys in piece.keys]).to(dtype)
            self._added[place, dtype] = torch.where(piece.seen, bias, -torch.inf)
        return self._added[place, dtype]

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.scaled_dot_product_attention:
            return _read(*args, **(kwargs or {}))
        return super().__torch_function__(func, types, args, kwargs)


def _read(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: PackedMask,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """`scaled_dot_product_attention` of a packed row: query, key and value are (1, H, L, D)."""
    if _FLASH is not None and attn_mask.shared > 1 and key.shape[1] == query.shape[1]:
        # upstream repeats what is shared beside a mask
        key, value = (part[:, :: attn_mask.shared].contiguous() for part in (key, value))
        enable_gqa = True
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    if torch.is_autocast_enabled("cpu"):
        query, key, value = (part.to(torch.get_autocast_dtype("cpu")) for part in (query, key, value))
    gates = None
    if attn_mask.bias is not None and attn_mask.bias.requires_grad:
        gates = (attn_mask.bias / scale).to(key.dtype)
    if _FLASH is None or dropout_p or value.shape[-1] != query.shape[-1]:
        how = {"dropout_p": dropout_p, "scale": scale, "enable_gqa": enable_gqa}
        read = []
        for place in range(len(attn_mask.pieces)):
            *parts, mask = _parts(attn_mask, place, query, key, value, gates)
            states = F.scaled_dot_product_attention(*parts, mask, is_causal=mask is None, **how)
            read.append(states[..., : value.shape[-1]])
        return torch.cat(read, dim=2)
    return _Attention.apply(query, key, value, gates, attn_mask, scale)


class _Attention(torch.autograd.Function):
    """All pieces of a row by the kernel that `scaled_dot_product_attention` takes on a CPU.

    Autograd would keep a prefix as often as pieces read it, and fill a whole row with zeros for the gradient of each.
    """

    @staticmethod
    def forward(ctx, query, key, value, gates, mask: PackedMask, scale: float) -> torch.Tensor:
        states, sums = torch.empty_like(query.transpose(1, 2)).transpose(1, 2), []
        for place, piece in enumerate(mask.pieces):
            *parts, added = _parts(mask, place, query, key, value, gates)
            found, logsumexp = _FLASH(*parts, 0.0, added is None, attn_mask=added, scale=scale)
            states[:, :, piece.queries] = found[..., : query.shape[-1]]
            sums.append(logsumexp)
        ctx.save_for_backward(query, key, value, gates, states, *sums)
        ctx.mask, ctx.scale = mask, scale
        return states

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: torch.Tensor):
        query, key, value, gates, states, *sums = ctx.saved_tensors
        size, grad_query, grad_gates = query.shape[-1], torch.empty_like(query), None
        grad_key, grad_value = torch.zeros_like(key), torch.zeros_like(value)
        if gates is not None:
            grad_gates = torch.zeros_like(gates)
        for place, (piece, logsumexp) in enumerate(zip(ctx.mask.pieces, sums, strict=True)):
            *parts, added = _parts(ctx.mask, place, query, key, value, gates)
            given, found = (part[:, :, piece.queries] for part in (grad, states))
            if wide := parts[0].shape[-1] - size:
                given, found = F.pad(given, (0, wide)), F.pad(found, (0, wide))
            how = {"attn_mask": added, "scale": ctx.scale}
            of_query, of_key, of_value = _FLASH_BACKWARD(given, *parts, found, logsumexp, 0.0, added is None, **how)
            grad_query[:, :, piece.queries] = of_query[..., :size]
            start = 0
            for keys in piece.keys:
                rows = slice(start, start := start + keys.stop - keys.start)
                grad_key[:, :, keys] += of_key[:, :, rows, :size]
                grad_value[:, :, keys] += of_value[:, :, rows, :size]
                if wide:
                    grad_gates[keys] += of_key[0, :, rows, size].sum(0)
        return grad_query, grad_key, grad_value, grad_gates, None, None


def _parts(
    mask: PackedMask,
    place: int,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    gates: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Queries, keys and values of a piece, and what is added where they are looked at.

    Kernels take no bias with a gradient. With `gates` (L,), the bias over the scale, vectors have one more place, 1 in
    queries and the gate in keys, which comes to the same.
    """
    piece = mask.pieces[place]
    queries, keys, values = query[:, :, piece.queries], _stretches(key, piece.keys), _stretches(value, piece.keys)
    if gates is not None and piece.gated:
        gates = torch.cat([gates[one] for one in piece.keys])[None, None, :, None].expand(*keys.shape[:3], 1)
        queries, keys, values = (
            F.pad(queries, (0, 1), value=1.0),
            torch.cat([keys, gates], dim=-1),
            F.pad(values, (0, 1)),
        )
    return queries, keys, values, mask.added(place, query.dtype)


def _stretches(tensor: torch.Tensor, places: Sequence[slice]) -> torch.Tensor:
    parts = [tensor[:, :, one] for one in places]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)
