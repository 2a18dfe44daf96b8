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
from torch.utils.checkpoint import checkpoint


# a piece of blocks ends with the block that reaches so many tokens: longer ones read much of each other in vain
PIECE = 192


@dataclass
class Piece:
    """Tokens that attention reads at once.

    Args:
        queries: which tokens of the row they are.
        keys: the tokens of the row that are before them, one stretch or two, the last of which ends where they end.
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


def causal_pieces(real: torch.Tensor, path: torch.Tensor | None) -> list[Piece]:
    """Prompts in which each token sees all before it, from which tokens are `real` (`bool`, (B, L)) and, where paths
    are gated, which belong to a `path` ((B, L), -1 to none)."""
    pieces, start = [], 0
    for row, mask in enumerate(real):
        length = int(mask.sum())
        gated = torch.zeros(0, dtype=torch.long) if path is None else torch.nonzero(path[row, mask] >= 0)
        first, whole = int(gated[0]) if len(gated) else length, slice(start, start + length)
        if first:
            plain = slice(start, start + first)
            pieces.append(Piece(plain, (plain,)))
        if first < length:
            seen = torch.ones(length - first, length, dtype=torch.bool).tril(first)
            pieces.append(Piece(slice(start + first, whole.stop), (whole,), seen, gated=True))
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
