"""Controls: scores of a trained ranker with one thing taken away."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from ..data.schema import RankingExample
from ..utils.errors import LKGError
from .modeling_llamarec_lkg import LlamaRecLKGForRanking
from .processing_llamarec_lkg import LlamaRecLKGProcessor
from .scoring import ranker_scores


CONTROLS = ("no-kg", "shuffled-kg", "uniform-preferences", "other-user-preferences", "permuted-titles")


def control_scores(
    name: str,
    model: LlamaRecLKGForRanking,
    processor: LlamaRecLKGProcessor,
    examples: Sequence[RankingExample],
    *,
    seed: int = 0,
    score: Callable[..., np.ndarray] = ranker_scores,
    **options,
) -> np.ndarray:
    """`ranker_scores` with one thing taken away from a trained ranker.

    Args:
        name: "no-kg" (a graph without edges), "shuffled-kg" (every item in the place of another; degrees stay),
            "uniform-preferences", "other-user-preferences" (those of another user, drawn by `seed`), or
            "permuted-titles" (every item under the title of another).
        score: in place of `ranker_scores`.
        options: for it.
    """
    if name not in CONTROLS:
        raise LKGError(f"There is no control {name!r}; the controls are {CONTROLS}.")
    if name == "other-user-preferences":
        return score(model, processor, examples, preferences_of=other_users(examples, seed), **options)
    if name == "uniform-preferences":
        hook = model.preference.register_forward_hook(lambda module, inputs, logits: torch.zeros_like(logits))
        try:
            return score(model, processor, examples, **options)
        finally:
            hook.remove()
    if name == "permuted-titles":
        order = np.random.default_rng(seed).permutation(len(processor.titles))
        return score(model, processor.with_titles([processor.titles[row] for row in order]), examples, **options)
    graph = processor.knowledge_graph
    changed = graph.shuffle_items(seed) if name == "shuffled-kg" else graph.without_relations(graph.relations)
    return score(model, processor.with_knowledge_graph(changed), examples, **options)


def other_users(examples: Sequence[RankingExample], seed: int = 0) -> list[RankingExample]:
    """For each example one of another user (its own where there is only one), by a seeded cyclic shift of users."""
    generator = np.random.default_rng(seed)
    users = np.array([example.user for example in examples])
    order = np.argsort(users + generator.random(len(users)) * 0.5, kind="stable")  # same users stand together
    largest = int(np.unique(users, return_counts=True)[1].max(initial=0))
    shift = int(generator.integers(largest, max(largest + 1, len(users) - largest + 1)))
    partner = np.empty(len(users), dtype=np.int64)
    partner[order] = np.roll(order, shift)
    return [examples[row] for row in partner]
