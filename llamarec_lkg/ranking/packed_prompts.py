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
from torch.utils.checkpoint import checkpoint


# a piece of blocks ends with the block that reaches so many tokens: longer ones read much of each other in vain
PIECE = 192
# a beginning of fewer tokens is read again: to gather its keys in every layer costs as much
LEAST_SHARED = 8


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
        common = (beginnings[:, None] == beginnings[None]).cumprod(2).sum(2).tril(-1)
        counts, leaders = common.max(1)
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
    _added: dict[int, torch.Tensor]

    @staticmethod
    def of(pieces: Sequence[Piece], length: int, bias: torch.Tensor | None = None, shared: int = 1) -> PackedMask:
        """The mask of a row of `length` tokens; `bias` (L,) is added wherever a key is looked at. So many heads that
        follow one another have their keys and values `shared`."""
        mask = torch.empty(1, 1, 1, length, dtype=torch.bool).as_subclass(PackedMask)
        mask.pieces, mask.bias, mask.shared, mask._added = pieces, bias, shared, {}
        return mask

    def added(self, place: int, dtype: torch.dtype) -> torch.Tensor | None:
        """What is added where a piece's keys are looked at, (Q, K), the same in all layers; or which are `seen`."""
        piece = self.pieces[place]
        if self.bias is None or not piece.gated:
            return piece.seen
        if place not in self._added:
            bias = torch.cat([self.bias[keys] for keys in piece.keys]).to(dtype)
            self._added[place] = torch.where(piece.seen, bias, -torch.inf)
        return self._added[place]

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
    """`scaled_dot_product_attention` of a packed row: query, key and value are (1, H, L, D).

    For the gradient pieces are read again: kept for it, the prefix would be kept as often as there are pieces.
    """
    if attn_mask.shared > 1 and key.shape[1] == query.shape[1]:  # upstream repeats what is shared beside a mask
        key, value = (part[:, :: attn_mask.shared].contiguous() for part in (key, value))
        enable_gqa = True
    scale = query.shape[-1] ** -0.5 if scale is None else scale

    def run(*parts: torch.Tensor) -> torch.Tensor:
        return _read_pieces(*parts, attn_mask, dropout_p, scale, enable_gqa)

    if not torch.is_grad_enabled():
        return run(query, key, value)
    return checkpoint(run, query, key, value, use_reentrant=False, preserve_rng_state=dropout_p > 0)


def _read_pieces(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: PackedMask,
    dropout_p: float,
    scale: float,
    enable_gqa: bool,
) -> torch.Tensor:
    size, bias = query.shape[-1], attn_mask.bias
    learns = bias is not None and bias.requires_grad
    if learns:
        # kernels take no bias with a gradient; one more place in each vector, 1 in queries, comes to the same
        gates = (bias / scale).to(key.dtype)[None, None, :, None].expand(*key.shape[:3], 1)
        wide = F.pad(query, (0, 1), value=1.0), torch.cat([key, gates], dim=-1), F.pad(value, (0, 1))
    read = []
    for place, piece in enumerate(attn_mask.pieces):
        queries, keys, values = wide if learns and piece.gated else (query, key, value)
        keys, values = (_stretches(part, piece.keys) for part in (keys, values))
        mask = piece.seen if learns else attn_mask.added(place, query.dtype)
        queries, how = queries[:, :, piece.queries], {"scale": scale, "enable_gqa": enable_gqa}
        states = F.scaled_dot_product_attention(queries, keys, values, mask, dropout_p, mask is None, **how)
        read.append(states[..., :size])
    return torch.cat(read, dim=2)


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
