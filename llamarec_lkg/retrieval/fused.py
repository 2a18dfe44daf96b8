"""Candidates by retriever, evidence and popularity together, over the whole catalogue.

What the retriever misses, the graph may find: the ceiling of every ranker rises. The parts are weighed by a few
numbers for all users, fitted on training positions whose retriever, co-ratings and counts have not seen them.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
import torch.nn.functional as F
from scipy.special import log_softmax
from tqdm.auto import tqdm

from ..data.schema import PADDING_ITEM
from ..data.sequences import SequenceDataset
from ..graph.evidence import EvidenceIndex
from .base import Retriever, exclude_history, frozen, never_ranked, rows_at_once, top_k


POOL = 100  # items of each kind that weights are fitted on beside the target
FITTED_POSITIONS = 4096


@dataclass(frozen=True)
class CandidateWeights:
    """What evidence along each of R relations, the same from the last items alone, and popularity weigh beside
    `retriever` times the retriever's score."""

    retriever: float = 1.0
    evidence: Sequence[float] = field(default_factory=tuple)
    recent: Sequence[float] = field(default_factory=tuple)
    popularity: float = 0.0


class FusedRetriever:
    """A retriever, evidence over the catalogue and popularity as one retriever.

    Args:
        retriever: the first part.
        index: evidence, in the scale that the weights were fitted in.
        log_counts (shape (num_items + 1,)): log(1 + training interactions) of each item.
        weights: of the parts.
        recent_half_life: of the recent evidence.
    """

    def __init__(
        self,
        retriever: Retriever,
        index: EvidenceIndex,
        log_counts: np.ndarray,
        weights: CandidateWeights,
        recent_half_life: float = 1.0,
    ):
        self.retriever, self.index, self.log_counts, self.weights = retriever, index, log_counts, weights
        self.recent_index = index.with_half_life(recent_half_life)
        self.num_items = retriever.num_items

    @property
    def catalogue(self) -> str | None:
        return getattr(self.retriever, "catalogue", None)

    def frozen(self) -> FusedRetriever:
        """As of every retriever that has it ([`~base.frozen`])."""
        fused = copy.copy(self)
        fused.retriever = frozen(self.retriever)
        return fused

    def score(self, histories: Sequence[np.ndarray]) -> np.ndarray:
        """As of every [`Retriever`]."""
        return self.join(self.retriever.score(histories), histories)

    def join(self, retrieval_scores: np.ndarray, histories: Sequence[np.ndarray]) -> np.ndarray:
        """The retriever's scores (B, num_items + 1) joined by the other parts; a new array."""
        weights, size = self.weights, (len(histories), 1)
        scores = weights.retriever * retrieval_scores + weights.popularity * self.log_counts
        scores += self.index.catalogue(histories, np.tile(weights.evidence, size))
        scores += self.recent_index.catalogue(histories, np.tile(weights.recent, size))
        scores[:, PADDING_ITEM] = -np.inf
        return scores.astype(np.float32)


class MeanRetriever:
    """Several retrievers of the same items as one: the mean of their log-probabilities."""

    def __init__(self, retrievers: Sequence[Retriever]):
        self.retrievers, self.num_items = retrievers, retrievers[0].num_items

    def frozen(self) -> MeanRetriever:
        """As of every retriever that has it ([`~base.frozen`])."""
        return MeanRetriever([frozen(retriever) for retriever in self.retrievers])

    def score(self, histories: Sequence[np.ndarray]) -> np.ndarray:
        """Of every item the mean log-probability, (B, num_items + 1)."""
        logs = [log_softmax(retriever.score(histories), axis=1) for retriever in self.retrievers]
        return np.mean(logs, axis=0, dtype=np.float32)


@dataclass(frozen=True)
class Fold:
    """Positions, and what is known without the users of these positions: retriever, evidence and log counts."""

    positions: np.ndarray
    retriever: Retriever
    index: EvidenceIndex
    log_counts: np.ndarray


