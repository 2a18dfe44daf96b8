"""Prompts of different lengths one behind the other in one row of tokens, without padding, each read by itself.

A backbone's layers work on each token alone, but for attention. There the mask given to it, a [`PackedMask`], reads
the row piece by piece, so that nothing is computed for padding or for what a token does not see. Tokens see only what
is before them, so where prompts begin alike, with the instruction or with a user's history, the beginning is in the
row once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable


# a piece of blocks ends with the block that reaches so many tokens: longer ones read much of each other in vain
PIECE = 192
# a beginning of fewer tokens is read again: to gather its keys in every layer costs as much
LEAST_SHARED = 8

# what torch computes attention with on a CPU, by names that it keeps for itself; before 2.9 it reads beyond the end of
# keys that heads share
_FLASH = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)
_FLASH_BACKWARD = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu_backward", None)
_SHARES = torch.__version__ >= (2, 9)


@dataclass
class Packing:
    """Where the tokens of a batch of left-padded prompts are in the packed row.

    Args:
        kept (`bool`, (B, L)): the tokens that the row is made of, in their order.
        places (`long`, (B, L)): where in the row each token stands, those that another prompt keeps as well; -1 where
            there is none.
    """

    kept: torch.Tensor
    places: torch.Tensor

    @classmethod
    def of(cls, input_ids: torch.Tensor, real: torch.Tensor, alike: torch.Tensor) -> Packing:
        """The packing of the `real` tokens (`bool`, (B, L)) of prompts, of which the first `alike` (`long`, (B,)) are
        read alike in whatever prompt begins with them."""
        columns = torch.arange(real.shape[1])
        starts = real.shape[1] - real.sum(1)
        beginnings = input_ids.gather(1, (columns + starts[:, None]).clamp(max=real.shape[1] - 1))
        others = -1 - torch.arange(len(real))[:, None]  # what no other row has
        beginnings = torch.where(columns < alike[:, None], beginnings, others)[:, : int(alike.max())]
        counts, leaders = torch.zeros_like(starts), torch.zeros_like(starts)
        for row in range(1, len(beginnings)):  # of all pairs at once it would be B times as much
            common = (beginnings[row] == beginnings[:row]).cumprod(1).sum(1)
            counts[row], leaders[row] = common.max(0)
        counts = counts.masked_fill(counts < LEAST_SHARED, 0)
        kept = real & (columns >= (starts + counts)[:, None])
        places = (kept.flatten().cumsum(0) - 1).view_as(kept).masked_fill(~kept, -1)
        for row, (leader, start, count) in enumerate(
            zip(leaders.tolist(), starts.tolist(), counts.tolist(), strict=True)
        ):
            first = int(starts[leader])
            places[row, start : start + count] = places[leader, first : first + count]
        return cls(kept, places)


def stretches(places: torch.Tensor) -> tuple[slice, ...]:
    """Places (N,) as the stretches that they make, each as long as can be."""
    breaks = [0, *(torch.nonzero(places.diff() != 1).flatten() + 1).tolist(), len(places)]
    return tuple(slice(int(places[a]), int(places[b - 1]) + 1) for a, b in pairwise(breaks) if b > a)


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
    if (
        _SHARES and attn_mask.shared > 1 and key.shape[1] == query.shape[1]
    ):  # upstream repeats what is shared beside a mask
        key, value = (part[:, :: attn_mask.shared].contiguous() for part in (key, value))
        enable_gqa = True
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    if torch.is_autocast_enabled("cpu"):
        query, key, value = (part.to(torch.get_autocast_dtype("cpu")) for part in (query, key, value))
    gates = None
    if attn_mask.bias is not None and attn_mask.bias.requires_grad:
        gates = (attn_mask.bias / scale).to(key.dtype)
    cannot = key.shape[1] != query.shape[1] and not _SHARES
    if _FLASH is None or cannot or dropout_p or value.shape[-1] != query.shape[-1]:
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


def causal_pieces(packing: Packing, path: torch.Tensor | None) -> list[Piece]:
    """Prompts in which each token sees all before it, and where paths are gated, which tokens belong to a `path`
    ((B, L), -1 to none)."""
    pieces = []
    for row, (kept, places) in enumerate(zip(packing.kept, packing.places, strict=True)):
        real = places >= 0
        places, kept = places[real], int(kept.sum())
        length, gated = len(places), torch.zeros(0) if path is None else torch.nonzero(path[row, real] >= 0)
        shared, first = length - kept, int(gated[0]) if len(gated) else length
        if first > shared:
            pieces.append(_following(places[:first], shared))
        if max(first, shared) < length:
            pieces.append(_following(places, max(first, shared), gated=True))
    return pieces


def block_pieces(owner: torch.Tensor, packing: Packing) -> list[Piece]:
    """Prompts of a prefix and of blocks, which see the prefix and themselves, from owners (B, L) as of a
    [`BlockPrompt`]."""
    pieces = []
    for row, kept, places in zip(owner, packing.kept, packing.places, strict=True):
        real = row >= 0
        row, places, kept = row[real], places[real], int(kept.sum())
        kinds, counts = (found.tolist() for found in row.unique_consecutive(return_counts=True))
        first = counts.pop(0) if kinds[0] == 0 else 0
        shared = len(row) - kept
        if first > shared:
            pieces.append(_following(places[:first], shared))
        begin = end = first
        for place, count in enumerate(counts, 1):
            end += count
            if end - begin >= PIECE or place == len(counts):
                own = row[begin:end]
                seen = (own[:, None] == own).tril()
                seen = torch.cat([seen.new_ones(len(own), first), seen], dim=1)
                keys = torch.cat([places[:first], places[begin:end]])
                pieces.append(Piece(*stretches(places[begin:end]), stretches(keys), seen, gated=True))
                begin = end
    return pieces


def _following(places: torch.Tensor, before: int, gated: bool = False) -> Piece:
    """The tokens at `places` (N,) but for the first `before`, which another prompt keeps; each sees all before it."""
    seen = None
    if before or gated:
        seen = torch.ones(len(places) - before, len(places), dtype=torch.bool).tril(before)
    return Piece(*stretches(places[before:]), stretches(places), seen, gated)
