"""`pipeline("recommendation", model=...)`: the [`Recommender`] behind the interface of `transformers` pipelines.
Importing this module registers the task."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import asdict
from itertools import islice, starmap
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import CommitInfo
from transformers.pipelines import PIPELINE_REGISTRY, Pipeline

from ..hub.layout import RETRIEVER_FOLDER
from ..ranking.modeling_llamarec_lkg import LlamaRecLKGForRanking
from ..ranking.processing_llamarec_lkg import LlamaRecLKGProcessor
from ..retrieval.base import Retriever
from ..retrieval.sequential import NeuralRetriever, SequentialRetrieverModel
from ..utils.errors import LKGError
from ..utils.upstream import quiet_upstream
from .questions import Ranking, Request
from .recommender import Recommender


logger = logging.getLogger(__name__)


TASK = "recommendation"


class RecommendationPipeline(Pipeline):
    """Items with scores and reasons for one request or many.

    Example:

        >>> import llamarec_lkg
        >>> from transformers import pipeline
        >>> recommend = pipeline("recommendation", model="outputs/quickstart")
        >>> recommend({"history": ["50", "181", "172"]}, top_k=5)
        >>> recommend([{"history": ["50"], "user": "7"}, {"history": [], "candidates": ["1", "2"]}], batch_size=8)

    Args:
        model ([`LlamaRecLKGForRanking`]): `pipeline` makes it of a folder or Hub id.
        processor ([`LlamaRecLKGProcessor`]): likewise; to be given beside a model that is not a name.
        retriever: finds candidates and scores them first. A `Retriever`, a [`SequentialRetrieverModel`], or the
            folder or Hub id of one; by default the one saved beside the model. False is none: then every request
            brings its candidates, whose first-stage scores are 0.
        kwargs: of [`~transformers.Pipeline`]: `device`, ...; and what a call takes, for all calls.

    Raises:
        LKGError: model, processor and retriever are not of this library or do not belong together.
    """

    _load_processor = True
    _load_tokenizer = False  # the processor has it
    _load_feature_extractor = False
    _load_image_processor = False
    _load_video_processor = False

    def __init__(
        self,
        model: LlamaRecLKGForRanking,
        processor: LlamaRecLKGProcessor | None = None,
        *,
        retriever: Retriever | SequentialRetrieverModel | str | Path | Literal[False] | None = None,
        **kwargs: Any,
    ):
        local = kwargs.pop("local_files_only", None)  # `pipeline` has loaded by it, and passes it on
        for given, needed in ((model, LlamaRecLKGForRanking), (processor, LlamaRecLKGProcessor)):
            if not isinstance(given, needed):
                raise LKGError(
                    f"The task {TASK!r} needs a {needed.__name__}, not {type(given).__name__}. Give `model` as the "
                    "folder or Hub id of a trained ranker, or both `model` and `processor` loaded from it."
                )
        super().__init__(model=model, processor=processor, **kwargs)
        if retriever is None:
            retriever = _find_retriever(model, {} if local is None else {"local_files_only": local})
        elif isinstance(retriever, str | Path):
            retriever = NeuralRetriever.from_pretrained(str(retriever))
        if isinstance(retriever, SequentialRetrieverModel):
            retriever = NeuralRetriever(retriever)
        self.recommender = Recommender(model, processor, None if retriever is False else retriever)

    def __call__(
        self, inputs: Mapping[str, Any] | Iterable[Mapping[str, Any]], **kwargs: Any
    ) -> list[dict[str, Any]] | list[list[dict[str, Any]]] | Iterator[list[dict[str, Any]]]:
        """Recommend.

        Args:
            inputs: a request, or several in a list, a generator or a data set. A request is a dictionary with
                "history" (raw item ids, oldest first; may be empty) and optionally "user" (a raw id; an unknown one is
                the average user), "candidates" (raw item ids to rank in place of what the retriever finds) and
                "repeats" ("allowed" or "excluded": whether it finds what is in the history; by default as trained).
            kwargs: `top_k` (10), how many items to return; `num_reasons` (3), how many paths to name for each item;
                `batch_size` (1), requests in one forward pass. It changes scores by rounding alone: some 1e-6 in
                float32, up to 1 % in bfloat16.

        Returns:
            the fields of [`Recommendation`] as dictionaries, best first, for one request. A list of that for a list of
            requests, an iterator over it for anything else that holds several.

        Raises:
            LKGError: a request cannot be answered. For several requests the message counts them from 0.
        """
        if isinstance(inputs, tuple):
            inputs = list(inputs)
        elif isinstance(inputs, Iterable) and not isinstance(inputs, Mapping | list | str):
            inputs = _each(inputs)  # such as a `datasets.Dataset`, whose rows are requests
        return super().__call__(inputs, **kwargs) if inputs != [] else []

    def _sanitize_parameters(
        self, top_k: int | None = None, num_reasons: int | None = None
    ) -> tuple[dict[str, int], dict[str, int], dict[str, int]]:
        for name, value, least in (("top_k", top_k, 1), ("num_reasons", num_reasons, 0)):
            if value is not None and value < least:
                raise LKGError(f"{name} is {value!r}; it is a whole number, {least} or more.")
        asked = {} if top_k is None else {"top_k": top_k}
        return {}, asked, asked if num_reasons is None else {**asked, "num_reasons": num_reasons}

    def preprocess(self, inputs: Mapping[str, Any]) -> Request:
        if not isinstance(inputs, Mapping):
            raise LKGError(
                f"A request is a dictionary such as {{'history': ['50', '181']}}, not {type(inputs).__name__} "
                f"({str(inputs)[:60]!r})."
            )
        if "history" not in inputs or not {"history", "user", "candidates", "repeats"}.issuperset(inputs):
            raise LKGError(
                f"A request has 'history' (a list, which may be empty) and optionally 'user', 'candidates' and "
                f"'repeats'; found {sorted(map(str, inputs))}. Rename or leave out the others."
            )
        return self.recommender.request(**inputs)

    def _forward(self, requests: Sequence[Request], top_k: int = 10) -> list[Ranking]:
        return self.recommender.rank(self.recommender.retrieve(requests, top_k))

    def postprocess(self, ranking: Ranking, top_k: int = 10, num_reasons: int = 3) -> list[dict[str, Any]]:
        return [asdict(item) for item in self.recommender.describe(ranking, k=top_k, num_reasons=num_reasons)]

    def get_iterator(
        self,
        inputs: Any,
        num_workers: int,
        batch_size: int,
        preprocess_params: dict[str, Any],
        forward_params: dict[str, Any],
        postprocess_params: dict[str, Any],
    ) -> Iterator[list[dict[str, Any]]]:
        """Batches of requests, not of padded tensors: the processor pads, once it knows all lists of the batch."""
        if batch_size < 1:
            raise LKGError(f"batch_size is {batch_size!r}; it is a whole number, 1 or more.")

        def check(number: int, request: Any) -> Request:
            try:
                return self.preprocess(request, **preprocess_params)
            except LKGError as error:
                raise LKGError(f"Request {number}: {error}") from error

        requests = starmap(check, enumerate(_each(inputs)))
        while batch := list(islice(requests, batch_size)):
            for ranking in self.forward(batch, **forward_params):
                yield self.postprocess(ranking, **postprocess_params)

    def run_single(
        self, inputs: Any, preprocess_params: dict, forward_params: dict, postprocess_params: dict
    ) -> list[dict[str, Any]]:
        (ranking,) = self.forward([self.preprocess(inputs, **preprocess_params)], **forward_params)
        return self.postprocess(ranking, **postprocess_params)

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """As `Recommender.save_pretrained`."""
        self.recommender.save_pretrained(save_directory, **kwargs)

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> CommitInfo:
        """As `Recommender.push_to_hub`."""
        return self.recommender.push_to_hub(repo_id, **kwargs)


def _each(inputs: Any) -> Iterator[Any]:
    """The requests of a list, a generator, or a data set that knows its length and its rows by number."""
    if isinstance(inputs, Sized) and not isinstance(inputs, Iterable):
        return (inputs[number] for number in range(len(inputs)))
    return (request for request in inputs)


def _find_retriever(model: LlamaRecLKGForRanking, hub: dict[str, Any]) -> NeuralRetriever | None:
    """The retriever in the folder, or in the commit of the repository, that the model was loaded from."""
    place, commit = model.config.name_or_path, getattr(model.config, "_commit_hash", None)
    hub = {**hub, "revision": commit} if commit else hub
    with quiet_upstream():
        retriever = NeuralRetriever.from_repository(place, hub) if place else None
    if retriever is None:
        logger.warning(
            f"There is no folder {RETRIEVER_FOLDER!r} beside the model, so every request must bring its candidates, "
            "whose first-stage scores are 0. Give `retriever=`, or `retriever=False` if that is meant."
        )
    return retriever


PIPELINE_REGISTRY.register_pipeline(TASK, RecommendationPipeline, pt_model=LlamaRecLKGForRanking)
