"""The lists a ranker learns from, out of fold, and those that its parts are weighed by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ..data.schema import RankingExample
from ..data.sequences import SequenceDataset
from ..graph.evidence import EvidenceIndex
from ..graph.knowledge_graph import KnowledgeGraph
from ..ranking.processing_llamarec_lkg import LlamaRecLKGProcessor
from ..retrieval.base import Retriever
from ..retrieval.candidates import best_lists, drawn_lists, evidence_scale, training_examples, with_features
from ..retrieval.fused import Fold, FusedRetriever, fit_candidate_weights
from .run_config import ExamplesSection


HELD_OUT_FOLD = 0  # its users' lists train nothing but the weights of the parts
SCALE_PER_USER = 4  # lists of each user that relations are scaled by


@dataclass(frozen=True)
class FoldParts:
    """What is known without the users of a fold.

    Args:
        fold_of_user (shape (num_users + 1,), optional): the same in all folds; None where nobody is left out.
        log_counts (shape (num_items + 1,)): log(1 + training interactions).
    """

    fold_of_user: np.ndarray | None
    retriever: Retriever
    graph: KnowledgeGraph
    log_counts: np.ndarray


@dataclass(frozen=True)
class TrainingLists:
    """Lists with their features.

    Args:
        train: candidates in random order, some drawn from a larger pool. They teach language model and preferences.
        best: the best candidates in the order of retrieval, as in evaluation, of all users. With `validation` they
            teach the control without a language model, `Stacker`.
        held_out: of these, those of users in no list of `train`.
        validation: validation targets among the candidates that the final retriever finds, as at test time.
    """

    train: list[RankingExample]
    best: list[RankingExample]
    held_out: list[RankingExample]
    validation: list[RankingExample] = field(default_factory=list)

    @property
    def unseen(self) -> list[RankingExample]:
        """Lists that the ranker learns nothing else from (validation also chooses when to stop): they say what the
        parts of a score are worth. Held-out ones alone would undervalue the retriever, which there knows nothing of
        their users."""
        return [*self.held_out, *self.validation]

    def describe(self) -> str:
        aside = f", {len(self.unseen):,} others to weigh the parts by" if self.unseen else ""
        return f"{len(self.train):,} lists{aside}"


def sampled(
    examples: Sequence[RankingExample], count: int | None, seed: int, groups: Sequence[np.ndarray] | None = None
) -> Sequence[RankingExample]:
    """`count` lists whose target was retrieved, drawn by `seed`, in their order; None takes all lists. Of `groups` of
    rows (`share_histories`) whole ones are drawn, but for the last."""
    if count is None:
        return examples
    generator = np.random.default_rng(seed)
    rows = np.flatnonzero([example.label >= 0 for example in examples])
    if groups is None:
        drawn = generator.permutation(rows)
    else:
        drawn = np.concatenate([rows[:0], *(groups[place] for place in generator.permutation(len(groups)))])
        drawn = drawn[np.isin(drawn, rows)]
    return [examples[row] for row in np.sort(drawn[:count])]


def make_lists(
    dataset: SequenceDataset,
    folds: Sequence[FoldParts],
    processor: LlamaRecLKGProcessor,
    section: ExamplesSection,
    *,
    seed: int = 42,
    progress: bool = True,
) -> TrainingLists:
    """Lists at training positions, by the settings of `section`. Sets the processor's `evidence_scale` and, where
    candidates are found by evidence, too, its `candidate_weights`."""
    fold_of_user, retrievers = folds[0].fold_of_user, [fold.retriever for fold in folds]
    indexes = [EvidenceIndex.from_graph(fold.graph, half_life=processor.evidence_half_life) for fold in folds]
    log_counts, half_life = [fold.log_counts for fold in folds], processor.recent_half_life
    options = {"seed": seed, "progress": progress}

    def lists(retrievers: Sequence[Retriever], count: int, per_user: int | None, **how) -> list[RankingExample]:
        how = {"num_candidates": count, "per_user": per_user, **how, **options}
        return training_examples(dataset, retrievers, fold_of_user, **how)

    def scaled(examples: Sequence[RankingExample]) -> list[EvidenceIndex]:
        scale = evidence_scale(examples, indexes, fold_of_user)
        processor.set_evidence_scale(scale)
        return [index.with_scale(scale) for index in indexes]

    def featured(examples: Sequence[RankingExample]) -> list[RankingExample]:
        features = {"log_counts": log_counts, "recent_half_life": half_life, "progress": progress}
        return with_features(examples, indexes, fold_of_user, **features)

    count, per_user = processor.num_candidates, section.per_user
    if fold_of_user is None or section.negatives == "uniform":
        found = lists(retrievers, count, per_user, negatives=section.negatives, shuffle=section.shuffle)
        indexes = scaled(found)
        return TrainingLists(featured(found), [], [])
    indexes = scaled(lists(retrievers, count, SCALE_PER_USER))
    if section.fuse_candidates:
        positions = dataset.positions("train")
        positions = positions[~np.isin(positions, dataset.offsets[:-1])]
        fold_of = fold_of_user[dataset.user_of(positions)]
        known = list(zip(retrievers, indexes, log_counts, strict=True))
        parts = [Fold(positions[fold_of == fold], *part) for fold, part in enumerate(known)]
        weights = fit_candidate_weights(dataset, parts, recent_half_life=half_life, **options)
        processor.candidate_weights = weights
        retrievers = [FusedRetriever(*part, weights, half_life) for part in known]
    pools = featured(lists(retrievers, max(section.pool, count), per_user, shuffle=False))
    aside = fold_of_user == HELD_OUT_FOLD
    learned = [pool for pool in pools if not aside[pool.user]]
    best = best_lists(pools, count)
    return TrainingLists(
        drawn_lists(learned, count, pool_share=section.pool_share, seed=seed),
        best,
        [example for example in best if aside[example.user]],
    )
