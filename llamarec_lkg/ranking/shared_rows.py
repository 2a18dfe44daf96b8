"""Prompts that begin alike in one row of tokens under a mask of its own, with what they begin with in it once.

For a GPU, where the pieces of a packed row (packed_prompts.py) would each wait for their launch. Rows are as long as
the longest set of prompts that begin alike; the others stand in as few of them as they need.
"""

from __future__ import annotations

from dataclasses import dataclass
from operator import itemgetter

import torch

from .candidate_blocks import block_attention
from .packed_prompts import beginnings


# prompts stand in one row that share so much of one of them at least, which of these takes the least work: each makes
# the row longer, and all tokens of a row are looked at by each of them
LEAST_SHARED = (1 / 8, 1 / 4, 1 / 2)


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
        shared, leaders = beginnings(input_ids.cpu(), real, torch.minimum(alike.cpu(), lengths - 1))
        found = []
        for least in LEAST_SHARED:
            before = shared.masked_fill(shared < least * lengths, 0)
            own, before = (lengths - before).tolist(), before.tolist()
            rows = _filled(_sets(before, leaders.tolist()), own)
            width = max(sum(own[prompt] for prompt in row) for row in rows)
            found.append((_work(len(rows), width, hidden_size), rows, width, own, before))
        work, rows, width, own, before = min(found, key=itemgetter(0))
        if work >= _work(count, length, hidden_size):
            return None
        tokens, places = torch.full((len(rows), width), -1), torch.full((count, length), -1)
        known = torch.zeros(count, width, dtype=torch.bool)
        starts = (length - lengths).tolist()
        for place, row in enumerate(rows):
            begin = place * width
            free = begin + width - sum(own[prompt] for prompt in row)
            for end, prompt in enumerate(row, begin + width - len(row)):
                leader, split = int(leaders[prompt]), starts[prompt] + before[prompt]
                places[prompt, starts[prompt] : split] = places[leader, starts[leader] :][: before[prompt]]
                places[prompt, split:-1] = torch.arange(free, free := free + own[prompt] - 1)
                places[prompt, -1] = end
                known[prompt, places[prompt, starts[prompt] :] - begin] = True
                tokens.view(-1)[places[prompt, split:]] = torch.arange(split, length) + prompt * length
        return cls(tokens.to(device), places.to(device), known.to(device), max(map(len, rows)))

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


def _sets(shared: list[int], leaders: list[int]) -> list[list[int]]:
    """Prompts that share tokens with one another, by how many each has of its leader's, which comes before it."""
    first: list[int] = []
    sets: dict[int, list[int]] = {}
    for prompt, (count, leader) in enumerate(zip(shared, leaders, strict=True)):
        first.append(first[leader] if count else prompt)
        sets.setdefault(first[prompt], []).append(prompt)
    return list(sets.values())


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
