"""The control that decides whether a language model earns its cost: its features in a small network without one."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from tqdm.auto import trange

from ..ranking.heads import less_mean


NETWORKS, HIDDEN, EPOCHS, PATIENCE = 5, 16, 300, 30


class Stacker:
    """Small networks that score candidates by everything the ranker has beside its language model; the mean of their
    scores ranks.

    What they read of a candidate: the retriever's score and its rank, popularity, evidence and recent evidence along
    each relation; and of the history the statistics of each relation, which the ranker's preferences read, and its
    length. Scores and popularity are relative to the list's mean, as in the ranker.
    """

    def __init__(self, networks: list[_Network], scales: list[tuple[torch.Tensor, torch.Tensor]]):
        self.networks, self.scales = networks, scales

    @classmethod
    def fit(cls, batch: Mapping[str, torch.Tensor], *, seed: int = 42, progress: bool = True) -> Stacker:
        """Fit to the least listwise cross-entropy. The epoch is chosen on the lists of a quarter of the users.

        Args:
            batch: from `heads_batch`, of lists as evaluation sees them, by retrievers that have not seen the targets.
        """
        (candidates, history), mask, labels = _features(batch), batch["candidate_mask"], batch["labels"]
        scales = [_scale(candidates[mask]), _scale(history)]
        inputs = _scaled(candidates, *scales[0]).masked_fill(~mask[..., None], 0.0), _scaled(history, *scales[1])
        aside = batch["user_ids"] % 4 == 0
        networks = []
        with torch.random.fork_rng():
            for number in trange(NETWORKS, desc="fit stacker", unit="network", disable=not progress):
                torch.manual_seed(seed + number)
                networks.append(_fit_network(inputs, mask, labels, aside))
        return cls(networks, scales)

    @torch.no_grad()
    def score(self, batch: Mapping[str, torch.Tensor]) -> np.ndarray:
        """Scores of the candidates of a `heads_batch`, (N, C), -inf where there is none."""
        inputs = [_scaled(values, *scale) for values, scale in zip(_features(batch), self.scales, strict=True)]
        scores = sum(network(*inputs) for network in self.networks) / len(self.networks)
        return scores.masked_fill(~batch["candidate_mask"], -torch.inf).numpy()


class _Network(nn.Module):
    """Scores of candidates (N, C), from what is known of them (N, C, F) and of their history (N, H)."""

    def __init__(self, candidate_size: int, history_size: int):
        super().__init__()
        self.candidate = nn.Linear(candidate_size, HIDDEN)
        self.history = nn.Linear(history_size, HIDDEN, bias=False)
        self.out = nn.Sequential(nn.GELU(), nn.Dropout(0.1), nn.Linear(HIDDEN, 1))

    def forward(self, candidates: torch.Tensor, history: torch.Tensor) -> torch.Tensor:
        return self.out(self.candidate(candidates) + self.history(history)[:, None])[..., 0]


def _features(batch: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """What a network reads of each candidate (N, C, F), and of its history (N, H)."""
    mask, statistics = batch["candidate_mask"], batch["history_relations"]
    retrieved = batch["retrieval_scores"].masked_fill(~mask, -torch.inf)
    rank = (-retrieved).argsort(dim=1, stable=True).argsort(dim=1, stable=True)
    told = [less_mean(batch[name], mask) for name in ("retrieval_scores", "popularity")] + [1 / torch.log2(rank + 2.0)]
    candidates = torch.cat([torch.stack(told, dim=-1), batch["evidence"], batch["recent_evidence"]], dim=-1)
    # the last statistic is the length, the same for all relations
    return candidates, torch.cat([statistics[..., :-1].flatten(1), statistics[:, 0, -1:]], dim=-1)


def _scale(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and spread of each column; what never varied has no say in other lists."""
    spread = values.std(0)
    return values.mean(0), spread.masked_fill(spread < 1e-6, torch.inf)


def _scaled(values: torch.Tensor, mean: torch.Tensor, spread: torch.Tensor) -> torch.Tensor:
    return (values - mean) / spread


def _fit_network(
    inputs: tuple[torch.Tensor, torch.Tensor], mask: torch.Tensor, labels: torch.Tensor, aside: torch.Tensor
) -> _Network:
    network = _Network(*(values.shape[-1] for values in inputs))
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=0.05)

    def loss(rows: torch.Tensor) -> torch.Tensor:
        scores = network(*(values[rows] for values in inputs))
        return F.cross_entropy(scores.masked_fill(~mask[rows], -torch.inf), labels[rows])

    best, best_loss, best_epoch = network, float("inf"), 0
    for epoch in range(EPOCHS):
        for rows in torch.randperm(len(labels)).split(4096):
            optimizer.zero_grad()
            loss(rows[~aside[rows]]).backward()
            optimizer.step()
        network.eval()
        with torch.no_grad():
            now = float(loss(aside.nonzero()[:, 0]))
        network.train()
        if now < best_loss - 1e-4:
            best, best_loss, best_epoch = deepcopy(network), now, epoch
        elif epoch - best_epoch >= PATIENCE:
            break
    return best.eval()
