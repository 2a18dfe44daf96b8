"""What a run's report compares: the ranker beside its retriever, and the controls that would unmask it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..data.schema import RankingExample
from ..evaluation.report import POPULARITY, RANKER, REFERENCE
from ..evaluation.slices import describe_targets
from ..ranking.ablations import CONTROLS, control_scores
from ..ranking.configuration_llamarec_lkg import LlamaRecLKGConfig
from ..ranking.modeling_llamarec_lkg import LlamaRecLKGForRanking
from ..ranking.processing_llamarec_lkg import LlamaRecLKGProcessor
from ..ranking.scoring import longest, ranker_scores, reranked, without_language_model
from ..retrieval.base import PopularityRetriever, Retriever, frozen, retrieved, rows_at_once
from ..utils.fingerprints import as_plain, weights_fingerprint
from .evaluated import Evaluated
from .lists import TrainingLists
from .stacker import Stacker
from .warm_up import fit_parts, heads_batch, weigh_parts


if TYPE_CHECKING:
    from .workflow import Workflow


CANDIDATES, STACKER, NO_LM, SECOND_SEED = "candidates", "stacker", f"{RANKER}-no-lm", "second-seed"
COMPARISONS = [(RANKER, other) for other in (REFERENCE, CANDIDATES, NO_LM, STACKER, SECOND_SEED)]
OF_TITLES = ("permuted-titles",)  # controls that only a language model can notice
WITHOUT_GRAPH = "no-kg"


def evaluate_rows(workflow: Workflow, processor: LlamaRecLKGProcessor, examples: list[RankingExample]) -> Evaluated:
    """Every row of a run's report over the same targets.

    Over the whole catalogue: popularity, the retriever, and what retriever and evidence find together. Over the lists
    of these candidates: the ranker and the controls of `evaluation.controls`, the same without its language model, and
    two that have another opinion in its place: a small network (`Stacker`), and a second seed of the retriever.

    Controls take one thing away from the ranker as it is. What the parts weigh is fitted anew, on lists that trained
    nothing else, without the language model; there without the graph, too (`no-kg`), so that this row says what is
    left without it; and beside the second seed. Where validation targets are what is measured they fit nothing, also
    not the ranker's weights.
    """
    section, dataset = workflow.config.evaluation, workflow.prepare().dataset
    found = np.array([example.label >= 0 for example in examples])
    ranks, recommended = {}, {}
    for row, retriever in _first_stages(workflow, processor):
        ranks[row], items = retrieved(dataset, retriever, section.split)
        recommended[row] = items * found[:, None]  # over the lists that rankers rank, too
    for row, scores in _scored_lists(workflow, processor, examples):
        ranks[row], recommended[row] = reranked(scores, examples), _best_items(scores, examples)
    return Evaluated(ranks, found, recommended)


def _first_stages(workflow: Workflow, processor: LlamaRecLKGProcessor) -> Iterator[tuple[str, Retriever]]:
    retriever = workflow.train_retriever()
    yield POPULARITY, PopularityRetriever.from_dataset(workflow.prepare().dataset)
    yield REFERENCE, retriever
    if processor.candidate_weights is not None:
        yield CANDIDATES, processor.fused_retriever(retriever)


def _scored_lists(
    workflow: Workflow, processor: LlamaRecLKGProcessor, examples: list[RankingExample]
) -> Iterator[tuple[str, np.ndarray]]:
    """Row by row the scores of all candidates (N, C)."""
    section, model = workflow.config.evaluation, workflow.load_model()
    score = partial(ranker_scores, batch_size=section.batch_size, progress=workflow.progress)
    quiet = partial(score, progress=False)
    lists = None if workflow.config.examples.folds == 1 else workflow.training_lists(processor)
    if lists and section.split == "validation":
        lists = replace(lists, validation=[])  # they are what is measured here, and have weighed the ranker's parts
        if lists.unseen:
            how = {"batch_size": section.batch_size, "progress": workflow.progress}
            weigh_parts(model, processor, lists.unseen, workflow.lists_to_weigh_by(lists), **how)
    if model.config.use_language_model:
        said = score(model, processor, examples, description=RANKER, part="language model")
        # where no path is written, the language model reads neither graph nor preferences
        kept = {} if processor.writes_paths else {"lm_scores": said}
        yield RANKER, quiet(model, processor, examples, lm_scores=said)
        for name in section.controls:
            how = {"seed": section.seed, "score": score, "description": f"{RANKER}-{name}"}
            how |= {} if name in OF_TITLES else kept
            yield f"{RANKER}-{name}", control_scores(name, model, processor, examples, **how)
    else:
        yield RANKER, quiet(model, processor, examples)
    with without_language_model(model):
        yield NO_LM, quiet(model, processor, examples)
        for name in CONTROLS:
            how = {"seed": section.seed, "score": quiet}
            if name == WITHOUT_GRAPH and lists and lists.unseen:
                yield f"{NO_LM}-{name}", _without_graph(model, processor, lists.unseen, examples)
            elif name not in OF_TITLES:
                yield f"{NO_LM}-{name}", control_scores(name, model, processor, examples, **how)
    if lists and lists.unseen:
        known = heads_batch(processor, [*lists.best, *lists.validation], progress=False)
        stacker = Stacker.fit(known, progress=workflow.progress)
        yield STACKER, stacker.score(heads_batch(processor, examples, progress=False))
        if section.second_seed and model.config.use_language_model:
            yield SECOND_SEED, _second_opinion(workflow, model, processor, lists, examples)


def _best_items(scores: np.ndarray, examples: list[RankingExample], count: int = 10) -> np.ndarray:
    """The `count` best candidates of each list that was ranked, (N, count), 0 where there are fewer or it was not."""
    best = np.zeros((len(examples), count), dtype=np.int64)
    for row, example in enumerate(examples):
        if example.label >= 0:
            order = np.argsort(-scores[row, : len(example.candidates)], kind="stable")[:count]
            best[row, : len(order)] = example.candidates[order]
    return best


def _without_graph(
    model: LlamaRecLKGForRanking,
    processor: LlamaRecLKGProcessor,
    unseen: Sequence[RankingExample],
    examples: Sequence[RankingExample],
) -> np.ndarray:
    """Scores of the same candidates without language model and graph, the parts that are left weighed anew. The
    ranker's weights come from a sum with evidence in it: without that they are not the best that retriever and
    popularity can do."""
    batch = heads_batch(processor, unseen, progress=False)
    batch |= {name: torch.zeros_like(batch[name]) for name in ("evidence", "recent_evidence")}
    with _weighed_anew(model):
        fit_parts(model, batch)
        return control_scores(WITHOUT_GRAPH, model, processor, examples, progress=False)


def _second_opinion(
    workflow: Workflow,
    model: LlamaRecLKGForRanking,
    processor: LlamaRecLKGProcessor,
    lists: TrainingLists,
    examples: list[RankingExample],
) -> np.ndarray:
    """Scores with a second seed of the retriever in the language model's place, weighed as that was, on the same
    lists. Any second opinion helps, since the candidates were chosen by the first one's noise."""
    without_held_out, whole = workflow.second_retrievers()
    with _weighed_anew(model):
        read, held_out = workflow.lists_to_weigh_by(lists), {id(example) for example in lists.held_out}
        aside = sum(id(example) in held_out for example in read)  # they come first
        parts = [(without_held_out, read[:aside]), (whole, read[aside:])]
        said = np.concatenate([_scores_of(retriever, found, longest(read)) for retriever, found in parts])
        fit_parts(model, heads_batch(processor, read, progress=False), torch.from_numpy(said))
        said = _scores_of(whole, examples, longest(examples))
        return ranker_scores(model, processor, examples, lm_scores=said, progress=False)


