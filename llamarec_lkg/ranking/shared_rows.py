"""Prompts that begin alike in one row of tokens under a mask of its own, with what they begin with in it once.

For a GPU, where the pieces of a packed row (packed_prompts.py) would each wait for their launch. Rows are as long as
the longest set of prompts that begin alike; the others stand in as few of them as they need.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch

from .candidate_blocks import block_attention
from .packed_prompts import beginnings


# how large a set is at most, and which part of a prompt it shares at least: each prompt makes its row longer, and
# every token of a row is looked at by every other
LARGEST, LEAST = (4, 8, 16), (1 / 8, 1 / 4, 1 / 2)
# so many times the places of padded prompts' masks, and no more
MASKS = 2


@dataclass
class Plan:
    """Which prompts stand in which row, what each begins with like another in its row that comes before it, its
    leader, and how many tokens are its own."""

    rows: list[list[int]]
    shared: list[int]
    leaders: list[int]
    own: list[int]

    @property
    def width(self) -> int:
        return max(sum(self.own[prompt] for prompt in row) for row in self.rows)


@dataclass
class SharedRows:
    """Where the tokens of left-padded prompts (B, L) are in R rows of W tokens, which are padded on the left, too.

    Args:
        tokens (`long`, (R, W)): which of the prompts' tokens, counted through, stands there; -1 for none.
        places (`long`, (B, L)): where among the tokens of all rows each token stands; -1 where there is none.
        known (`bool`, (B, W)): which tokens of its row are a prompt's.
        ends: among so many of the last tokens of each row are the last tokens of its prompts, and no others of theirs.
    """

    tokens: torch.Tensor
    places: torch.Tensor
    known: torch.Tensor
    ends: int

    @classmethod
    def of(
        cls, input_ids: torch.Tensor, real: torch.Tensor, alike: torch.Tensor, hidden_size: int
    ) -> SharedRows | None:
        """The rows of the `real` tokens (`bool`, (B, L)) of prompts, of which the first `alike` (`long`, (B,)) are
        read alike in whatever prompt begins with them; None where layers of that size compute no less with them."""
        device, real = input_ids.device, real.cpu()
        (count, length), lengths = real.shape, real.sum(1)
        # the last token of a prompt is its own
        alike = torch.minimum(alike.cpu(), lengths - 1).clamp(min=0)
        plan, work = None, _work(count, length, hidden_size)
        for other in _plans(beginnings(input_ids.cpu(), real, alike).numpy(), lengths.numpy()):
            less = _work(len(other.rows), other.width, hidden_size)
            if less < work and len(other.rows) * other.width**2 <= MASKS * count * length**2:
                plan, work = other, less
        if plan is None:
            return None
        width, starts = plan.width, (length - lengths).tolist()
        tokens, places = torch.full((len(plan.rows), width), -1), torch.full((count, length), -1)
        known = torch.zeros(count, width, dtype=torch.bool)
        for place, row in enumerate(plan.rows):
            begin = place * width
            free = begin + width - sum(plan.own[prompt] for prompt in row)
            for end, prompt in enumerate(row, begin + width - len(row)):
                shared, leader = plan.shared[prompt], plan.leaders[prompt]
                split = starts[prompt] + shared
                places[prompt, starts[prompt] : split] = places[leader, starts[leader] :][:shared]
                places[prompt, split:-1] = torch.arange(free, free := free + plan.own[prompt] - 1)
                places[prompt, -1] = end
                known[prompt, places[prompt, starts[prompt] :] - begin] = True
                tokens.view(-1)[places[prompt, split:]] = torch.arange(split, length) + prompt * length
        return cls(tokens.to(device), places.to(device), known.to(device), max(map(len, plan.rows)))

    def of_tokens(self, values: torch.Tensor, none: float = 0) -> torch.Tensor:
        """Values of the prompts' tokens (B, L) as those of the rows' (R, W), with `none` where there is no token."""
        found = values.flatten().index_select(0, self.tokens.flatten().clamp(min=0))
        return found.view_as(self.tokens).masked_fill(self.tokens < 0, none)

    def at_ends(self, values: torch.Tensor) -> torch.Tensor:
        """Of values of the last `ends` tokens of each row, (R, ends, D), those of the prompts' last tokens, (B, D)."""
        width, last = self.tokens.shape[1], self.places[:, -1].to(values.device)
        return values[last // width, last % width - width + self.ends]

    def seen(self, owner: torch.Tensor) -> torch.Tensor:
        """What each token sees (`bool`, (R, 1, W, W)): of what is before it, what is its prompt's and what
        `block_attention` lets it see of that, from the owners of the prompts' tokens (B, L)."""
        itself = torch.eye(self.tokens.shape[1], dtype=torch.bool, device=owner.device)
        own = self.known[self.tokens.clamp(min=0) // owner.shape[1]]
        return block_attention(self.of_tokens(owner, -1)) & (own | itself)[:, None]


def _work(rows: int, width: int, hidden_size: int) -> int:
    """What a layer computes, 24 D^2 + 4 W D for each token, over 4 D."""
    return rows * width * (6 * hidden_size + width)


def _plans(common: np.ndarray, lengths: np.ndarray) -> Iterator[Plan]:
    """Plans to choose from, by how many tokens each prompt begins with like each before it, (B, B), and the prompts'
    lengths (B,)."""
    if (common < LEAST[0] * lengths[:, None]).all() or not lengths.all():
        return
    for largest, least in product(LARGEST, LEAST):
        sets, shared, leaders = _sets(common, least * lengths, largest)
        own = (lengths - shared).tolist()
        yield Plan(_filled(sets, own), shared, leaders, own)


def _sets(common: np.ndarray, least: np.ndarray, largest: int) -> tuple[list[list[int]], list[int], list[int]]:
    """Prompts that share `least` (B,) tokens with another of their set, `largest` in each; how many each shares with
    its leader, the one before it in its set with which it shares the most, and which that is, itself where none is."""
    sets: list[list[int]] = []
    set_of, shared, leaders = [], [], []
    has_room = np.ones(len(common), dtype=bool)
    for prompt, counts in enumerate(np.where(common < least[:, None], 0, common)):
        leader = int((counts * has_room).argmax())
        if count := int(counts[leader] * has_room[leader]):
            set_of.append(set_of[leader])
        else:
            leader = prompt
            set_of.append(len(sets))
            sets.append([])
        shared.append(count)
        leaders.append(leader)
        members = sets[set_of[prompt]]
        members.append(prompt)
        has_room[members] = len(members) < largest
    return sets, shared, leaders


def _filled(sets: list[list[int]], own: list[int]) -> list[list[int]]:
    """The sets in rows as long as the longest of them, each in the first that has room."""
    sizes = [sum(own[prompt] for prompt in one) for one in sets]
    rows: list[list[int]] = []
    left: list[int] = []
    for place in sorted(range(len(sets)), key=sizes.__getitem__, reverse=True):
        row = next((row for row, room in enumerate(left) if room >= sizes[place]), len(rows))
        if row == len(rows):
            rows.append([])
            left.append(max(sizes))
        rows[row] += sets[place]
        left[row] -= sizes[place]
    return rows
