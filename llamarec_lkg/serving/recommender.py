"""Recommending for one user: retrieve, rank, and say which paths spoke for each item."""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from huggingface_hub import CommitInfo

from ..data.schema import UNKNOWN_USER, ItemTable, RankingExample, raw_id_list
from ..data.splits import check_repeats
from ..hub.layout import CARD_FACTS, PARTS, PRIVATE_PARTS, REPORT_FILE, RETRIEVER_FOLDER
from ..hub.push import PushOptions, push_folder
from ..ranking.modeling_llamarec_lkg import LlamaRecLKGForRanking
from ..ranking.processing_llamarec_lkg import LlamaRecLKGProcessor
from ..retrieval.base import Retriever, check_retriever, exclude_history, frozen, never_ranked, rows_at_once, top_k
from ..retrieval.fused import FusedRetriever
from ..retrieval.sequential import NeuralRetriever
from ..utils.errors import LKGError
from ..utils.files import atomic_files, whole
from ..utils.hub import hub_options, pinned
from ..utils.upstream import quiet_upstream
from .new_items import with_items
from .preferences import with_weights
from .questions import Ranking, Request
from .reasons import LANGUAGE_MODEL, POPULARITY, RETRIEVER, Recommendation, described
from .remote import RemoteScorer
from .sliding_windows import rank_windows


