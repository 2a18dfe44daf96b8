"""Recommending for one user: retrieve, rank, and say which paths spoke for each item."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .modeling_llamarec_lkg import LlamaRecLKGForRanking
from .modeling_lrurec import LRURecForRetrieval, LRURecRetriever
from .processing_llamarec_lkg import LlamaRecLKGProcessor
from .retrieval import Retriever, exclude_history, top_k
from .schema import LKGDataError, RankingExample


RETRIEVER_FOLDER = "retriever"


@dataclass(frozen=True)
class Recommendation:
    """One ranked item.

    Args:
        rank (`int`): 1 is best.
        item_id, title (`str`).
        score (`float`): the ranker's logit; comparable within one pass, so not across windows of a long list.
        retrieval_score (`float`): the first stage's.
        relations (`dict[str, float]`): part of the score that came through each relation of the graph, largest first.
        paths (`list[str]`): the paths from the history that spoke for it most.
    """

    rank: int
    item_id: str
    title: str
    score: float
    retrieval_score: float
    relations: dict[str, float] = field(default_factory=dict)
    paths: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        reasons = "".join(f"\n      {path}" for path in self.paths)
        return f"{self.rank:>3}. {self.title}  [{self.item_id}]  {self.score:+.3f}{reasons}"


class Recommender:
    """Retriever, processor and ranker of one saved folder or Hub repository, ready to answer."""

    def __init__(
        self, model: LlamaRecLKGForRanking, processor: LlamaRecLKGProcessor, retriever: Retriever | None = None
    ):
        processor.check_model(model.config)
        self.model, self.processor, self.retriever = model.eval(), processor, retriever

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> Recommender:
        """Load what the quickstart, the command line or the trainer saved. `kwargs` go to the ranker's
        `from_pretrained`."""
        name = str(pretrained_model_name_or_path)
        hub = {k: kwargs[k] for k in ("revision", "token", "cache_dir", "local_files_only") if k in kwargs}
        retriever = LRURecForRetrieval.from_pretrained(name, subfolder=RETRIEVER_FOLDER, **hub)
        return cls(
            LlamaRecLKGForRanking.from_pretrained(name, **kwargs),
            LlamaRecLKGProcessor.from_pretrained(name, **hub),
            LRURecRetriever(retriever),
        )

    @property
    def item_ids(self) -> tuple[str, ...]:
        return self.processor.item_ids

    def recommend(
        self,
        history: Sequence[str],
        *,
        user: str | None = None,
        candidates: Sequence[str] | None = None,
        k: int = 10,
        num_reasons: int = 3,
    ) -> list[Recommendation]:
        """The best `k` items for a history of raw item ids, oldest first.

        Args:
            user: raw id; unknown or None is the average user, for whom the history alone decides.
            candidates: rank these; by default what the retriever finds, history excluded. A single one comes back as
                it is.
            num_reasons: how many paths to name for each item.

        Raises:
            LKGDataError: an item is not known, or candidates repeat.
        """
        dense_history = self.processor.dense_items(history)
        if candidates is None and self.retriever is None:
            raise LKGDataError("There is no retriever to find candidates; give `candidates`, or a retriever.")
        if candidates is None:
            scores = exclude_history(self.retriever.score([dense_history]), [dense_history])
            items, scores = top_k(scores, max(k, self.processor.num_candidates))
            chosen, first_stage = items[0][items[0] > 0], scores[0][items[0] > 0]
        else:
            chosen = self.processor.dense_items(candidates)
            raw_id, times = Counter(map(str, candidates)).most_common(1)[0] if candidates else ("", 0)
            if times > 1:
                raise LKGDataError(f"Candidate {raw_id!r} appears {times} times. Give each candidate once.")
            scores = (
                np.zeros((1, len(self.item_ids) + 1))
                if self.retriever is None
                else self.retriever.score([dense_history])
            )
            first_stage = scores[0][chosen]
        example = RankingExample(
            user=self.processor.user_index(user),
            history=dense_history,
            ratings=np.ones(len(dense_history), dtype=np.float32),
            candidates=chosen,
            retrieval_scores=first_stage.astype(np.float32),
        )
        if len(chosen) < 2:
            return [self._describe(1, example, 0, float(first_stage[0]), None, 0)] if len(chosen) else []
        order, logits = rank_windows(self._score, example, self.processor.num_candidates)
        preferences = self.preferences(history, user=user)
        return [
            self._describe(rank, example, int(row), float(logits[row]), preferences, num_reasons)
            for rank, row in enumerate(order[:k], start=1)
        ]

    @torch.inference_mode()
    def preferences(self, history: Sequence[str], *, user: str | None = None) -> dict[str, float]:
        """The user's distribution over relations, largest first."""
        example = self.processor.history_example(self.processor.dense_items(history), user)
        batch = {
            "user_ids": torch.tensor([example.user], device=self.model.device),
            "history_relations": torch.from_numpy(self.processor.history_features(example))[None].to(
                self.model.device
            ),
        }
        values = self.model.preferences(batch)[0].tolist()
        return dict(sorted(zip(self.processor.relations, values, strict=True), key=lambda pair: -pair[1]))

    def _score(self, example: RankingExample) -> np.ndarray:
        batch = self.processor([example], with_prompt=self.model.config.use_language_model)
        return self.model.score(batch)[0].float().cpu().numpy()

    def _describe(
        self,
        rank: int,
        example: RankingExample,
        row: int,
        score: float,
        preferences: dict[str, float] | None,
        num_reasons: int,
    ) -> Recommendation:
        item = int(example.candidates[row])
        relations, paths = {}, []
        if preferences is not None and self.model.config.use_evidence_fusion:
            weight = self.model.fusion.evidence_weight.item()
            evidence = self.processor.evidence_index.evidence(example.history, [item], example.user)[0]
            parts = {
                name: weight * preferences[name] * float(value)
                for name, value in zip(self.processor.relations, evidence, strict=True)
            }
            relations = dict(sorted(((n, v) for n, v in parts.items() if v), key=lambda pair: -pair[1]))
        if preferences is not None and num_reasons:
            alone = replace(example, candidates=np.array([item]))
            paths = self.processor.explain(alone, preferences, count=num_reasons)
        return Recommendation(
            rank=rank,
            item_id=self.item_ids[item - 1],
            title=self.processor.titles[item - 1],
            score=score,
            retrieval_score=float(example.retrieval_scores[row]),
            relations=relations,
            paths=paths,
        )


