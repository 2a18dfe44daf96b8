"""Controls: scores of a trained ranker with one thing taken away."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from ..data.schema import UNKNOWN_USER, RankingExample
from ..evaluation.report import AS_PUBLISHED, WITH_CO_RATINGS
from ..graph.co_ratings import has_co_ratings, with_co_ratings
from ..graph.knowledge_graph import KnowledgeGraph
from ..utils.errors import LKGError
from .modeling_llamarec_lkg import LlamaRecLKGForRanking
from .processing_llamarec_lkg import LlamaRecLKGProcessor
from .scoring import ranker_scores


CONTROLS = ("no-kg", "shuffled-kg", "uniform-preferences", "other-user-preferences")


def control_scores(
    name: str,
    model: LlamaRecLKGForRanking,
    processor: LlamaRecLKGProcessor,
    examples: Sequence[RankingExample],
    *,
    seed: int = 0,
    **options: Any,
) -> np.ndarray:
    """`ranker_scores` with one thing taken away from a trained ranker.

    Args:
        name: "no-kg" (a graph without edges), "shuffled-kg" (every item in the place of another; degrees stay),
            "uniform-preferences", or "other-user-preferences" (those of another user, drawn by `seed`).
        options: for `ranker_scores`.

    Raises:
        LKGError: the name is not known.
    """
    graph = processor.knowledge_graph
    if name not in CONTROLS:
        raise LKGError(f"There is no control {name!r}; the controls are {CONTROLS}.")
    if name == "other-user-preferences":
        return ranker_scores(model, processor, examples, preferences_of=other_users(examples, seed), **options)
    if name == "uniform-preferences":
        hook = model.preference.register_forward_hook(lambda module, inputs, logits: torch.zeros_like(logits))
        try:
            return ranker_scores(model, processor, examples, **options)
        finally:
            hook.remove()
    changed = graph.shuffle_items(seed) if name == "shuffled-kg" else graph.without_relations(graph.relations)
    return _scores_with_graph(changed, model, processor, examples, **options)


def published_graphs(processor: LlamaRecLKGProcessor) -> dict[str, KnowledgeGraph]:
    """The graphs that a push publishes, by default and with co-ratings where there are any, under the names of their
    rows in a report."""
    graph = processor.knowledge_graph
    graphs = {
        AS_PUBLISHED: graph.without_people(processor.user_ids),
        WITH_CO_RATINGS: with_co_ratings(graph, processor.user_ids),
    }
    return {name: found for name, found in graphs.items() if has_co_ratings(found) == (name == WITH_CO_RATINGS)}


def published_scores(
    graph: KnowledgeGraph,
    model: LlamaRecLKGForRanking,
    processor: LlamaRecLKGProcessor,
    examples: Sequence[RankingExample],
    **options: Any,
) -> np.ndarray:
    """`ranker_scores` of what a push publishes: nobody has weights of their own, and the graph is one of
    `published_graphs`."""
    strangers = [replace(example, user=UNKNOWN_USER) for example in examples]
    return _scores_with_graph(graph, model, processor, strangers, **options)


def _scores_with_graph(
    graph: KnowledgeGraph,
    model: LlamaRecLKGForRanking,
    processor: LlamaRecLKGProcessor,
    examples: Sequence[RankingExample],
    **options: Any,
) -> np.ndarray:
    own = processor.knowledge_graph
    processor.use_knowledge_graph(graph)
    try:
        return ranker_scores(model, processor, examples, **options)
    finally:
        processor.use_knowledge_graph(own)


def other_users(examples: Sequence[RankingExample], seed: int = 0) -> list[RankingExample]:
    """For each example one of another user (its own where there is only one user), by a seeded cyclic shift of
    users."""
    generator = np.random.default_rng(seed)
    users = np.array([example.user for example in examples])
    order = np.argsort(users + generator.random(len(users)) * 0.5, kind="stable")  # same users stand together
    largest = int(np.unique(users, return_counts=True)[1].max(initial=0))
    shift = int(generator.integers(largest, max(largest + 1, len(users) - largest + 1)))
    partner = np.empty(len(users), dtype=np.int64)
    partner[order] = np.roll(order, shift)
    return [examples[row] for row in partner]
