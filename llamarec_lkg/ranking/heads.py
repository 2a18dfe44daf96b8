"""What the ranker trains beside the backbone: the preferences over relations, what reads the language model's states,
and the fusion of all scores."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import nn

from ..data.schema import UNKNOWN_USER
from ..graph.statistics import STATISTICS
from .configuration_llamarec_lkg import LlamaRecLKGConfig


class UserPreferenceModule(nn.Module):
    """Relation logits of a user, from the history's relation statistics and an id embedding that known users add.

    One small network reads each relation's statistics, and how they differ from the mean over relations; a vector of
    its own tells it which relation it is. So few users teach many relations.
    """

    def __init__(self, config: LlamaRecLKGConfig):
        super().__init__()
        self.user_dropout = config.user_dropout
        self.dropout = nn.Dropout(config.preference_dropout)
        self.bias = nn.Parameter(torch.zeros(config.num_relations))
        self.history_in = self.history_out = self.history_skip = self.relation_embedding = None
        self.user_embedding = self.user_norm = self.user_out = None
        if config.use_history_preferences:
            hidden = config.preference_hidden_size
            self.history_in = nn.Linear(2 * len(STATISTICS), hidden)
            self.relation_embedding = nn.Parameter(torch.zeros(config.num_relations, hidden))
            self.history_out = nn.Linear(hidden, 1, bias=False)
            self.history_skip = nn.Linear(2 * len(STATISTICS), 1, bias=False)
        if config.use_user_embedding:
            size = config.user_embedding_size or config.num_relations
            if config.num_users:
                self.user_embedding = nn.Embedding(config.num_users + 1, size, padding_idx=UNKNOWN_USER)
            if config.user_embedding_size:
                self.user_norm = nn.LayerNorm(size)
                self.user_out = nn.Linear(size, config.num_relations, bias=False)

    def forward(self, user_ids: torch.Tensor, history_relations: torch.Tensor) -> torch.Tensor:
        """(B,) dense users and (B, R, S) statistics -> (B, R) logits. User 0 and unseen ids get the history's part
        alone."""
        logits = self.bias.float().expand(len(user_ids), -1)
        if self.history_in is not None:
            statistics = history_relations.to(self.history_in.weight.dtype)
            statistics = torch.cat([statistics, statistics - statistics.mean(1, keepdim=True)], dim=-1)
            hidden = self.dropout(F.gelu(self.history_in(statistics) + self.relation_embedding))
            logits = logits + (self.history_out(hidden) + self.history_skip(statistics))[..., 0].float()
        if self.training and self.user_dropout > 0:
            hide = torch.rand(user_ids.shape, device=user_ids.device) < self.user_dropout
            user_ids = user_ids.masked_fill(hide, UNKNOWN_USER)
        return logits + self.personal(user_ids)

    def personal(self, user_ids: torch.Tensor) -> torch.Tensor:
        """What known users' ids add to the logits, (B, R); zero for all others."""
        if self.user_embedding is None:
            return self.bias.new_zeros(len(user_ids), len(self.bias), dtype=torch.float32)
        user_ids = user_ids.masked_fill(user_ids >= self.user_embedding.num_embeddings, UNKNOWN_USER)
        personal = self.user_embedding(user_ids)
        if self.user_out is not None:
            personal = self.user_out(self.dropout(self.user_norm(personal)))
        return personal.float() * (user_ids != UNKNOWN_USER)[:, None]

    def take_users(self, weight: torch.Tensor) -> None:
        """Put the weights of single users in place, (num_users + 1, size); row 0 is the average user's."""
        if self.user_embedding is not None and self.user_embedding.weight.shape == weight.shape:
            with torch.no_grad():  # an optimizer may hold the table already
                self.user_embedding.weight.copy_(weight)
            return
        table = nn.Embedding.from_pretrained(weight.float(), freeze=False, padding_idx=UNKNOWN_USER)
        self.user_embedding = table.to(self.bias.device).requires_grad_(self.bias.requires_grad)


