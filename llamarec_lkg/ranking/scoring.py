"""Scoring lists with a ranker, with and without its language model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from tqdm.auto import tqdm

from ..data.schema import UNKNOWN_USER, RankingExample
from ..evaluation.metrics import require_finite, target_ranks
from ..retrieval.base import Retriever, exclude_history
from .modeling_llamarec_lkg import LlamaRecLKGForRanking
from .processing_llamarec_lkg import LlamaRecLKGProcessor


def ranker_scores(
    model: LlamaRecLKGForRanking,
    processor: LlamaRecLKGProcessor,
    examples: Sequence[RankingExample],
    *,
    batch_size: int = 16,
    description: str = "rank",
    progress: bool = True,
    preferences_of: Sequence[RankingExample] | None = None,
) -> np.ndarray:
    """Scores of the candidates of all examples, shape (N, num_candidates), -inf where there is no candidate.

    Lists without their target among the candidates are misses whatever the order: they are not run, and their scores
    are NaN. `preferences_of` names, for each example, the one whose user and history its preferences are taken from.
    Under `accelerate launch` every process scores its share, and each gets the whole.
    """
    processor.check_model(model.config)  # another adapter may have come into use since the two were paired
    with_prompt = model.config.use_language_model
    rows = [row for row, example in enumerate(examples) if example.label >= 0]
    scores = np.full((len(examples), processor.num_candidates), np.nan, dtype=np.float32)
    state = PartialState()
    own = rows[state.process_index :: state.num_processes]
    found: list[tuple[int, np.ndarray]] = []
    with tqdm(total=len(own), desc=description, unit="list", disable=not (progress and state.is_main_process)) as bar:
        for start in range(0, len(own), batch_size):
            part = own[start : start + batch_size]
            batch = processor([examples[row] for row in part], with_prompt=with_prompt)
            if preferences_of is not None:
                others = processor([preferences_of[row] for row in part], with_prompt=False)
                batch |= {name: others[name] for name in ("user_ids", "history_relations")}
            for row, values in zip(part, model.score(batch).cpu().numpy(), strict=True):
                values = values[: len(examples[row].candidates)]
                require_finite(values)
                found.append((row, np.pad(values, (0, scores.shape[1] - len(values)), constant_values=-np.inf)))
            bar.update(len(part))
    for row, values in gather_object(found) if state.num_processes > 1 else found:
        scores[row] = values
    return scores


def reranked(scores: np.ndarray, examples: Sequence[RankingExample]) -> np.ndarray:
    """Rank of every target by `scores` of `ranker_scores`, `MISS` where it was not among the candidates, (N,)."""
    return target_ranks(scores, np.array([example.label for example in examples]))


@contextmanager
def without_language_model(model: LlamaRecLKGForRanking):
    """Inside, `model` ranks by retriever and evidence alone."""
    used, model.config.use_language_model = model.config.use_language_model, False
    try:
        yield
    finally:
        model.config.use_language_model = used


def score_heads(
    model: LlamaRecLKGForRanking, batch: Mapping[str, torch.Tensor], batch_size: int = 1024
) -> torch.Tensor:
    """Logits of all rows without the backbone, (N, C)."""
    with without_language_model(model):
        pieces = [
            model.score({name: value[start : start + batch_size] for name, value in batch.items()})
            for start in range(0, len(batch["labels"]), batch_size)
        ]
    return torch.cat(pieces).cpu()


@torch.inference_mode()
def catalogue_scores(
    model: LlamaRecLKGForRanking,
    processor: LlamaRecLKGProcessor,
    retriever: Retriever,
    histories: Sequence[np.ndarray],
    users: Sequence[int] | None = None,
) -> np.ndarray:
    """Logits of the whole catalogue without the backbone: retriever and personal evidence, with the model's weights.

    Returns:
        `np.ndarray` of `float32`, shape (B, num_items + 1); -inf for the padding item and for items of the history.
    """
    index, config, fusion = processor.evidence_index, model.config, model.fusion
    first_stage = exclude_history(retriever.score(histories), histories)
    known = np.isfinite(first_stage)
    logits = np.zeros(first_stage.shape, dtype=np.float32)
    if config.use_retrieval_scores:
        mean = first_stage.mean(axis=1, where=known, keepdims=True)
        logits += fusion.retrieval_weight.item() * (first_stage - mean)
    if config.use_evidence_fusion:
        users = np.full(len(histories), UNKNOWN_USER) if users is None else np.asarray(users)
        statistics = torch.from_numpy(index.statistics(histories))
        preferences = model.preferences({"user_ids": torch.from_numpy(users), "history_relations": statistics})
        logits += index.catalogue(histories, fusion.evidence_weight.item() * preferences.float().cpu().numpy())
    return np.where(known, logits, -np.inf).astype(np.float32)