def rank_windows(
    score: Callable[[RankingExample], np.ndarray], example: RankingExample, window: int
) -> tuple[np.ndarray, np.ndarray]:
    """Order any number of candidates with a model that ranks `window` at a time.

    The list starts in the retriever's order; windows slide from its end to its start, overlapping by half, so that a
    good candidate can rise all the way (RankGPT, arXiv 2304.09542).

    Args:
        score: logits (C,) of an example with at most `window` candidates.

    Returns:
        the order, best first: indices into `example.candidates`, shape (C,); and the logit each candidate had in the
        last window it stood in, aligned with `example.candidates`.
    """
    order = np.argsort(-example.retrieval_scores, kind="stable")
    logits = np.zeros(len(order), dtype=np.float32)
    if len(order) <= window:
        logits = score(example)[: len(order)]
        return np.argsort(-logits, kind="stable"), logits
    step = max(1, window // 2)
    start = len(order) - window
    while True:
        rows = order[start : start + window].copy()
        part = replace(
            example,
            candidates=example.candidates[rows],
            retrieval_scores=example.retrieval_scores[rows],
            label=-1,
        )
        values = score(part)[: len(rows)]
        best = np.argsort(-values, kind="stable")
        order[start : start + window] = rows[best]
        logits[rows] = values
        if start == 0:
            return order, logits
        start = max(0, start - step)
