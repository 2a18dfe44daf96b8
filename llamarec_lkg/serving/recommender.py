"""Recommending for one user: retrieve, rank, and say which paths spoke for each item."""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import CommitInfo

from ..data.schema import UNKNOWN_USER, RankingExample, raw_id_list
from ..hub.layout import CARD_FACTS, PARTS, REPORT_FILE, RETRIEVER_FOLDER
from ..hub.push import PushOptions, push_folder
from ..ranking.modeling_llamarec_lkg import LlamaRecLKGForRanking
from ..ranking.processing_llamarec_lkg import LlamaRecLKGProcessor
from ..retrieval.auto import load_retriever
from ..retrieval.base import Retriever, check_retriever, exclude_history, top_k
from ..retrieval.modeling_lrurec import LRURecRetriever
from ..utils.errors import LKGError
from ..utils.hub import hub_options, pinned
from .reasons import LANGUAGE_MODEL, PATH, RETRIEVER, Reason, Recommendation, reasons_for
from .sliding_windows import rank_many


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
        if retriever is not None:
            check_retriever(retriever, processor.item_ids)
        self.model, self.processor, self.retriever = model.eval(), processor, retriever
        self.adapter_name = model.active_adapter

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> Recommender:
        """Load what the quickstart, the command line or the trainer saved or pushed.

        Where there is no retriever beside the ranker, every request must bring its candidates.

        Args:
            kwargs: for the ranker's `from_pretrained`.

        Raises:
            LKGError: the name is no folder and cannot be a Hub id, or what is there is not whole.
            OSError: the name is no folder, and the Hub has no such repository or cannot be reached.
        """
        name = str(pretrained_model_name_or_path)
        hub = pinned(name, hub_options(kwargs))  # all parts from the same commit, whatever is pushed meanwhile
        return cls(
            LlamaRecLKGForRanking.from_pretrained(name, **{**kwargs, **hub}),
            LlamaRecLKGProcessor.from_pretrained(name, **hub),
            load_retriever(name, hub),
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
            LKGError: this recommender's model has no adapter, or the repository does not fit its backbone.
        """
        if self.adapter_name is None:
            raise LKGError(
                "This recommender's model has no adapter, so its own preferences and fusion weights would be "
                "replaced. Load an adapter repository first, and further ones beside it."
            )
        name = str(pretrained_model_name_or_path)
        hub = pinned(name, hub)
        processor = LlamaRecLKGProcessor.from_pretrained(name, **hub)
        retriever = load_retriever(name, hub)
        if retriever is not None:
            check_retriever(retriever, processor.item_ids)  # before the model changes
        self.model.load_adapter(name, adapter_name, processor=processor, same_backbone=same_backbone, **hub)
        self.model.set_adapter(adapter_name)
        if retriever is not None:
            retriever.model.to(self.model.device)
        return type(self)(self.model, processor, retriever)

    def _switch(self) -> None:
        if self.adapter_name is not None and self.model.has_adapter:  # it may have been merged meanwhile
            self.model.set_adapter(self.adapter_name)

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Save ranker, processor and retriever in one folder, from which all of them load.

        Args:
            kwargs: for the ranker's `save_pretrained`; with `push_to_hub=True` also for `push_to_hub`, whose `repo_id`
                is by default the folder's name.

        Raises:
            LKGError: the retriever is not one that can be saved.
            TypeError: all is to be pushed, and an argument is none of these.
        """
        self._switch()
        folder, wanted = Path(save_directory), kwargs.pop("push_to_hub", False)
        options = PushOptions.take(kwargs, strict=wanted)
        repo_id = kwargs.pop("repo_id", folder.name)
        if self.retriever is not None and not isinstance(self.retriever, LRURecRetriever):
            raise LKGError(
                f"A {type(self.retriever).__name__} cannot be saved with the rest. Save model and processor by "
                "themselves, and keep the retriever yourself."
            )
        if self.model.config.external_backbone:
            kwargs.setdefault("include_backbone", False)  # it was not loaded from one folder, and is not saved in one
        self.model.save_pretrained(folder, **kwargs)
        self.processor.save_pretrained(folder)
        if self.retriever is not None:
            self.retriever.model.save_pretrained(folder / RETRIEVER_FOLDER)
        else:
            for name in PARTS["retriever"]:
                (folder / name).unlink(missing_ok=True)  # of an earlier recommender
        if wanted:
            push_folder(folder, repo_id, options=options)

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> CommitInfo:
        """Push ranker, processor and retriever to the Hub, as one commit, from which `from_pretrained` loads.

        User ids, interactions and the weights of single users stay at home unless they are asked for.

        Args:
            repo_id (`str`): "owner/name"; made if it does not exist.
            kwargs: of [`~hub_repository.push_saved`] (`include_users`, `private`, `revision`, ...), and of the
                ranker's `save_pretrained`.

        Raises:
            LKGError: the retriever cannot be saved, the backbone has no name that others can load, or the upload
                failed.
        """
        options = PushOptions.take(kwargs)
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, **kwargs)
            self._bring_run(Path(folder))
            return push_folder(folder, repo_id, options=options)

    def _bring_run(self, folder: Path) -> None:
        """Copy what the run wrote down that the ranker was loaded from, for the card. (Its report only counts for the
        very weights that it is about.)"""
        place = self.model.place[0] if self.model.place else None
        for name in (CARD_FACTS, REPORT_FILE):
            if place and (Path(place) / name).is_file():
                shutil.copyfile(Path(place) / name, folder / name)

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
            LKGError: history or candidates are no list, an item is not known, or candidates repeat.
        """
        request = self.request(history, user=user, candidates=candidates)
        (example,) = self.retrieve([request], k)
        ((order, parts),) = self.rank([example])
        return self.describe(request, example, order, parts, k=k, num_reasons=num_reasons)

    def request(
        self, history: Sequence[str], *, user: str | None = None, candidates: Sequence[str] | None = None
    ) -> Request:
        """Check raw ids; the arguments and errors of `recommend`."""
        history = raw_id_list("history", history)
        dense_history = self.processor.dense_items(history)
        if candidates is None and self.retriever is None:
            raise LKGError("There is no retriever to find candidates; give `candidates`, or a retriever.")
        chosen = None
        if candidates is not None:
            candidates = raw_id_list("candidates", candidates)
            chosen = self.processor.dense_items(candidates)
            raw_id, times = Counter(map(str, candidates)).most_common(1)[0] if len(candidates) else ("", 0)
            if times > 1:
                raise LKGError(f"Candidate {raw_id!r} appears {times} times. Give each candidate once.")
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
        """Order and score parts of every list, as [`~windows.rank_windows`] gives them, all lists in the same forward
        passes.

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
        dense_history = self.processor.dense_items(raw_id_list("history", history))
        example = self.processor.history_example(dense_history, user)
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
