"""Scoring lists with a ranker, with and without its language model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from typing import Literal

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from tqdm.auto import tqdm

from ..data.examples import as_examples
from ..data.schema import RankingExample
from ..evaluation.metrics import require_finite, target_ranks
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
    lm_scores: np.ndarray | None = None,
    part: Literal["whole", "language model"] = "whole",
) -> np.ndarray:
    """Scores of the candidates of all examples, (N, candidates of the longest list), -inf where there is none.

    Lists without their target among the candidates are misses whatever the order: they are not run, and their scores
    are NaN. Under `accelerate launch` every process scores its share, and each gets the whole.

    Args:
        preferences_of: for each example, the one whose user and history its preferences are taken from.
        lm_scores: what the language model says, where that is known: this function's result for another `part`.
        part: "language model" gives what the language model says, before the fusion weighs it.
    """
    model.check_processor(processor)  # another adapter may have come into use since the two were paired
    with_prompt = model.config.use_language_model and lm_scores is None
    examples = as_examples(examples)
    rows = [row for row, example in enumerate(examples) if example.label >= 0]
    rows.sort(key=lambda row: len(examples[row].history))  # short with short: less padding
    scores = np.full((len(examples), longest(examples)), np.nan, dtype=np.float32)
    state = PartialState()
    own = rows[state.process_index :: state.num_processes]
    batch_size = batch_size if with_prompt else max(batch_size, 512)
    found: list[tuple[int, np.ndarray]] = []
    with tqdm(total=len(own), desc=description, unit="list", disable=not (progress and state.is_main_process)) as bar:
        for start in range(0, len(own), batch_size):
            chunk = own[start : start + batch_size]
            batch = processor([examples[row] for row in chunk], with_prompt=with_prompt)
            if preferences_of is not None:
                others = processor([preferences_of[row] for row in chunk], with_prompt=False)
                batch |= {name: others[name] for name in ("user_ids", "history_relations")}
            if lm_scores is not None and model.config.use_language_model:
                known = lm_scores[chunk, : batch["candidate_mask"].shape[1]]
                batch["lm_scores"] = torch.from_numpy(np.where(batch["candidate_mask"], known, 0.0))
            result = model.score(batch) if part == "whole" else model.language_model_scores(batch)
            for row, values in zip(chunk, result.cpu().numpy(), strict=True):
                values = values[: len(examples[row].candidates)]
                require_finite(values)
                found.append((row, np.pad(values, (0, scores.shape[1] - len(values)), constant_values=-np.inf)))
            bar.update(len(chunk))
    for row, values in gather_object(found) if state.num_processes > 1 else found:
        scores[row] = values
    return scores


def longest(examples: Sequence[RankingExample]) -> int:
    """Candidates of the longest list: the width of arrays of scores."""
    return max((len(example.candidates) for example in examples), default=0)


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
