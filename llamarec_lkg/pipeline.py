"""Recommending for one user: retrieve, rank, and say which paths spoke for each item."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .explanations import LANGUAGE_MODEL, PATH, RETRIEVER, Reason, Recommendation, reasons_for
from .modeling_llamarec_lkg import LlamaRecLKGForRanking
from .modeling_lrurec import LRURecForRetrieval, LRURecRetriever
from .processing_llamarec_lkg import LlamaRecLKGProcessor
from .retrieval import Retriever, exclude_history, top_k
from .schema import UNKNOWN_USER, LKGDataError, RankingExample


RETRIEVER_FOLDER = "retriever"


@dataclass(frozen=True)
class Request:
    """One checked question to a [`Recommender`]; `Recommender.request` makes it.

    Args:
        history (`tuple[str, ...]`): raw item ids, oldest first.
        user (`str`, optional): raw id.
        dense_history (`np.ndarray`, shape (H,)): the history in dense items.
        candidates (`np.ndarray`, shape (C,), optional): dense items to rank; None asks the retriever for them.
    """

    history: tuple[str, ...]
    user: str | None
    dense_history: np.ndarray
    candidates: np.ndarray | None


class Recommender:
    """Retriever, processor and ranker of one saved folder or Hub repository, ready to answer.

    Where the model holds several adapters, a recommender belongs to the one that was in use when it was made, and
    switches to it whenever it answers: recommenders may share a model (`load_adapter`). Not from several threads at
    once: a model has one adapter in use.
    """

    def __init__(
        self, model: LlamaRecLKGForRanking, processor: LlamaRecLKGProcessor, retriever: Retriever | None = None
    ):
        processor.check_model(model.config)
        self.model, self.processor, self.retriever = model.eval(), processor, retriever
        self.adapter_name = model.active_adapter

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

    def load_adapter(
        self, pretrained_model_name_or_path: str | Path, adapter_name: str, *, same_backbone: bool = False, **hub: Any
    ) -> Recommender:
        """A recommender of another repository (its items, graph, users and retriever) on this one's backbone.

        Args:
            pretrained_model_name_or_path: folder or Hub id of an adapter repository.
            adapter_name: the name of its adapter in the shared model.
            same_backbone, hub: as for `LlamaRecLKGForRanking.load_adapter`.

        Raises:
            LKGDataError: this recommender's model has no adapter, or the repository does not fit its backbone.
        """
        if self.adapter_name is None:
            raise LKGDataError(
                "This recommender's model has no adapter, so its own preferences and fusion weights would be "
                "replaced. Load an adapter repository first, and further ones beside it."
            )
        name = str(pretrained_model_name_or_path)
        processor = LlamaRecLKGProcessor.from_pretrained(name, **hub)
        retriever = LRURecForRetrieval.from_pretrained(name, subfolder=RETRIEVER_FOLDER, **hub)
        self.model.load_adapter(name, adapter_name, processor=processor, same_backbone=same_backbone, **hub)
        self.model.set_adapter(adapter_name)
        return type(self)(self.model, processor, LRURecRetriever(retriever.to(self.model.device)))

    def _switch(self) -> None:
        if self.adapter_name is not None:
            self.model.set_adapter(self.adapter_name)

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
        request = self.request(history, user=user, candidates=candidates)
        (example,) = self.retrieve([request], k)
        ((order, parts),) = self.rank([example])
        return self.describe(request, example, order, parts, k=k, num_reasons=num_reasons)

    def request(
        self, history: Sequence[str], *, user: str | None = None, candidates: Sequence[str] | None = None
    ) -> Request:
        """Check raw ids; the arguments and errors of `recommend`."""
        dense_history = self.processor.dense_items(history)
        if candidates is None and self.retriever is None:
            raise LKGDataError("There is no retriever to find candidates; give `candidates`, or a retriever.")
        chosen = None
        if candidates is not None:
            chosen = self.processor.dense_items(candidates)
            raw_id, times = Counter(map(str, candidates)).most_common(1)[0] if len(candidates) else ("", 0)
            if times > 1:
                raise LKGDataError(f"Candidate {raw_id!r} appears {times} times. Give each candidate once.")
        return Request(tuple(history), user, dense_history, chosen)

    def retrieve(self, requests: Sequence[Request], k: int = 10) -> list[RankingExample]:
        """The lists to rank, one a request: its candidates, or what the retriever finds, history excluded."""
        histories = [request.dense_history for request in requests]
        if self.retriever is None:
            scores = np.zeros((len(requests), len(self.item_ids) + 1), dtype=np.float32)
        else:
            scores = self.retriever.score(histories)
        examples = []
        for row, request in enumerate(requests):
            if request.candidates is None:
                allowed = exclude_history(scores[row : row + 1], [request.dense_history])
                items, values = top_k(allowed, max(k, self.processor.num_candidates))
                chosen, first_stage = items[0][items[0] > 0], values[0][items[0] > 0]
            else:
                chosen, first_stage = request.candidates, scores[row][request.candidates]
            examples.append(
                RankingExample(
                    user=self.processor.user_index(request.user),
                    history=request.dense_history,
                    ratings=np.ones(len(request.dense_history), dtype=np.float32),
                    candidates=chosen,
                    retrieval_scores=first_stage.astype(np.float32),
                )
            )
        return examples

    def rank(self, examples: Sequence[RankingExample]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Order and score parts of every list, as [`rank_windows`] gives them, all lists in the same forward passes.

        The parts of a candidate, (C, 2 + R), are those of the language model, the retriever and each relation. A list
        of one is not scored: its first-stage score is all it has.
        """
        self._switch()
        results = []
        for example in examples:
            parts = np.zeros((len(example.candidates), 2 + len(self.processor.relations)), dtype=np.float32)
            parts[:, 1] = example.retrieval_scores
            results.append((np.arange(len(example.candidates)), parts))
        lists = [row for row, example in enumerate(examples) if len(example.candidates) > 1]
        ranked = rank_many(self._score, [examples[row] for row in lists], self.processor.num_candidates)
        for row, result in zip(lists, ranked, strict=True):
            results[row] = result
        return results

    def describe(
        self,
        request: Request,
        example: RankingExample,
        order: np.ndarray,
        parts: np.ndarray,
        *,
        k: int = 10,
        num_reasons: int = 3,
    ) -> list[Recommendation]:
        """The best `k` of a ranked list, with reasons."""
        self._switch()
        preferences = None
        if len(order) < 2:
            num_reasons = 0  # a list of one was not ranked: there is nothing to give reasons for
        else:
            preferences = self.preferences(request.history, user=request.user)
        return [
            self._describe(rank, example, int(row), parts[row].astype(float), preferences, num_reasons)
            for rank, row in enumerate(order[:k], start=1)
        ]

    @torch.inference_mode()
    def preferences(self, history: Sequence[str], *, user: str | None = None, use_id: bool = True) -> dict[str, float]:
        """The user's distribution over relations, largest first.

        Args:
            use_id: False leaves out what a known user's id adds. The user's own ratings are left out of the history's
                statistics in any case.
        """
        self._switch()
        example = self.processor.history_example(self.processor.dense_items(history), user)
        batch = {
            "user_ids": torch.tensor([example.user if use_id else UNKNOWN_USER]),
            "history_relations": torch.from_numpy(self.processor.history_features(example))[None],
        }
        values = self.model.preferences(batch)[0].tolist()
        return dict(sorted(zip(self.processor.relations, values, strict=True), key=lambda pair: -pair[1]))

    def _score(self, examples: Sequence[RankingExample]) -> np.ndarray:
        """Score parts of every candidate, (B, C, 2 + R)."""
        parts = self.model.score_parts(self.processor(examples, with_prompt=self.model.config.use_language_model))
        whole = [parts["language model"][..., None], parts["retriever"][..., None]]
        if "evidence" in parts:
            whole.append(parts["evidence"])
        else:
            whole.append(whole[0].new_zeros(*whole[0].shape[:2], len(self.processor.relations)))
        return torch.cat(whole, dim=-1).float().cpu().numpy()

    def _describe(
        self,
        rank: int,
        example: RankingExample,
        row: int,
        parts: np.ndarray,
        preferences: dict[str, float] | None,
        num_reasons: int,
    ) -> Recommendation:
        item = int(example.candidates[row])
        relations: dict[str, float] = {}
        reasons: list[Reason] = []
        if preferences is not None:
            named = dict(zip((LANGUAGE_MODEL, RETRIEVER, *self.processor.relations), parts.tolist(), strict=True))
            spoke = {name: named[name] for name in self.processor.relations if named[name]}
            relations = dict(sorted(spoke.items(), key=lambda pair: -pair[1]))
            weight = self.model.fusion.evidence_weight.item()
            reasons = reasons_for(self.processor, example, row, named, preferences, weight, num_reasons)
        return Recommendation(
            rank=rank,
            item_id=self.item_ids[item - 1],
            title=self.processor.titles[item - 1],
            score=float(parts.sum()),
            retrieval_score=float(example.retrieval_scores[row]),
            relations=relations,
            paths=[reason.text for reason in reasons if reason.kind == PATH],
            reasons=reasons,
        )