def fit_candidate_weights(
    dataset: SequenceDataset,
    folds: Iterable[Fold],
    *,
    recent_half_life: float = 1.0,
    seed: int = 42,
    progress: bool = True,
) -> CandidateWeights:
    """The weights under which the targets of training positions stand out best in the whole catalogue
    (cross-entropy).

    Of the catalogue enter what the retriever and each kind of evidence would propose, and items drawn at random that
    stand for all others. At most `FITTED_POSITIONS` positions are drawn by `seed`: so few weights need no more.
    """
    folds, generator = list(folds), np.random.default_rng(seed)
    share = min(1.0, FITTED_POSITIONS / max(1, sum(len(fold.positions) for fold in folds)))
    found: list[tuple[np.ndarray, ...]] = []
    total = sum(int(len(fold.positions) * share) for fold in folds)
    with tqdm(total=total, desc="weigh candidates", unit="list", disable=not progress) as bar:
        for fold in folds:
            fold, rows = replace(fold, retriever=frozen(fold.retriever)), rows_at_once(dataset.num_items, 256)
            positions = generator.permutation(fold.positions)[: int(len(fold.positions) * share)]
            for start in range(0, len(positions), rows):
                block = positions[start : start + rows]
                found.append(_features(dataset, fold, np.sort(block), recent_half_life, generator))
                bar.update(len(block))
    width = max(features.shape[1] for features, _ in found)
    features, stands_for = (
        torch.from_numpy(np.concatenate([_widened(one[part], width) for one in found])) for part in (0, 1)
    )
    mask, labels = stands_for > 0, torch.zeros(len(features), dtype=torch.long)
    spread = features[mask].std(0).clamp(min=1e-6)
    weights = listwise_weights(features / spread, mask, labels, given=stands_for.clamp(min=1.0).log()) / spread
    values, count = weights.tolist(), folds[0].index.num_relations
    return CandidateWeights(values[0], values[1 : 1 + count], values[1 + count : 1 + 2 * count], values[-1])


@torch.enable_grad()
def listwise_weights(
    features: torch.Tensor,
    mask: torch.Tensor,
    labels: torch.Tensor,
    *,
    shrinkage: float = 1e-4,
    prior: torch.Tensor | None = None,
    given: torch.Tensor | None = None,
) -> torch.Tensor:
    """The weights (F,) of a sum of `features` (N, C, F) with the least listwise cross-entropy, by L-BFGS.

    Args:
        mask (`bool`, (N, C)): real candidates.
        labels (`long`, (N,)): index of the target.
        shrinkage: of squared weights, or of their squared distance to `prior` (F,).
        given (N, C): scores that are in the sum whatever it weighs; by default none.
    """
    features = features.double()
    prior = torch.zeros(features.shape[-1]) if prior is None else prior
    weights = prior.double().clone().requires_grad_()
    optimizer = torch.optim.LBFGS([weights], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        scores = features @ weights if given is None else features @ weights + given
        scores = scores.masked_fill(~mask, -torch.inf)
        value = F.cross_entropy(scores, labels) + shrinkage * (weights - prior).square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return weights.detach().float()


def _features(
    dataset: SequenceDataset,
    fold: Fold,
    positions: np.ndarray,
    recent_half_life: float,
    generator: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Of a pool of items for each position, the target first: features (B, C, 2 + 2R), and how many items of the
    catalogue each stands for (B, C), 0 where there is none."""
    recent = fold.index.with_half_life(recent_half_life)
    histories = [dataset.item_sequence[dataset.history(position)] for position in positions]
    away = never_ranked(histories, dataset.settings.repeats)
    scores = exclude_history(fold.retriever.score(histories), away)
    said = fold.index.catalogue(histories, np.ones((len(positions), fold.index.num_relations)))
    last = recent.catalogue(histories, np.ones((len(positions), fold.index.num_relations)))
    drawn = generator.integers(1, dataset.num_items + 1, (len(positions), POOL))
    proposed = [top_k(exclude_history(values, away), POOL)[0] for values in (scores, said, last)]
    pools, counts = [], []
    for row, (position, out) in enumerate(zip(positions, away, strict=True)):
        target = dataset.item_sequence[position]
        sure = np.unique(np.concatenate([items[row] for items in proposed]))
        sure = np.append(target, sure[(sure != target) & (sure != PADDING_ITEM)])
        chance = np.setdiff1d(drawn[row], np.append(sure, out))
        others = dataset.num_items - len(sure) - len(np.setdiff1d(out, target))
        pools.append(np.append(sure, chance))
        counts.append(np.append(np.ones(len(sure)), np.full(len(chance), others / max(len(chance), 1))))
    width = max(map(len, pools))
    items, stands_for = np.zeros((len(pools), width), dtype=np.int64), np.zeros((len(pools), width), np.float32)
    for row, pool in enumerate(pools):
        items[row, : len(pool)], stands_for[row, : len(pool)] = pool, counts[row]
    first_stage = np.take_along_axis(scores, items, axis=1)[..., None]
    half_lives = fold.index.half_life, recent_half_life
    evidence, _ = fold.index.features(histories, pools, half_lives, with_statistics=False)
    parts = [first_stage, *evidence, fold.log_counts[items][..., None]]
    # where repeats are excluded, a target that stands in its own history is no candidate
    kept = np.flatnonzero(np.isfinite(first_stage[:, 0, 0]))
    features = np.where(stands_for[..., None] > 0, np.concatenate(parts, axis=-1), 0.0).astype(np.float32)
    return features[kept], stands_for[kept]


def _widened(values: np.ndarray, width: int) -> np.ndarray:
    padding = [(0, 0)] * values.ndim
    padding[1] = (0, width - values.shape[1])
    return np.pad(values, padding)