@contextmanager
def _weighed_anew(model: LlamaRecLKGForRanking) -> Iterator[None]:
    """After it the parts of the ranker's score weigh what they did before."""
    fitted = deepcopy(model.fusion.state_dict())
    try:
        yield
    finally:
        model.fusion.load_state_dict(fitted)


def _scores_of(retriever: Retriever, examples: Sequence[RankingExample], width: int) -> np.ndarray:
    """A retriever's scores of the candidates of lists, (N, width), 0 where there is none."""
    scores = np.zeros((len(examples), width), dtype=np.float32)
    retriever, rows = frozen(retriever), rows_at_once(retriever.num_items)
    for start in range(0, len(examples), rows):
        block = examples[start : start + rows]
        found = retriever.score([example.history for example in block])
        for row, example in enumerate(block):
            scores[start + row, : len(example.candidates)] = found[row, example.candidates]
    return scores


def protocol_of_report(workflow: Workflow) -> dict[str, Any]:
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
        **describe_targets(data.dataset, config.evaluation.split),
        "candidates": int(config.prompt.get("num_candidates", LlamaRecLKGConfig.num_candidates)),
        "backbone": config.backbone.model_name_or_path,
        "training_seed": workflow.training_arguments().seed,
        "weights": weights_fingerprint(workflow.folder),
    }
