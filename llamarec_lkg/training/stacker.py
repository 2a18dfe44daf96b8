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

    def __init__(self, networks: list[nn.Module], mean: torch.Tensor, spread: torch.Tensor):
        self.networks, self.mean, self.spread = networks, mean, spread

    @classmethod
    def fit(cls, batch: Mapping[str, torch.Tensor], *, seed: int = 42, progress: bool = True) -> Stacker:
        """Fit to the least listwise cross-entropy. The epoch is chosen on the lists of a quarter of the users.

        Args:
            batch: from `heads_batch`, of lists as evaluation sees them, made out of fold.
        """
        features, mask, labels = _features(batch), batch["candidate_mask"], batch["labels"]
        mean, spread = features[mask].mean(0), features[mask].std(0)
        spread = spread.masked_fill(spread < 1e-6, torch.inf)  # what never varied here has no say elsewhere
        features = ((features - mean) / spread).masked_fill(~mask[..., None], 0.0)
        aside = batch["user_ids"] % 4 == 0
        networks = []
        with torch.random.fork_rng():
            for number in trange(NETWORKS, desc="fit stacker", unit="network", disable=not progress):
                torch.manual_seed(seed + number)
                networks.append(_fit_network(features, mask, labels, aside))
        return cls(networks, mean, spread)

    @torch.no_grad()
    def score(self, batch: Mapping[str, torch.Tensor]) -> np.ndarray:
        """Scores of the candidates of a `heads_batch`, (N, C), -inf where there is none."""
        features = (_features(batch) - self.mean) / self.spread
        scores = sum(network(features)[..., 0] for network in self.networks) / len(self.networks)
        return scores.masked_fill(~batch["candidate_mask"], -torch.inf).numpy()


def _features(batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """What a network reads of each candidate, (N, C, F)."""
    mask = batch["candidate_mask"]
    retrieved = batch["retrieval_scores"].masked_fill(~mask, -torch.inf)
    rank = (-retrieved).argsort(dim=1, stable=True).argsort(dim=1, stable=True)
    told = [
        less_mean(batch["retrieval_scores"], mask),
        1 / torch.log2(rank + 2.0),
        less_mean(batch["popularity"], mask),
    ]
    statistics = batch["history_relations"]
    history = torch.cat([statistics[..., :-1].flatten(1), statistics[:, 0, -1:]], dim=-1)  # the last one is the length
    history = history[:, None].expand(-1, mask.shape[1], -1)
    return torch.cat([torch.stack(told, dim=-1), batch["evidence"], batch["recent_evidence"], history], dim=-1)


def _fit_network(features: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor, aside: torch.Tensor) -> nn.Module:
    network = nn.Sequential(nn.Linear(features.shape[-1], HIDDEN), nn.GELU(), nn.Dropout(0.1), nn.Linear(HIDDEN, 1))
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=0.05)

    def loss(rows: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(network(features[rows])[..., 0].masked_fill(~mask[rows], -torch.inf), labels[rows])

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