def rank_windows(
    score: Callable[[RankingExample], np.ndarray], example: RankingExample, window: int
) -> tuple[np.ndarray, np.ndarray]:
    """Order any number of candidates with a model that ranks `window` at a time.

    The list starts in the retriever's order; windows slide from its end to its start, overlapping by half, so that a
    good candidate can rise all the way (RankGPT, arXiv 2304.09542).

    Args:
        score: logits (C,) of an example with at most `window` candidates, or the parts (C, P) whose sums they are.

    Returns:
        the order, best first: indices into `example.candidates`, shape (C,); and the logit, or its parts, that each
        candidate had in the last window it stood in, aligned with `example.candidates`.
    """
    return rank_many(lambda examples: [score(examples[0])], [example], window)[0]


def rank_many(
    score: Callable[[Sequence[RankingExample]], Sequence[np.ndarray]], examples: Sequence[RankingExample], window: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """[`rank_windows`] of several lists at once: `score` gets one window of every list that is not done yet.

    Args:
        score: logits of a batch of examples, a row each; what lies beyond an example's candidates is not read.
    """
    walks = [_windows(example, window) for example in examples]
    asked = {row: next(walk) for row, walk in enumerate(walks)}
    results = {}
    while asked:
        rows, answers = list(asked), score(list(asked.values()))
        asked = {}
        for row, values in zip(rows, answers, strict=True):
            try:
                asked[row] = walks[row].send(values)
            except StopIteration as done:
                results[row] = done.value
    return [results[row] for row in range(len(walks))]


def _windows(
    example: RankingExample, window: int
) -> Generator[RankingExample, np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """The walk of [`rank_windows`]: yields the lists to score, is sent their logits, returns order and logits."""
    order = np.argsort(-example.retrieval_scores, kind="stable")
    logits = None
    if len(order) <= window:
        logits = (yield example)[: len(order)]
        return _best_first(logits), logits
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
        values = (yield part)[: len(rows)]
        if logits is None:
            logits = np.zeros((len(order), *values.shape[1:]), dtype=np.float32)
        order[start : start + window] = rows[_best_first(values)]
        logits[rows] = values
        if start == 0:
            return order, logits
        start = max(0, start - step)


def _best_first(logits: np.ndarray) -> np.ndarray:
    """Order of logits (C,), or of the sums of their parts (C, P)."""
    return np.argsort(-(logits if logits.ndim == 1 else logits.sum(-1)), kind="stable")
