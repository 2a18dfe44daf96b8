"""Prompts of different lengths one behind the other in one row of tokens, without padding, each read by itself.

A backbone's layers work on each token alone, but for attention, which is read piece by piece (packed_attention.py).
Tokens see only what is before them, so where prompts begin alike, with the instruction or with a user's history, the
beginning is in the row once.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

from .packed_attention import Piece


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
        counts, leaders = beginnings(input_ids, real, alike).max(1)
        counts = counts.masked_fill(counts < LEAST_SHARED, 0)
        starts = real.shape[1] - real.sum(1)
        kept = real & (torch.arange(real.shape[1]) >= (starts + counts)[:, None])
        places = (kept.flatten().cumsum(0) - 1).view_as(kept).masked_fill(~kept, -1)
        for row, (leader, start, count) in enumerate(
            zip(leaders.tolist(), starts.tolist(), counts.tolist(), strict=True)
        ):
            first = int(starts[leader])
            places[row, start : start + count] = places[leader, first : first + count]
        return cls(kept, places)


def beginnings(input_ids: torch.Tensor, real: torch.Tensor, alike: torch.Tensor) -> torch.Tensor:
    """How many tokens each prompt begins with like each one before it, (B, B), 0 for itself and those behind. The
    arguments are those of [`Packing.of`]."""
    columns, rows = torch.arange(real.shape[1]), torch.arange(len(real))[:, None]
    starts = real.shape[1] - real.sum(1)
    found = input_ids.gather(1, (columns + starts[:, None]).clamp(max=real.shape[1] - 1))
    found = torch.where(columns < alike[:, None], found, -1 - rows)[:, : int(alike.max())]
    found = torch.cat([found, -1 - rows], dim=1).numpy()  # in the end each is alone
    # sorted, prompts that begin alike stand together, and two share what all neighbours between them do
    order = np.array(sorted(range(len(found)), key=lambda row: found[row].tobytes()))
    shared = (found[order[1:]] != found[order[:-1]]).argmax(1)
    common = np.zeros((len(found), len(found)), dtype=np.int64)
    for place, row in enumerate(order[:-1]):
        common[row, order[place + 1 :]] = np.minimum.accumulate(shared[place:])
    return torch.from_numpy(common + common.T).tril(-1)


def stretches(places: torch.Tensor) -> tuple[slice, ...]:
    """Places (N,) as the stretches that they make, each as long as can be."""
    breaks = [0, *(torch.nonzero(places.diff() != 1).flatten() + 1).tolist(), len(places)]
    return tuple(slice(int(places[a]), int(places[b - 1]) + 1) for a, b in pairwise(breaks) if b > a)


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
