"""What a run's report compares: the ranker beside its retriever, and the controls that would unmask it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data.schema import RankingExample
from ..evaluation.report import RANKER, REFERENCE
from ..ranking.ablations import CONTROLS, control_scores
from ..ranking.modeling_llamarec_lkg import LlamaRecLKGForRanking
from ..ranking.processing_llamarec_lkg import LlamaRecLKGProcessor
from ..ranking.scoring import ranker_scores, reranked, without_language_model
from ..retrieval.base import PopularityRetriever, retriever_ranks
from ..utils.fingerprints import as_plain, weights_fingerprint


if TYPE_CHECKING:
    from .workflow import Workflow


def rows_of_report(
    workflow: Workflow, processor: LlamaRecLKGProcessor, examples: list[RankingExample]
) -> Iterator[tuple[str, np.ndarray]]:
    """Name of each row, and the rank of every target in it, shape (N,): popularity and retriever over the whole
    catalogue, the ranker before and after training, controls with the language model where asked for and all of them
    without it."""
    section, dataset = workflow.config.evaluation, workflow.prepare().dataset
    controls = {name: partial(control_scores, name, seed=section.seed) for name in CONTROLS}
    options = {"batch_size": section.batch_size, "progress": workflow.progress}

    def ranked(
        row: str, model: LlamaRecLKGForRanking, score: Callable[..., np.ndarray] = ranker_scores
    ) -> tuple[str, np.ndarray]:
        return row, reranked(score(model, processor, examples, description=row, **options), examples)

    popularity = PopularityRetriever.from_dataset(dataset)
    for row, retriever in (("popularity", popularity), (REFERENCE, workflow.train_retriever())):
        yield row, retriever_ranks(dataset, retriever, section.split)
    if section.untrained:
        yield ranked(f"{RANKER}-untrained", workflow.build_model(processor))
    model = workflow.load_model()
    yield ranked(RANKER, model)
    for name in section.controls:
        yield ranked(f"{RANKER}-{name}", model, controls[name])
    with without_language_model(model):
        yield ranked("no-lm", model)
        for name, score in controls.items():
            yield ranked(f"no-lm-{name}", model, score)


def protocol_of_report(workflow: Workflow, processor: LlamaRecLKGProcessor) -> dict[str, Any]:
    """What was evaluated, and how."""
    data, config = workflow.prepare(), workflow.config
    return {
        "dataset": data.bundle.name,
        "split": config.evaluation.split,
        "users": data.dataset.num_users,
        "items": data.dataset.num_items,
        "settings": json.dumps(as_plain(data.dataset.settings)),
        "graph": data.graph.describe(),
        "graph_time": "co-ratings from training interactions of all users, whatever their date; facts are undated",
        "candidates": processor.num_candidates,
        "backbone": config.backbone.model_name_or_path,
        "training_seed": workflow.training_arguments().seed,
        "weights": weights_fingerprint(workflow.folder),
    }
