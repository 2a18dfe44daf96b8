"""Prompts of different lengths one behind the other in one row of tokens, without padding, each read by itself.

A backbone's layers work on each token alone, but for attention. There the mask given to it, a [`PackedMask`], reads
the row piece by piece, so that nothing is computed for padding or for what a token does not see.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F


# a piece of blocks ends with the block that reaches so many tokens: longer ones read much of each other in vain
PIECE = 192


@dataclass
class Piece:
    """Tokens that attention reads at once.

    Args:
        queries: which tokens of the row they are.
        keys: the tokens of the row that are before them, one stretch or two, the last of which ends where they end.
        seen (`bool`, (Q, K)): which of the keys each of them sees; None where it is all up to itself.
        gated: whether a bias can be other than 0 among the keys.
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

    @staticmethod
    def of(pieces: Sequence[Piece], length: int, bias: torch.Tensor | None = None) -> PackedMask:
        """The mask of a row of `length` tokens; `bias` (L,) is added wherever a key is looked at."""
        mask = torch.empty(1, 1, 1, length, dtype=torch.bool).as_subclass(PackedMask)
        mask.pieces, mask.bias = pieces, bias
        return mask

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.scaled_dot_product_attention:
            return _read_pieces(*args, **(kwargs or {}))
        return super().__torch_function__(func, types, args, kwargs)


def _read_pieces(
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
    size, bias = query.shape[-1], attn_mask.bias
    scale = size**-0.5 if scale is None else scale
    wide = None
    if bias is not None:
        # one more place in each vector, 1 in queries: kernels that take no bias with a gradient add it all the same
        gates = (bias / scale).to(key.dtype)[None, None, :, None].expand(*key.shape[:3], 1)
        wide = F.pad(query, (0, 1), value=1.0), torch.cat([key, gates], dim=-1), F.pad(value, (0, 1))
    read = []
    for piece in attn_mask.pieces:
        queries, keys, values = wide if piece.gated and wide is not None else (query, key, value)
        keys, values = (
            torch.cat([part[:, :, one] for one in piece.keys], dim=2)
            if len(piece.keys) > 1
            else part[:, :, piece.keys[0]]
            for part in (keys, values)
        )
        states = F.scaled_dot_product_attention(
            queries[:, :, piece.queries],
            keys,
            values,
            piece.seen,
            dropout_p,
            piece.seen is None,
            scale=scale,
            enable_gqa=enable_gqa,
        )
        read.append(states[..., :size])
    return torch.cat(read, dim=2)


def causal_pieces(lengths: Sequence[int]) -> list[Piece]:
    """Prompts of these lengths, in which each token sees all before it."""
    pieces, start = [], 0
    for length in lengths:
        own = slice(start, start + length)
        pieces.append(Piece(own, (own,), gated=True))
        start += length
    return pieces


def block_pieces(owner: torch.Tensor) -> list[Piece]:
    """Prompts of a prefix and of blocks, which see the prefix and themselves, from owners (B, L) as of a
    [`BlockPrompt`]."""
    pieces, start = [], 0
    for row in owner:
        row = row[row >= 0]
        kinds, counts = (found.tolist() for found in row.unique_consecutive(return_counts=True))
        first = counts.pop(0) if kinds[0] == 0 else 0
        prefix = slice(start, start + first)
        if first:
            pieces.append(Piece(prefix, (prefix,)))
        begin = end = first
        for place, count in enumerate(counts, 1):
            end += count
            if end - begin >= PIECE or place == len(counts):
                own = row[begin:end]
                seen = (own[:, None] == own).tril()
                seen = torch.cat([seen.new_ones(len(own), first), seen], dim=1)
                queries = slice(start + begin, start + end)
                near = begin == first  # right behind the prefix
                keys = (slice(prefix.start, queries.stop),) if near else (prefix, queries)
                pieces.append(Piece(queries, keys, seen, gated=True))
                begin = end
        start += len(row)
    return pieces
