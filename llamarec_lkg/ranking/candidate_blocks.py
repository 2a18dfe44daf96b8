"""Candidates as blocks of tokens behind one prefix, put together on the device: the prompt of the candidate readout.

    prefix      instruction, history, cue
    block 1     title of the first candidate, and the paths that lead to it
    block 2     ...

The model reads its state at each block's last token. Blocks see the prefix and themselves, and their positions start
where the prefix ends, so that a candidate's score is the same in any list.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass
class BlockPrompt:
    """Left-padded sequences of tokens, one a row.

    Args:
        input_ids (B, L).
        owner (B, L): 0 for the prefix, c + 1 for the block of candidate `c`, -1 for padding.
        position_ids (B, L).
        path (B, L): index of the path that each token belongs to, -1 where it belongs to none.
        ends (B, C + 1): where the prefix and each block end; for an empty block, where the one before it ends.
    """

    input_ids: torch.Tensor
    owner: torch.Tensor
    position_ids: torch.Tensor
    path: torch.Tensor
    ends: torch.Tensor


def select_block_paths(
    scores: torch.Tensor,
    path_candidates: torch.Tensor,
    num_candidates: int,
    count: int,
    path_sources: torch.Tensor | None = None,
) -> torch.Tensor:
    """The `count` best paths to each candidate, ties by index.

    Args:
        scores (B, P): -inf where there is no path.
        path_candidates (`long`, (B, P)): which candidate each path leads to.
        path_sources (`long`, (B, P)): history item of each path; of those of one item and candidate only the best is
            taken.

    Returns:
        indices (`long`, (B, C, K)), -1 where there are fewer.
    """
    ordered, order = torch.sort(scores, dim=1, descending=True, stable=True)
    owner = path_candidates.gather(1, order)
    gone = ordered.isneginf()
    if path_sources is not None:
        pair = owner * (path_sources.max() + 1) + path_sources.gather(1, order)
        gone = gone | (pair[:, :, None] == pair[:, None, :]).tril(-1).any(-1)
    owner, by_owner = torch.sort(owner.masked_fill(gone, num_candidates), dim=1, stable=True)
    order = order.gather(1, by_owner)
    place = torch.arange(order.shape[1], device=order.device) - torch.searchsorted(owner, owner)
    slots = num_candidates * count
    slot = (owner * count + place).masked_fill((place >= count) | (owner == num_candidates), slots)
    found = order.new_full((len(order), slots + 1), -1).scatter(1, slot, order)
    return found[:, :slots].view(len(order), num_candidates, count)


def fitting(lengths: torch.Tensor, scores: torch.Tensor, room: torch.Tensor) -> torch.Tensor:
    """Which of (G, N) paths with these lengths stay, best first, until one does not fit into `room` (G,); `bool`."""
    order = torch.sort(scores, dim=1, descending=True, stable=True).indices
    fits = lengths.gather(1, order).cumsum(1) <= room[:, None]
    return torch.zeros_like(fits).scatter(1, order, fits)


def assemble_blocks(
    prefix_input_ids: torch.Tensor,
    prefix_attention_mask: torch.Tensor,
    candidate_input_ids: torch.Tensor,
    candidate_attention_mask: torch.Tensor,
    path_input_ids: torch.Tensor,
    path_attention_mask: torch.Tensor,
    selected_paths: torch.Tensor,
    *,
    isolated: bool,
    start: torch.Tensor | None = None,
) -> BlockPrompt:
    """prefix + for each candidate its title and selected paths, packed to the right without gaps.

    Args:
        candidate_input_ids, candidate_attention_mask (B, C, Lc); the other tensors as in
            [`LlamaRecLKGForRanking.forward`]; selected_paths (B, C, K), -1 for none.
        isolated: whether each block's positions start where the prefix ends, or one sequence is counted through.
        start (`long`, (B,)): how long the prefix is; by default as long as given here.
    """
    batch, count, places = selected_paths.shape
    width = path_input_ids.shape[2]
    chosen = selected_paths.flatten(1).clamp(min=0)[:, :, None].expand(-1, -1, width)
    shape = (batch, count, places * width)
    ids = torch.cat([candidate_input_ids, path_input_ids.gather(1, chosen).view(shape)], dim=2)
    path = selected_paths[..., None].expand(-1, -1, -1, width).reshape(shape)
    path_mask = path_attention_mask.gather(1, chosen).view(shape).bool() & (path >= 0)
    mask = torch.cat([candidate_attention_mask.bool(), path_mask], dim=2)
    path = torch.cat([torch.full_like(candidate_input_ids, -1), path], dim=2)
    prefix_mask = prefix_attention_mask.bool()
    start = prefix_mask.sum(1) if start is None else start
    owner = torch.arange(1, count + 1, device=ids.device)[None, :, None].expand_as(ids)
    positions = start[:, None, None] + mask.cumsum(2) - 1

    def joined(prefix: torch.Tensor, blocks: torch.Tensor) -> torch.Tensor:
        return torch.cat([prefix, blocks.flatten(1)], dim=1)

    whole = joined(prefix_mask, mask)
    # padding first, tokens in their order after it
    order = torch.sort(whole.to(torch.uint8), dim=1, stable=True).indices
    order = order[:, -max(1, int(whole.sum(1).max())) :]
    whole = whole.gather(1, order)
    if isolated:
        positions = joined(prefix_mask.cumsum(1) - 1, positions).gather(1, order)
    else:
        positions = whole.cumsum(1) - 1
    behind = mask.sum(2).flip(1).cumsum(1).flip(1)  # tokens of a block and of all behind it
    behind = torch.cat([behind, behind.new_zeros(batch, 1)], dim=1)
    return BlockPrompt(
        input_ids=joined(prefix_input_ids, ids).gather(1, order).masked_fill(~whole, 0),
        owner=joined(torch.zeros_like(prefix_input_ids), owner).gather(1, order).masked_fill(~whole, -1),
        position_ids=positions.masked_fill(~whole, 0),
        path=joined(torch.full_like(prefix_input_ids, -1), path).gather(1, order).masked_fill(~whole, -1),
        ends=order.shape[1] - 1 - behind,
    )


def block_attention(owner: torch.Tensor, queries: int | None = None) -> torch.Tensor:
    """What each of the last `queries` tokens (all by default) sees: of what is before it the prefix and its own block,
    and always itself. `bool`, (B, 1, queries, L), from owners (B, L) as of a [`BlockPrompt`]."""
    length = owner.shape[1]
    keys = torch.arange(length, device=owner.device)
    rows = keys[length - (length if queries is None else queries) :]
    of_query, of_key = owner[:, rows, None], owner[:, None, :]
    before = keys[None, :] <= rows[:, None]
    seen = before & (of_key >= 0) & ((of_key == 0) | (of_key == of_query))
    return (seen | (keys[None, :] == rows[:, None]))[:, None]
