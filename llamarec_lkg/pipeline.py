"""Recommending for one user: retrieve, rank, and say which paths spoke for each item."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import CommitInfo
from transformers.utils.hub import resolve_revision

from .hub import HUB_KEYS, fetch
from .hub_repository import CONFIG_FILE, RETRIEVER_FOLDER, take_push_options
from .modeling_llamarec_lkg import LlamaRecLKGForRanking
from .modeling_lrurec import LRURecForRetrieval, LRURecRetriever
from .processing_llamarec_lkg import LlamaRecLKGProcessor
from .pushing import push_folder
from .retrieval import Retriever, exclude_history, top_k
from .schema import LKGDataError, RankingExample


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
    """Retriever, processor and ranker of one saved folder or Hub repository, ready to answer."""

    def __init__(
        self, model: LlamaRecLKGForRanking, processor: LlamaRecLKGProcessor, retriever: Retriever | None = None
    ):
        processor.check_model(model.config)
        if retriever is not None and retriever.num_items != len(processor.item_ids):
            raise LKGDataError(
                f"The retriever knows {retriever.num_items} items, the processor {len(processor.item_ids)}. Give the "
                "retriever that was trained on the same data set."
            )
        self.model, self.processor, self.retriever = model.eval(), processor, retriever

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> Recommender:
        """Load what the quickstart, the command line or the trainer saved or pushed.

        Where there is no retriever beside the ranker, every request must bring its candidates.

        Args:
            kwargs: for the ranker's `from_pretrained`.
        """
        name = str(pretrained_model_name_or_path)
        hub = {k: kwargs[k] for k in HUB_KEYS if k in kwargs}
        if not Path(name).is_dir():  # all parts from the same commit, whatever is pushed meanwhile
            known = {k: v for k, v in hub.items() if k != "revision"}
            hub["revision"] = kwargs["revision"] = resolve_revision(name, hub.get("revision"), **known)
        retriever = None
        if fetch(name, f"{RETRIEVER_FOLDER}/{CONFIG_FILE}", optional=True, **hub) is not None:
            retriever = LRURecForRetrieval.from_pretrained(name, subfolder=RETRIEVER_FOLDER, **hub)
        return cls(
            LlamaRecLKGForRanking.from_pretrained(name, **kwargs),
            LlamaRecLKGProcessor.from_pretrained(name, **hub),
            None if retriever is None else LRURecRetriever(retriever),
        )

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Save ranker, processor and retriever in one folder, from which all of them load.

        Args:
            kwargs: for the ranker's `save_pretrained`; with `push_to_hub=True` also for `push_to_hub`, whose `repo_id`
                is by default the folder's name.

        Raises:
            LKGDataError: the retriever is not one that can be saved.
        """
        push, folder = take_push_options(kwargs), Path(save_directory)
        repo_id, wanted = kwargs.pop("repo_id", folder.name), kwargs.pop("push_to_hub", False)
        if self.retriever is not None and not isinstance(self.retriever, LRURecRetriever):
            raise LKGDataError(
                f"A {type(self.retriever).__name__} cannot be saved with the rest. Save model and processor by "
                "themselves, and keep the retriever yourself."
            )
        if self.model.config.external_backbone:
            kwargs.setdefault("include_backbone", False)  # it was not loaded from one folder, and is not saved in one
        self.model.save_pretrained(folder, **kwargs)
        self.processor.save_pretrained(folder)
        if self.retriever is not None:
            self.retriever.model.save_pretrained(folder / RETRIEVER_FOLDER)
        if wanted:
            push_folder(folder, repo_id, **push)

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> CommitInfo:
        """Push ranker, processor and retriever to the Hub, as one commit, from which `from_pretrained` loads.

        User ids, interactions and the weights of single users stay at home unless they are asked for.

        Args:
            repo_id (`str`): "owner/name"; made if it does not exist.
            kwargs: of [`~hub_repository.push_saved`] (`include_users`, `private`, `revision`, ...), and of the
                ranker's `save_pretrained`.

        Raises:
            LKGDataError: the retriever cannot be saved, the backbone has no name that others can load, or the upload
                failed.
        """
        push = take_push_options(kwargs)
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, **kwargs)
            return push_folder(folder, repo_id, **push)

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
        ((order, logits),) = self.rank([example])
        return self.describe(request, example, order, logits, k=k, num_reasons=num_reasons)

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
        """Order and logits of every list, as [`rank_windows`] gives them, all lists in the same forward passes.

        A list of one is not scored: its logit is its first-stage score.
        """
        results = [(np.arange(len(example.candidates)), example.retrieval_scores) for example in examples]
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
        logits: np.ndarray,
        *,
        k: int = 10,
        num_reasons: int = 3,
    ) -> list[Recommendation]:
        """The best `k` of a ranked list in words."""
        preferences = None
        if len(order) < 2:
            num_reasons = 0  # a list of one was not ranked: there is nothing to give reasons for
        else:
            preferences = self.preferences(request.history, user=request.user)
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

    def _score(self, examples: Sequence[RankingExample]) -> np.ndarray:
        batch = self.processor(examples, with_prompt=self.model.config.use_language_model)
        return self.model.score(batch).float().cpu().numpy()

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
    logits = np.zeros(len(order), dtype=np.float32)
    if len(order) <= window:
        logits = (yield example)[: len(order)]
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
        values = (yield part)[: len(rows)]
        best = np.argsort(-values, kind="stable")
        order[start : start + window] = rows[best]
        logits[rows] = values
        if start == 0:
            return order, logits
        start = max(0, start - step)