class CandidateReadout(nn.Module):
    """Scores of candidates from the language model's states: k(candidate) . q(prefix) / sqrt(size) + f(candidate).

    The layers that a score passes last are zero at the start, k and the last one of f: a ranker that has learned
    nothing from its language model says what its other parts say, exactly. All in float32.

    Args:
        width: of the language model's states.
    """

    def __init__(self, width: int):
        super().__init__()
        self.size = min(128, width)
        self.norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, self.size)
        self.key = nn.Linear(width, self.size)
        self.hidden = nn.Linear(width, self.size)
        self.out = nn.Linear(self.size, 1, bias=False)
        for weight in (*self.key.parameters(), self.out.weight):
            nn.init.zeros_(weight)

    def forward(self, prefix: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
        """States at the end of the prefix (B, D) and of each candidate (B, C, D) -> scores (B, C)."""
        prefix, candidates = self.norm(prefix.float()), self.norm(candidates.float())
        fit = (self.key(candidates) * self.query(prefix)[:, None]).sum(-1) / self.size**0.5
        return fit + self.out(F.gelu(self.hidden(candidates)))[..., 0]


class PartWeights(nn.Module):
    """What each part of a score weighs: `retrieval_weight`, `evidence_weight` and `popularity_weight` of shape (1,),
    and `recent_weight` (R,), of the evidence that the last items give along each relation."""

    def __init__(self, config: LlamaRecLKGConfig):
        super().__init__()
        for name in ("evidence_weight", "retrieval_weight"):
            # of shape (1,): FSDP2 cannot shard what has no dimension
            self.register_parameter(name, nn.Parameter(torch.tensor([float(getattr(config, name))])))
        self.recent_weight = nn.Parameter(torch.zeros(config.num_relations))
        self.popularity_weight = nn.Parameter(torch.zeros(1))
        self.evidence_weight.requires_grad_(config.use_evidence_fusion)
        self.recent_weight.requires_grad_(config.use_evidence_fusion)
        self.retrieval_weight.requires_grad_(config.use_retrieval_scores)
        self.popularity_weight.requires_grad_(config.use_popularity)


class ScoreFusion(PartWeights):
    """logits = l * language model + b * retriever + p * popularity + evidence, each part behind its switch.

    Evidence is summed over relations: a * preference * evidence + c * recent evidence, with one c a relation.

    Without the language model's scores the other parts have weights of their own, `alone`: what the retriever deserves
    beside it is not what it deserves by itself. What the language model, the retriever and popularity say is taken
    relative to the list's mean. Order and loss are the same; a part of a score then says what tells a candidate from
    the others.
    """

    def __init__(self, config: LlamaRecLKGConfig):
        super().__init__(config)
        self.config = config
        self.lm_scale = nn.Parameter(torch.tensor([float(config.lm_scale)]))
        self.lm_scale.requires_grad_(config.use_language_model and config.learn_lm_scale)
        # Fitted by themselves: a parameter that a pass does not reach would stop training on several devices.
        self.alone = PartWeights(config).requires_grad_(False)

    def weights(self, with_language_model: bool) -> PartWeights:
        """The weights beside the language model, or without it."""
        return self if with_language_model else self.alone

    def forward(
        self,
        lm_scores: torch.Tensor | None,
        preferences: torch.Tensor,
        evidence: torch.Tensor,
        retrieval_scores: torch.Tensor,
        candidate_mask: torch.Tensor,
        recent_evidence: torch.Tensor | None = None,
        popularity: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The logits (B, C), and the terms of the sum: "language model", "retriever" and "popularity" (B, C),
        "evidence" by relation (B, C, R)."""
        none = torch.zeros_like(retrieval_scores, dtype=torch.float32)
        parts = {"language model": none, "retriever": none, "popularity": none}
        weights = self.weights(lm_scores is not None)
        if lm_scores is not None:
            parts["language model"] = self.lm_scale * less_mean(lm_scores, candidate_mask)
        if self.config.use_retrieval_scores:
            parts["retriever"] = weights.retrieval_weight * less_mean(retrieval_scores, candidate_mask)
        if self.config.use_popularity and popularity is not None:
            parts["popularity"] = weights.popularity_weight * less_mean(popularity, candidate_mask)
        if self.config.use_evidence_fusion:
            parts["evidence"] = weights.evidence_weight * preferences[:, None, :] * evidence.float()
            if recent_evidence is not None:
                parts["evidence"] = parts["evidence"] + weights.recent_weight * recent_evidence.float()
        logits = sum(part.sum(-1) if name == "evidence" else part for name, part in parts.items())
        return logits.masked_fill(~candidate_mask, torch.finfo(torch.float32).min), parts


def less_mean(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """(B, C) values less each row's mean over its real candidates; what is none counts as 0."""
    values = values.float().masked_fill(~mask, 0.0)
    return values - values.sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)


def straight_through(gate: torch.Tensor) -> torch.Tensor:
    """1 in the forward pass; in the backward pass the gradient of `gate`."""
    return 1.0 + gate - gate.detach()


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Inside, a module is in eval mode; after it, also after an error, each of its parts is in the mode it was in."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training
