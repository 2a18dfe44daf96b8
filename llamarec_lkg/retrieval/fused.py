"""Candidates by retriever, evidence and popularity together, over the whole catalogue.

What the retriever misses, the graph may find: the ceiling of every ranker rises. The parts are weighed by a few
numbers for all users, fitted on training positions whose retriever, co-ratings and counts have not seen them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from tqdm.auto import tqdm

from ..data.schema import PADDING_ITEM
from ..data.sequences import SequenceDataset
from ..graph.evidence import EvidenceIndex
from .base import Retriever, exclude_history, top_k


POOL = 100  # of each kind, the items that weights are fitted on beside the target
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
    """The weights under which the targets of training positions stand out best (cross-entropy) among what the
    retriever, each kind of evidence and chance would propose.

    At most `FITTED_POSITIONS` positions are drawn by `seed`: a dozen numbers need no more.
    """
    folds, generator = list(folds), np.random.default_rng(seed)
    share = min(1.0, FITTED_POSITIONS / max(1, sum(len(fold.positions) for fold in folds)))
    features, masks, total = [], [], sum(int(len(fold.positions) * share) for fold in folds)
    with tqdm(total=total, desc="weigh candidates", unit="list", disable=not progress) as bar:
        for fold in folds:
            positions = generator.permutation(fold.positions)[: int(len(fold.positions) * share)]
            for start in range(0, len(positions), 256):
                block = positions[start : start + 256]
                read = _features(dataset, fold, np.sort(block), recent_half_life, generator)
                features.append(read[0])
                masks.append(read[1])
                bar.update(len(block))
    width = max(one.shape[1] for one in features)
    stacked = torch.from_numpy(np.concatenate([_widened(one, width) for one in features]))
    mask = torch.from_numpy(np.concatenate([_widened(one, width) for one in masks]))
    spread = stacked[mask].std(0).clamp(min=1e-6)
    weights = listwise_weights(stacked / spread, mask, torch.zeros(len(stacked), dtype=torch.long)) / spread
    values, count = weights.tolist(), folds[0].index.num_relations
    return CandidateWeights(values[0], values[1 : 1 + count], values[1 + count : 1 + 2 * count], values[-1])


@torch.enable_grad()
def listwise_weights(
    features: torch.Tensor,
    mask: torch.Tensor,
    labels: torch.Tensor,
    shrinkage: float = 1e-4,
    given: torch.Tensor | None = None,
) -> torch.Tensor:
    """The weights (F,) of a sum of `features` (N, C, F) with the least listwise cross-entropy, by L-BFGS.

    Args:
        mask (`bool`, (N, C)): real candidates.
        labels (`long`, (N,)): index of the target.
        shrinkage: of squared weights.
        given (N, C): scores that are in the sum whatever it weighs; by default none.
    """
    features = features.double()
    weights = torch.zeros(features.shape[-1], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        scores = features @ weights if given is None else features @ weights + given
        scores = scores.masked_fill(~mask, -torch.inf)
        value = F.cross_entropy(scores, labels) + shrinkage * weights.square().sum()
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
    """Of a pool of items for each position, the target first: features (B, C, 2 + 2R), and which are real (B, C)."""
    recent = fold.index.with_half_life(recent_half_life)
    histories = [dataset.item_sequence[dataset.history(position)] for position in positions]
    scores = exclude_history(fold.retriever.score(histories), histories)
    said = fold.index.catalogue(histories, np.ones((len(positions), fold.index.num_relations)))
    last = recent.catalogue(histories, np.ones((len(positions), fold.index.num_relations)))
    drawn = generator.integers(1, dataset.num_items + 1, (len(positions), POOL))
    proposed = [top_k(exclude_history(values, histories), POOL)[0] for values in (scores, said, last)]
    pools = []
    for row, position in enumerate(positions):
        target = dataset.item_sequence[position]
        pool = np.unique(np.concatenate([*(items[row] for items in proposed), drawn[row]]))
        pools.append(np.concatenate([[target], np.setdiff1d(pool, [*histories[row], target, PADDING_ITEM])]))
    width = max(map(len, pools))
    items = np.zeros((len(positions), width), dtype=np.int64)
    for row, pool in enumerate(pools):
        items[row, : len(pool)] = pool
    mask = items != PADDING_ITEM
    first_stage = np.take_along_axis(scores, items, axis=1)[..., None]
    # a target that stands in its own history is no candidate
    mask[:, 0] = np.isfinite(first_stage[:, 0, 0])
    parts = [
        first_stage,
        fold.index.evidence(histories, pools),
        recent.evidence(histories, pools),
        fold.log_counts[items][..., None],
    ]
    kept = np.flatnonzero(mask[:, 0])
    features = np.where(mask[..., None], np.concatenate(parts, axis=-1), 0.0).astype(np.float32)
    return features[kept], mask[kept]


def _widened(values: np.ndarray, width: int) -> np.ndarray:
    padding = [(0, 0)] * values.ndim
    padding[1] = (0, width - values.shape[1])
    return np.pad(values, padding)
