"""What a run's report compares: the ranker beside its retriever, and the controls that would unmask it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from copy import deepcopy
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..data.schema import RankingExample
from ..evaluation.report import RANKER, REFERENCE
from ..ranking.ablations import CONTROLS, control_scores
from ..ranking.modeling_llamarec_lkg import LlamaRecLKGForRanking
from ..ranking.processing_llamarec_lkg import LlamaRecLKGProcessor
from ..ranking.scoring import ranker_scores, reranked, without_language_model
from ..retrieval.base import PopularityRetriever, Retriever, retriever_ranks
from ..utils.fingerprints import as_plain, weights_fingerprint
from .stacker import Stacker
from .warm_up import fit_parts, heads_batch


if TYPE_CHECKING:
    from .workflow import Workflow


CANDIDATES, STACKER, NO_LM, SECOND_SEED = "candidates", "stacker", f"{RANKER}-no-lm", "second-seed"
COMPARISONS = [(RANKER, other) for other in (REFERENCE, CANDIDATES, NO_LM, STACKER, SECOND_SEED)]
OF_TITLES = ("permuted-titles",)  # controls that only a language model can notice


def rows_of_report(
    workflow: Workflow, processor: LlamaRecLKGProcessor, examples: list[RankingExample]
) -> Iterator[tuple[str, np.ndarray]]:
    """Name of each row, and the rank of every target in it, shape (N,).

    Over the whole catalogue: popularity, the retriever, and what retriever and evidence find together. Over the lists
    of these candidates: the ranker and the controls of `evaluation.controls`, the same without its language model, and
    two that have another opinion in its place: a small network (`Stacker`), and a second seed of the retriever.
    """
    section, dataset = workflow.config.evaluation, workflow.prepare().dataset
    retriever, model = workflow.train_retriever(), workflow.load_model()
    score = partial(ranker_scores, batch_size=section.batch_size, progress=workflow.progress)
    popularity = PopularityRetriever.from_dataset(dataset)
    first_stages: dict[str, Retriever] = {"popularity": popularity, REFERENCE: retriever}
    if processor.candidate_weights is not None:
        first_stages[CANDIDATES] = processor.fused_retriever(retriever)
    for row, found_by in first_stages.items():
        yield row, retriever_ranks(dataset, found_by, section.split)
    if model.config.use_language_model:
        said = score(model, processor, examples, description=RANKER, part="language model")
        # where no path is written, the language model reads neither graph nor preferences
        kept = {} if processor.writes_paths else {"lm_scores": said}
        yield RANKER, reranked(score(model, processor, examples, lm_scores=said), examples)
        for name in section.controls:
            how = {"seed": section.seed, "score": score, "description": f"{RANKER}-{name}"}
            how |= {} if name in OF_TITLES else kept
            yield f"{RANKER}-{name}", reranked(control_scores(name, model, processor, examples, **how), examples)
    with without_language_model(model):
        yield NO_LM, reranked(score(model, processor, examples), examples)
        for name in CONTROLS:
            if name not in OF_TITLES:
                scores = control_scores(name, model, processor, examples, seed=section.seed, score=score)
                yield f"{NO_LM}-{name}", reranked(scores, examples)
    lists = workflow.training_lists(processor) if workflow.config.examples.folds > 1 else None
    if lists is None or not lists.held_out:
        return
    features = heads_batch(processor, examples, progress=False)
    stacker = Stacker.fit(heads_batch(processor, lists.best, progress=False), progress=workflow.progress)
    yield STACKER, reranked(stacker.score(features), examples)
    if section.second_seed and model.config.use_language_model:
        yield SECOND_SEED, reranked(_second_opinion(workflow, model, processor, lists.held_out, examples), examples)


def _second_opinion(
    workflow: Workflow,
    model: LlamaRecLKGForRanking,
    processor: LlamaRecLKGProcessor,
    held_out: list[RankingExample],
    examples: list[RankingExample],
) -> np.ndarray:
    """Scores with a second seed of the retriever in the language model's place, weighed as that was. Any second
    opinion helps, since the candidates were chosen by the first one's noise."""
    without_held_out, whole = workflow.second_retrievers()
    fitted = deepcopy(model.fusion.state_dict())
    try:
        said = torch.from_numpy(_scores_of(without_held_out, held_out, processor.num_candidates))
        fit_parts(model, heads_batch(processor, held_out, progress=False), said)
        said = _scores_of(whole, examples, processor.num_candidates)
        return ranker_scores(model, processor, examples, lm_scores=said, progress=False)
    finally:
        model.fusion.load_state_dict(fitted)


def _scores_of(retriever: Retriever, examples: list[RankingExample], width: int) -> np.ndarray:
    """A retriever's scores of the candidates of lists, (N, width), 0 where there is none."""
    scores = np.zeros((len(examples), width), dtype=np.float32)
    for start in range(0, len(examples), 512):
        block = examples[start : start + 512]
        found = retriever.score([example.history for example in block])
        for row, example in enumerate(block):
            scores[start + row, : len(example.candidates)] = found[row, example.candidates]
    return scores


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
