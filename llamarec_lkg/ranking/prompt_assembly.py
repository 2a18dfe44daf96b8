"""The prompt as one sequence of tokens, put together on the device: which paths enter it is the model's choice."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass
class AssembledPrompt:
    """One left-padded sequence a row, and which path (0..K-1 by rank, -1 none) each token belongs to; all (B, L)."""

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    path_rank: torch.Tensor

    def holds(self, count: int) -> torch.Tensor:
        """Which of the `count` best paths are in it, not left out for length (`bool`, (B, count))."""
        places = torch.arange(count, device=self.path_rank.device)
        return (self.path_rank[:, None, :] == places[None, :, None]).any(-1)


def score_paths(
    path_relation_weights: torch.Tensor, path_attention_mask: torch.Tensor, preferences: torch.Tensor
) -> torch.Tensor:
    """How much each path is preferred, (B, P) in float32: its relations' weights (B, P, R) under the preferences
    (B, R); -inf where the mask (B, P, Lr) has no token, so no path."""
    scores = torch.einsum("bpr,br->bp", path_relation_weights.float(), preferences)
    return scores.masked_fill(~path_attention_mask.bool().any(-1), -torch.inf)


def select_paths(
    scores: torch.Tensor, count: int, path_sources: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The `count` best paths of each row, ties by index.

    Args:
        scores (B, P): -inf where there is no path.
        path_sources (B, P): history item of each path; of each only the best is taken.

    Returns:
        indices (B, K) with -1 where fewer were found, and their scores (B, K); K is at most P.
    """
    ordered, indices = torch.sort(scores, dim=1, descending=True, stable=True)
    if path_sources is not None:
        sources = path_sources.gather(1, indices)
        repeated = (sources[:, :, None] == sources[:, None, :]).tril(-1).any(-1)
        first = torch.sort((repeated | ordered.isneginf()).long(), dim=1, stable=True)
        indices, ordered = indices.gather(1, first.indices), ordered.gather(1, first.indices)
        ordered = ordered.masked_fill(first.values.bool(), -torch.inf)
    ordered, indices = ordered[:, :count], indices[:, :count]
    return indices.masked_fill(ordered.isneginf(), -1), ordered


def assemble_prompt(
    prefix_input_ids: torch.Tensor,
    prefix_attention_mask: torch.Tensor,
    path_input_ids: torch.Tensor,
    path_attention_mask: torch.Tensor,
    suffix_input_ids: torch.Tensor,
    suffix_attention_mask: torch.Tensor,
    selected_paths: torch.Tensor,
    max_length: int,
) -> AssembledPrompt:
    """prefix + selected paths, best first + suffix, packed to the right without gaps.

    Where the whole would be longer than `max_length`, the lowest-scored paths are left out. (The processor has already
    cut the history so that prefix and suffix fit.)
    """
    chosen = selected_paths.clamp(min=0)[:, :, None].expand(-1, -1, path_input_ids.shape[2])
    paths = path_input_ids.gather(1, chosen)
    mask = path_attention_mask.gather(1, chosen).bool() & (selected_paths >= 0)[:, :, None]
    room = max_length - prefix_attention_mask.sum(1) - suffix_attention_mask.sum(1)
    fits = mask.sum(2).cumsum(1) <= room[:, None]
    mask = mask & fits[:, :, None]
    ranks = torch.arange(paths.shape[1], device=paths.device)[None, :, None].expand_as(paths)

    ids = torch.cat([prefix_input_ids, paths.flatten(1), suffix_input_ids], dim=1)
    mask = torch.cat([prefix_attention_mask.bool(), mask.flatten(1), suffix_attention_mask.bool()], dim=1)
    sides = [torch.full_like(part, -1) for part in (prefix_input_ids, suffix_input_ids)]
    rank = torch.cat([sides[0], ranks.flatten(1), sides[1]], dim=1)
    # padding first, tokens in their order after it
    order = torch.sort(mask.to(torch.uint8), dim=1, stable=True).indices
    order = order[:, -max(1, int(mask.sum(1).max())) :]
    mask = mask.gather(1, order)
    return AssembledPrompt(
        input_ids=ids.gather(1, order).masked_fill(~mask, 0),
        attention_mask=mask.long(),
        path_rank=rank.gather(1, order).masked_fill(~mask, -1),
    )