class Recommender:
    """Retriever, processor and ranker of one saved folder or Hub repository, ready to answer.

    Recommenders may share a model with several adapters (`load_adapter`): each switches to its own whenever it
    answers, so not from several threads at once. A recommender with a model of its own may answer several threads.

    Args:
        retriever: finds candidates; a neural one is moved to the model's device and put in eval mode, as the model
            is. None: every request brings its candidates.
        remote: asks a server in place of the model's language model, which need not be loaded.

    Raises:
        LKGError: model, processor and retriever do not belong together, or no server can do for the language model.
    """

    def __init__(
        self,
        model: LlamaRecLKGForRanking,
        processor: LlamaRecLKGProcessor,
        retriever: Retriever | None = None,
        *,
        remote: RemoteScorer | None = None,
    ):
        model.check_processor(processor)
        if remote is not None:
            remote.check(model.config, processor)
        if retriever is not None:
            check_retriever(retriever, processor.item_ids)
        if isinstance(retriever, NeuralRetriever):
            retriever.model.to(model.device).eval()  # once: calls that switch modes would disturb each other
        self.model, self.processor, self.retriever = model.eval(), processor, retriever
        self.adapter_name, self.remote = model.active_adapter, remote

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        device: str | torch.device | None = None,
        remote: RemoteScorer | None = None,
        **kwargs: Any,
    ) -> Recommender:
        """Load what the quickstart, the command line or the trainer saved or pushed.

        Args:
            device: where ranker and retriever compute; by default on the GPU where there is one, or as `device_map`
                and `quantization_config` place the ranker.
            remote: asks a server in place of the language model, which is not loaded then.
            kwargs: for the ranker's `from_pretrained`, whose errors are raised.
        """
        name = str(pretrained_model_name_or_path)
        hub = pinned(name, hub_options(kwargs))  # all parts from the same commit, whatever is pushed meanwhile
        if remote is not None:
            kwargs["backbone"] = False
        with quiet_upstream(), whole(name):
            model = LlamaRecLKGForRanking.from_pretrained(name, **{**kwargs, **hub})
            processor, retriever = (
                LlamaRecLKGProcessor.from_pretrained(name, **hub),
                NeuralRetriever.from_repository(name, hub),
            )
        placed = "device_map" in kwargs or "quantization_config" in kwargs
        if device is None and torch.cuda.is_available() and not placed:
            device = "cuda"  # for which the precision was chosen
        return cls(model if device is None else model.to(device), processor, retriever, remote=remote)

    def load_adapter(
        self, pretrained_model_name_or_path: str | Path, adapter_name: str, *, same_backbone: bool = False, **hub: Any
    ) -> Recommender:
        """A recommender of another repository (its items, graph, users and retriever) on this one's backbone.

        Args:
            adapter_name: the name of its adapter in the shared model.
            same_backbone, hub: as for `LlamaRecLKGForRanking.load_adapter`.

        Raises:
            LKGError: this recommender's model has no adapter, or the repository does not fit its backbone.
        """
        if self.adapter_name is None:
            raise LKGError(
                "This recommender's model has no adapter, so its preferences would be replaced. Load an adapter "
                "repository first, and further ones beside it."
            )
        name = str(pretrained_model_name_or_path)
        hub = pinned(name, hub)
        processor = LlamaRecLKGProcessor.from_pretrained(name, **hub)
        retriever = NeuralRetriever.from_repository(name, hub)
        if retriever is not None:
            check_retriever(retriever, processor.item_ids)  # before the model changes
        self.model.load_adapter(name, adapter_name, processor=processor, same_backbone=same_backbone, **hub)
        self.model.set_adapter(adapter_name)
        return type(self)(self.model, processor, retriever)

    def _switch(self) -> None:
        if self.adapter_name is not None and self.model.has_adapter:  # it may have been merged meanwhile
            self.model.set_adapter(self.adapter_name)

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Save ranker, processor and retriever in one folder, from which all of them load.

        Args:
            kwargs: for the ranker's `save_pretrained`; with `push_to_hub=True` also for `push_to_hub`, whose `repo_id`
                is by default the folder's name.
        """
        self._switch()
        folder, wanted = Path(save_directory), kwargs.pop("push_to_hub", False)
        options = PushOptions.take(kwargs, strict=wanted)
        repo_id = kwargs.pop("repo_id", folder.name)
        if self.retriever is not None and not isinstance(self.retriever, NeuralRetriever):
            raise LKGError(
                f"A {type(self.retriever).__name__} cannot be saved. Save model and processor by themselves."
            )
        if self.model.config.external_backbone:
            kwargs.setdefault("include_backbone", False)  # it was not loaded from one folder, and is not saved in one
        earlier = [name for files in (*PARTS.values(), *PRIVATE_PARTS.values()) for name in files if "/*/" not in name]
        # its configuration goes first and comes last: who reads in between is refused, and sees no mixture
        with atomic_files(folder, "config.json", replaces=earlier) as new:
            self.model.save_pretrained(new, **kwargs)
            self.processor.save_pretrained(new)
            if self.retriever is not None:
                self.retriever.model.save_pretrained(new / RETRIEVER_FOLDER)
        if wanted:
            push_folder(folder, repo_id, options=options)

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> CommitInfo:
        """Push ranker, processor and retriever to the Hub, as one commit. Nothing in it is about people unless
        `share_users=True`.

        Args:
            repo_id (`str`): "owner/name"; made if it does not exist.
            kwargs: fields of [`~push.PushOptions`], and arguments of the ranker's `save_pretrained`.

        Raises:
            LKGError: the retriever cannot be saved, the backbone has no name that others can load, or the upload
                failed.
        """
        options = PushOptions.take(kwargs)
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, **kwargs)
            for name in (CARD_FACTS, REPORT_FILE):  # the card tells of the run that the ranker was loaded from
                path = Path(self.model.config.name_or_path, name)
                if path.is_file():
                    shutil.copyfile(path, Path(folder, name))
            return push_folder(folder, repo_id, options=options)

    def add_items(self, items: ItemTable | pd.DataFrame, *, text_backbone: str | Path | None = None) -> None:
        """Take further items into the catalogue, without training: the retriever finds them by text and entities, the
        graph ties them to others, the language model reads their titles. Nothing is known of who takes them, so they
        have no popularity and no co-ratings.

        Args:
            items: with columns `item_id` and `title`; others are attributes, under the names the graph's relations
                have.
            text_backbone: the language model that read the items' texts for the retriever, where that was a folder;
                by default what the retriever names.

        Raises:
            LKGError: an item is known already, an attribute is none of the graph's relations, or the retriever knows
                items by their ids alone.
        """
        self._switch()  # else another recommender's adapter would be given this one's catalogue
        items = items if isinstance(items, ItemTable) else ItemTable.from_frame(items)
        processor = self.processor.with_items(items)
        if self.retriever is not None:
            self.retriever = with_items(self.retriever, items, self.processor, processor, text_backbone)
        self.model.config.catalogue, self.processor = processor.catalogue, processor

    @property
    def _reads_prompts(self) -> bool:
        """Whether a language model has a say, here or on a server."""
        return self.remote is not None or self.model.config.use_language_model

    @property
    def item_ids(self) -> tuple[str, ...]:
        return self.processor.item_ids

    def recommend(
        self,
        history: Sequence[str],
        *,
        user: str | None = None,
        candidates: Sequence[str] | None = None,
        repeats: Literal["excluded", "allowed"] | None = None,
        preferences: Mapping[str, float] | None = None,
        k: int = 10,
        num_reasons: int = 3,
    ) -> list[Recommendation]:
        """The best `k` items for a history of raw item ids, oldest first.

        Args:
            user: raw id; unknown or None is the average user, for whom the history alone decides.
            candidates: rank these; by default what the retriever finds.
            repeats: whether it also finds what is in the history; by default as the ranker was trained
                (`processor.repeats`).
            preferences: weights of some relations in place of what `preferences` reads from the history; the others
                share what remains of 1. They order the list; what the retriever finds is the same.
            num_reasons: how many paths to name for each item. It counts paths only: the other parts of the score
                are among the reasons in any case.

        Raises:
            LKGError: history or candidates are no list, an item or a relation is not known, candidates repeat,
                `repeats` is neither of its values, `preferences` are no shares of 1, or a number of items or paths is
                none.
        """
        for name, count, least in (("k", k, 1), ("num_reasons", num_reasons, 0)):
            if isinstance(count, bool) or not isinstance(count, int | np.integer) or count < least:
                raise LKGError(f"{name} is {repr(count)[:60]}; it is a whole number, {least} or more.")
        request, given = self.request(history, user=user, candidates=candidates, repeats=repeats), None
        if preferences is not None:
            given = [with_weights(self.preferences(history, user=user), preferences)]
        (ranking,) = self.rank(self.retrieve([request], k), preferences=given)
        return self.describe(ranking, k=k, num_reasons=num_reasons)

    def request(
        self,
        history: Sequence[str],
        *,
        user: str | None = None,
        candidates: Sequence[str] | None = None,
        repeats: Literal["excluded", "allowed"] | None = None,
    ) -> Request:
        """Check raw ids; the arguments and errors of `recommend`."""
        dense_history = self.processor.dense_items(raw_id_list("history", history))
        if candidates is None and self.retriever is None:
            raise LKGError("There is no retriever to find candidates; give `candidates`, or a retriever.")
        repeats = self.processor.repeats if repeats is None else repeats
        check_repeats(repeats)
        chosen = None
        if candidates is not None:
            candidates = raw_id_list("candidates", candidates)
            chosen = self.processor.dense_items(candidates)
            for raw_id, times in Counter(map(str, candidates)).most_common(1):
                if times > 1:
                    raise LKGError(f"Candidate {raw_id!r} appears {times} times. Give each candidate once.")
        return Request(dense_history, self.processor.user_index(user), chosen, repeats)

    def retrieve(self, requests: Sequence[Request], k: int = 10) -> list[RankingExample]:
        """The lists to rank, one a request: its candidates, or what the retriever finds."""
        retriever = None if self.retriever is None else frozen(self.retriever)
        finder = None if retriever is None else self.processor.fused_retriever(retriever)
        examples, rows = [], rows_at_once(len(self.item_ids))
        for start in range(0, len(requests), rows):  # scores of all items, of a few requests at a time
            block = requests[start : start + rows]
            if retriever is None:
                scores = np.zeros((len(block), len(self.item_ids) + 1), dtype=np.float32)
            else:
                scores = retriever.score([request.history for request in block])
            asked = [row for row, request in enumerate(block) if request.candidates is None]
            found = self._find(finder, scores[asked], [block[row] for row in asked], k) if asked else []
            candidates = [request.candidates for request in block]
            for row, items in zip(asked, found, strict=True):
                candidates[row] = items
            for request, items, first_stage in zip(block, candidates, scores, strict=True):
                ratings = np.ones(len(request.history), dtype=np.float32)
                values = first_stage[items].astype(np.float32)
                examples.append(RankingExample(request.user, request.history, ratings, items, values))
        return examples

    def _find(self, finder: Retriever, scores: np.ndarray, requests: Sequence[Request], k: int) -> list[np.ndarray]:
        """Candidates by the retriever's scores (B, num_items + 1), which are changed, and whatever else finds them,
        history excluded unless the request allows repeats."""
        histories = [request.history for request in requests]
        away = [never_ranked([one.history], one.repeats)[0] for one in requests]
        chosen_by = finder.join(scores, histories) if isinstance(finder, FusedRetriever) else scores
        found, _ = top_k(exclude_history(chosen_by, away), max(k, self.processor.num_candidates))
        return [items[items > 0] for items in found]

    def rank(
        self, examples: Sequence[RankingExample], *, preferences: Sequence[Mapping[str, float]] | None = None
    ) -> list[Ranking]:
        """Rank lists of any length, all of them in the same forward passes. A list of one is not scored: its
        first-stage score is all it has.

        Args:
            preferences: of each example, over all relations; by default as its history tells.
        """
        self._switch()
        used: dict[int, np.ndarray] = {}

        def score(rows: list[int], windows: list[RankingExample]) -> np.ndarray:
            batch = self.processor(windows, with_prompt=self._reads_prompts)
            if preferences is not None:
                given = [[preferences[places[row]][name] for name in self.processor.relations] for row in rows]
                batch["preferences"] = torch.tensor(given, dtype=torch.float32)
            if self.remote is not None:
                batch["lm_scores"] = self.remote.scores(self.model, self.processor, batch)
            found = {name: values.float().cpu().numpy() for name, values in self.model.score_parts(batch).items()}
            used.update(zip(rows, found["preferences"], strict=True))
            parts = np.stack([found[name] for name in (LANGUAGE_MODEL, RETRIEVER, POPULARITY)], axis=-1)
            none = np.zeros((*parts.shape[:2], len(self.processor.relations)), dtype=np.float32)
            return np.concatenate([parts, found.get("evidence", none)], axis=-1)

        places = [place for place, example in enumerate(examples) if len(example.candidates) > 1]
        several = [examples[place] for place in places]
        longest = self.processor.longest_list or max((len(example.candidates) for example in several), default=0)
        ranked = iter(rank_windows(score, several, longest))
        chosen = map(used.get, range(len(several)))
        rankings = []
        for example in examples:
            if len(example.candidates) > 1:
                rankings.append(Ranking(example, *next(ranked), next(chosen)))
            else:
                parts = np.zeros((len(example.candidates), 3 + len(self.processor.relations)), dtype=np.float32)
                parts[:, 1] = example.retrieval_scores
                rankings.append(Ranking(example, np.arange(len(parts)), parts, parts.sum(1), None))
        return rankings

    def describe(self, ranking: Ranking, *, k: int = 10, num_reasons: int = 3) -> list[Recommendation]:
        """The best `k` of a ranked list, with reasons."""
        return self.describe_all([ranking], k=[k], num_reasons=[num_reasons])[0]

    def describe_all(
        self, rankings: Sequence[Ranking], *, k: Sequence[int], num_reasons: Sequence[int]
    ) -> list[list[Recommendation]]:
        """The best of each of several ranked lists, with reasons; short lists take less time together."""
        self._switch()
        weights = self.model.fusion.weights(self._reads_prompts)
        return described(self.processor, rankings, weights, k, num_reasons)

    @torch.inference_mode()
    def preferences(self, history: Sequence[str], *, user: str | None = None, use_id: bool = True) -> dict[str, float]:
        """The user's distribution over relations, largest first; without what a known user's id adds where `use_id` is
        False."""
        self._switch()
        dense_history = self.processor.dense_items(raw_id_list("history", history))
        batch = {
            "user_ids": torch.tensor([self.processor.user_index(user) if use_id else UNKNOWN_USER]),
            "history_relations": torch.from_numpy(self.processor.evidence_index.statistics([dense_history])),
        }
        values = self.model.preferences(batch)[0].tolist()
        return dict(sorted(zip(self.processor.relations, values, strict=True), key=lambda pair: -pair[1]))
