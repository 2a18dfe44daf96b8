"""From a user's history and a list of candidates to the parts of a batch; the prompt's text is in prompts.py. It never
imports the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from transformers import AutoProcessor, BatchFeature, PreTrainedTokenizerBase, ProcessorMixin

from ..data.examples import as_examples
from ..data.schema import UNKNOWN_USER, ItemTable, RankingExample, raw_id_list
from ..data.splits import EXCLUDED, check_repeats
from ..graph.evidence import EvidenceIndex
from ..graph.knowledge_graph import KnowledgeGraph
from ..graph.ranges import owners, ranks
from ..hub.mixin import HubMixin
from ..retrieval.base import Retriever, log_popularity
from ..retrieval.candidates import evidence_scale
from ..retrieval.fused import CandidateWeights, FusedRetriever
from ..utils.errors import LKGError
from ..utils.fingerprints import catalogue_fingerprint
from .candidate_paths import CandidatePathsMixin
from .configuration_llamarec_lkg import LlamaRecLKGConfig
from .processor_files import ProcessorFilesMixin
from .prompts import PromptMixin


# settings of the configuration that shape the batch; model and processor must agree on them
SHARED_SETTINGS = (
    "readout",
    "candidate_attention",
    "num_paths",
    "one_path_per_history_item",
    "path_weighting",
    "path_style",
    "history_length",
    "max_title_tokens",
    "num_candidates",
    "max_length",
    "evidence_half_life",
    "recent_half_life",
)


class LlamaRecLKGProcessor(CandidatePathsMixin, PromptMixin, ProcessorFilesMixin, HubMixin, ProcessorMixin):
    """Tokenizer, knowledge graph and item titles -> batches for [`LlamaRecLKGForRanking`].

    Args:
        tokenizer: the backbone's.
        knowledge_graph: its items are dense items 1, 2, ...; there are no people in it.
        item_ids, titles (`Sequence[str]`): of dense items 1, 2, ...
        user_ids (`Sequence[str]`): raw ids of dense users 1, 2, ..., for a model with weights of single users
            (`use_user_embedding`); without them every user is unknown. They are saved in `private/`.
        evidence_scale (`Sequence[float]`, optional): set by `fit`.
        item_counts (`Sequence[int]`): how often items 1, 2, ... were trained on; without them all are alike popular.
            Counts below five are taken as 0: what is saved tells nothing of so few interactions, and what is scored
            before is scored after.
        candidate_weights ([`CandidateWeights`], optional): how retriever, evidence and popularity find candidates
            together (`fused_retriever`); without them the retriever finds them alone.
        repeats (`"excluded"` or `"allowed"`): whether what is in a history is found again after it; what the data had
            that the ranker was trained on (`dataset.settings.repeats`).
        settings: values for `SHARED_SETTINGS`; see [`LlamaRecLKGConfig`], whose defaults they have.
    """

    tokenizer_class = "AutoTokenizer"
    hub_part = "processor"

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        knowledge_graph: KnowledgeGraph,
        item_ids: Sequence[str],
        titles: Sequence[str],
        user_ids: Sequence[str] = (),
        evidence_scale: Sequence[float] | None = None,
        item_counts: Sequence[int] = (),
        candidate_weights: CandidateWeights | None = None,
        repeats: Literal["excluded", "allowed"] = EXCLUDED,
        **settings: Any,
    ):
        if not len(item_ids) == len(titles) == knowledge_graph.num_items:
            raise LKGError(
                f"The graph has {knowledge_graph.num_items} items, but {len(item_ids)} item ids and {len(titles)} "
                "titles were given. Build the graph from the same data set as the titles."
            )
        if unknown := sorted(set(settings) - set(SHARED_SETTINGS)):
            raise LKGError(f"Unknown settings {unknown}; the processor knows {sorted(SHARED_SETTINGS)}.")
        check_repeats(repeats)
        checked = LlamaRecLKGConfig(**settings)
        self.settings = {name: getattr(checked, name) for name in SHARED_SETTINGS}
        for name, value in self.settings.items():
            setattr(self, name, value)
        self.longest_list = checked.longest_list
        self.item_ids = tuple(item_ids)
        self.titles = tuple(titles)
        self.user_ids = tuple(user_ids)
        self.dense_item = {raw: row + 1 for row, raw in enumerate(self.item_ids)}
        self.dense_user = {raw: row + 1 for row, raw in enumerate(self.user_ids)}
        self.evidence_scale = None if evidence_scale is None else [float(value) for value in evidence_scale]
        counts = np.asarray(item_counts if len(item_counts) else np.zeros(len(self.item_ids)))
        self.log_counts = log_popularity(np.concatenate([[0], counts]))  # (num_items + 1,)
        self.candidate_weights = candidate_weights
        self.repeats = repeats
        self.knowledge_graph = _without_people(knowledge_graph)
        self.reads_carried_features = True  # not with another graph: what examples carry was read from this one
        super().__init__(tokenizer)
        self._forget_texts()
        self.letter_token_ids = self._find_letters() if self.readout == "letters" else []

    @classmethod
    def from_config(cls, config: LlamaRecLKGConfig, *parts: Any, **named_parts: Any) -> LlamaRecLKGProcessor:
        """A processor with the configuration's prompt settings and the given tokenizer, graph, items and users. Fills
        in the configuration what only the processor knows."""
        settings = {name: getattr(config, name) for name in SHARED_SETTINGS}
        processor = cls(*parts, **named_parts, **settings)
        for name, value in processor._facts(config.use_user_embedding).items():
            if name != "relations" or not config.relations:
                setattr(config, name, value)
        processor.check_model(config)
        return processor

    def model_config(self, **overrides: Any) -> LlamaRecLKGConfig:
        """A configuration that fits this processor; `overrides` set everything but the shared prompt settings."""
        facts = self._facts(overrides.get("use_user_embedding", False))
        return LlamaRecLKGConfig(**{**facts, **self.settings, **overrides})

    def _facts(self, users: bool) -> dict[str, Any]:
        """What a configuration has from the processor, beside the settings that both share."""
        return {
            "relations": list(self.relations),
            "letter_token_ids": list(self.letter_token_ids),
            "prior_input_ids": self.empty_prompt_ids(),
            "catalogue": self.catalogue,
            **({"num_users": len(self.user_ids), "users": self.users} if users else {}),
        }

    def check_model(self, config: LlamaRecLKGConfig) -> None:
        """Raise `LKGError` unless a model with this configuration was made for this graph, tokenizer and prompt."""
        if list(config.relations) != list(self.relations):
            raise LKGError(
                f"The model was made for the relations {config.relations}, the processor's graph has "
                f"{list(self.relations)}. Load both from the same place, or train a new model for this graph."
            )
        others = config.num_users != len(self.user_ids) or config.users not in (None, self.users)
        if self.user_ids and config.num_users and others:
            raise LKGError(
                f"The model knows {config.num_users:,} users, the processor {len(self.user_ids):,}, not the same or "
                "in another order: a user would get another one's preferences. Load both from the same place."
            )
        if config.catalogue is not None and config.catalogue != self.catalogue:
            raise LKGError(
                f"The model was trained to rank other items than the {len(self.item_ids):,} of this processor, whose "
                f"ids look like {list(self.item_ids[:3])}. Load both from the same place. If the catalogue has "
                "changed on purpose, set `model.config.catalogue = None`."
            )
        differing = {n: (getattr(config, n), v) for n, v in self.settings.items() if getattr(config, n) != v}
        if differing:
            raise LKGError(f"Model and processor differ in their prompt settings; (model, processor): {differing}.")
        prior = list(config.prior_input_ids) or self.empty_prompt_ids()
        if list(config.letter_token_ids) != list(self.letter_token_ids) or prior != self.empty_prompt_ids():
            raise LKGError(
                "This processor's tokenizer writes the prompt in other tokens than those the model was trained with. "
                "Load both from the same place."
            )

    @cached_property
    def catalogue(self) -> str:
        """Fingerprint of the items, in their order."""
        return catalogue_fingerprint(self.item_ids)

    @cached_property
    def users(self) -> str | None:
        """Fingerprint of the users, in their order; None where none is known."""
        return catalogue_fingerprint(self.user_ids) if self.user_ids else None

    # -- graph and evidence -----------------------------------------------------------------------------------------

    @property
    def relations(self) -> tuple[str, ...]:
        return self.knowledge_graph.relations

    def with_knowledge_graph(self, graph: KnowledgeGraph) -> LlamaRecLKGProcessor:
        """A processor that shares everything with this one but reads another graph with the same items and relations,
        for example a shuffled one as a control."""
        if graph.relations != self.relations:
            raise LKGError(f"The graph has the relations {graph.relations}; this processor needs {self.relations}.")
        other = copy(self)
        other.knowledge_graph, other.reads_carried_features = _without_people(graph), False
        for name in ("evidence_index", "recent_index", "_path_graph", "_path_evidence"):
            other.__dict__.pop(name, None)
        other._forget_texts()  # of paths, which are known by their nodes
        return other

    def with_titles(self, titles: Sequence[str]) -> LlamaRecLKGProcessor:
        """A processor that shares everything with this one but names the items otherwise, as a control."""
        other = copy(self)
        other.titles = tuple(titles)
        other._forget_texts()
        return other

    def with_items(self, items: ItemTable) -> LlamaRecLKGProcessor:
        """A processor that knows further items, too, which nobody has interacted with: their titles, and their
        attributes in the graph."""
        return type(self)(
            self.tokenizer,
            self.knowledge_graph.with_items(items),
            (*self.item_ids, *items.ids),
            (*self.titles, *items.titles),
            self.user_ids,
            self.evidence_scale,
            np.append(np.expm1(self.log_counts[1:]).round(), np.zeros(len(items))),
            self.candidate_weights,
            self.repeats,
            **self.settings,
        )

    @cached_property
    def evidence_index(self) -> EvidenceIndex:
        index = EvidenceIndex.from_graph(self.knowledge_graph, half_life=self.evidence_half_life)
        return index if self.evidence_scale is None else index.with_scale(self.evidence_scale)

    @cached_property
    def recent_index(self) -> EvidenceIndex:
        """`evidence_index`, for which little but the last items of a history counts."""
        return self.evidence_index.with_half_life(self.recent_half_life)

    def fused_retriever(self, retriever: Retriever) -> Retriever:
        """`retriever` joined by evidence and popularity, where `candidate_weights` say how."""
        if self.candidate_weights is None:
            return retriever
        return FusedRetriever(
            retriever, self.evidence_index, self.log_counts, self.candidate_weights, self.recent_half_life
        )

    def fit(self, examples: Sequence[RankingExample | Mapping[str, Any]]) -> LlamaRecLKGProcessor:
        """Set the scale of each relation's evidence to its standard deviation over the candidates of examples."""
        self.set_evidence_scale(evidence_scale(as_examples(examples), self.evidence_index))
        return self

    def set_evidence_scale(self, scale: Sequence[float]) -> None:
        """What each relation's evidence is divided by, R positive numbers."""
        self.evidence_scale = [float(value) for value in scale]
        for name in ("evidence_index", "recent_index", "_path_evidence"):
            self.__dict__.pop(name, None)

    # -- examples from raw ids --------------------------------------------------------------------------------------

    def example(
        self,
        history: Sequence[str],
        candidates: Sequence[str],
        *,
        user: str | None = None,
        ratings: Sequence[float] | None = None,
        retrieval_scores: Sequence[float] | None = None,
        label: str | None = None,
    ) -> RankingExample:
        """A list to rank, from raw ids. A user that is not known is the average user: the history alone decides.

        Raises:
            LKGError: an item is not known, a candidate appears twice, there are fewer than two or more than can be
                ranked at once, or lengths differ.
        """
        history, candidates = (
            [str(raw) for raw in raw_id_list(name, ids)]
            for name, ids in (("history", history), ("candidates", candidates))
        )
        if label is not None and str(label) not in candidates:
            raise LKGError(f"The label {label!r} is not among the candidates. Give the id of one of them.")
        ratings = np.ones(len(history)) if ratings is None else ratings
        scores = np.zeros(len(candidates)) if retrieval_scores is None else retrieval_scores
        example = RankingExample(
            user=self.user_index(user),
            history=self.dense_items(history),
            ratings=np.asarray(ratings, dtype=np.float32),
            candidates=self.dense_items(candidates),
            retrieval_scores=np.asarray(scores, dtype=np.float32),
            label=-1 if label is None else candidates.index(str(label)),
        )
        self.check_example(example)
        return example

    def user_index(self, user: str | None) -> int:
        """Dense id of a raw user id; 0, the average user, where it is None or not known."""
        return UNKNOWN_USER if user is None else self.dense_user.get(str(user), UNKNOWN_USER)

    def dense_items(self, raw_ids: Sequence[str]) -> np.ndarray:
        """Dense ids of raw item ids; `LKGError` names those that are not known."""
        if unknown := [raw for raw in raw_ids if str(raw) not in self.dense_item]:
            raise LKGError(
                f"{len(unknown)} item id(s) are not in the catalogue of {len(self.item_ids):,}, the first is "
                f"{unknown[0]!r}. Known ids look like {list(self.item_ids[:3])}; leave out unknown ones (a server's "
                "requests and `llamarec-lkg rank` have an option for that)."
            )
        return np.array([self.dense_item[str(raw)] for raw in raw_ids], dtype=np.int64)

    def check_example(self, example: RankingExample) -> None:
        """Raise `LKGError` where an example cannot be ranked; the message says why."""
        candidates = example.candidates
        if len(candidates) < 2:
            raise LKGError(f"{len(candidates)} candidate(s) were given; at least two can be ranked.")
        if self.longest_list is not None and len(candidates) > self.longest_list:
            raise LKGError(
                f"{len(candidates)} candidates were given; one forward pass ranks 2 to {self.longest_list}. Rank "
                "longer lists through windows, configure num_candidates, or let candidates be isolated "
                "(candidate_attention)."
            )
        for name, items in (("history", example.history), ("candidates", candidates)):
            if len(items) and not 1 <= items.min() <= items.max() <= len(self.item_ids):
                raise LKGError(
                    f"The {name} holds dense item {int(items.min() if items.min() < 1 else items.max())}; this "
                    f"catalogue has items 1 to {len(self.item_ids)}. Make the examples from its data set."
                )
        ordered = np.sort(candidates)
        if (ordered[1:] == ordered[:-1]).any():
            values, counts = np.unique(candidates, return_counts=True)
            twice = self.item_ids[values[counts.argmax()] - 1]
            raise LKGError(f"Candidate {twice!r} appears {counts.max()} times. Give each candidate once.")
        if len(example.retrieval_scores) != len(candidates) or not np.isfinite(example.retrieval_scores).all():
            raise LKGError(
                f"{len(example.retrieval_scores)} retrieval scores for {len(candidates)} candidates; there must be "
                "one finite score a candidate."
            )
        if not -1 <= example.label < len(candidates) or min(example.user, example.shown or 0) < 0:
            raise LKGError(
                f"The example has label {example.label}, user {example.user} and shown {example.shown}; a label is "
                f"the index of one of its {len(candidates)} candidates or -1, a user is 0 or a dense id, and what is "
                "shown is a number of items."
            )
        of_candidates = (len(candidates), len(self.relations))
        for name in ("evidence", "recent_evidence", "popularity"):
            carried = getattr(example, name)
            if carried is not None and carried.shape != of_candidates[: carried.ndim]:
                raise LKGError(
                    f"The example carries {name} of shape {carried.shape}, for {of_candidates[0]} candidates and "
                    f"{of_candidates[1]} relations. Make it with `candidates.with_features`, or leave it out."
                )
        if len(example.ratings) != len(example.history):
            raise LKGError(f"{len(example.ratings)} ratings were given for a history of {len(example.history)} items.")

    # -- batches ----------------------------------------------------------------------------------------------------

    def __call__(
        self,
        examples: Sequence[RankingExample | Mapping[str, Any]],
        *,
        with_prompt: bool = True,
        pad_to_candidates: int | None = None,
    ) -> BatchFeature:
        """The batch of [`LlamaRecLKGForRanking.forward`]; its docstring gives the shapes.

        Args:
            pad_to_candidates: width C of the batch, by default (and at least) that of the longest list.
            with_prompt: False leaves the text parts out, for models with `use_language_model=False`.
        """
        examples = as_examples(examples)
        if not examples:
            raise LKGError("There is no list to make a batch of; it needs one at least.")
        for example in examples:
            self.check_example(example)
        count = max(pad_to_candidates or 0, *(len(example.candidates) for example in examples))
        features = self._features(examples)
        batch: dict[str, Any] = {
            "candidate_mask": np.arange(count) < np.array([[len(example.candidates)] for example in examples]),
            "retrieval_scores": _padded([example.retrieval_scores for example in examples], count),
            "user_ids": np.array([example.user for example in examples], dtype=np.int64),
            "history_relations": np.stack(features.pop("history_relations")).astype(np.float32),
            "labels": np.array([example.label for example in examples], dtype=np.int64),
            **{name: _padded(values, count) for name, values in features.items()},
        }
        batch = {name: torch.from_numpy(value) for name, value in batch.items()}
        if with_prompt:
            with self._own_texts():
                batch |= self._prompt_parts(examples, count)
        return BatchFeature(batch)

    def _features(self, examples: Sequence[RankingExample]) -> dict[str, list[np.ndarray]]:
        """The features of each example (see [`RankingExample`]): what it carries, and what it lacks is read, for all
        at once."""
        names = "history_relations", "evidence", "recent_evidence", "popularity"
        found = {
            name: [getattr(example, name) if self.reads_carried_features else None for example in examples]
            for name in names
        }
        of_graph = zip(*(found[name] for name in names[:3]), strict=True)
        rows = [row for row, values in enumerate(of_graph) if any(value is None for value in values)]
        histories, candidates = ([getattr(examples[row], one) for row in rows] for one in ("history", "candidates"))
        evidence, statistics = self.evidence_index.features(
            histories, candidates, [self.evidence_half_life, self.recent_half_life]
        )
        for name, read in zip(names, (statistics, *evidence), strict=False):
            for row, values in zip(rows, read, strict=True):
                if found[name][row] is None:
                    found[name][row] = values
        known = zip(examples, found["popularity"], strict=True)
        found["popularity"] = [self.log_counts[one.candidates] if values is None else values for one, values in known]
        return found

    def _prompt_parts(self, examples: Sequence[RankingExample], count: int) -> dict[str, torch.Tensor]:
        found, found_weights = self._candidate_paths(examples)
        lengths, sizes = (
            np.array([0, *(len(one) for one in some)]).cumsum()
            for some in ([self._shown(one) for one in examples], [one.candidates for one in examples])
        )
        row = owners(np.diff(lengths)).take(found.source_index)
        place, each = ranks(row), np.bincount(row, minlength=len(examples))
        shape = len(examples), max(1, int(each.max()))
        weights = np.zeros((*shape, len(self.relations)), dtype=np.float32)
        sources, targets = np.full(shape, -1), np.zeros(shape, dtype=np.int64)
        weights[row, place] = found_weights
        sources[row, place] = found.source_index - lengths.take(row)
        targets[row, place] = found.target_index - sizes.take(row)
        table = self.token_table
        prefixes = self.prefix_pieces(examples, [self.max_length - self.candidates_room(one) for one in examples])
        parts = {"prefix": table.padded(np.concatenate(prefixes), [len(one) for one in prefixes], left=True)}
        lines = self.path_pieces(examples, found)
        counts = (np.arange(shape[1]) < each[:, None]).ravel() * lines.shape[1]
        parts["path"] = [tensor.view(*shape, -1) for tensor in table.padded(lines.ravel(), counts, left=False)]
        if self.readout == "letters":
            suffixes = [self.suffix_pieces(example) for example in examples]
            parts["suffix"] = table.padded(np.concatenate(suffixes), [len(one) for one in suffixes], left=False)
        else:
            blocks = self.candidate_pieces(np.concatenate([example.candidates for example in examples]))
            counts = (np.arange(count) < np.diff(sizes)[:, None]).ravel() * blocks.shape[1]
            padded = table.padded(blocks.ravel(), counts, left=False)
            parts["candidate"] = [tensor.view(len(examples), count, -1) for tensor in padded]
        tokens = {f"{name}_input_ids": ids for name, (ids, _) in parts.items()}
        tokens |= {f"{name}_attention_mask": mask for name, (_, mask) in parts.items()}
        arrays = {"path_relation_weights": weights, "path_sources": sources, "path_candidates": targets}
        return tokens | {name: torch.from_numpy(values) for name, values in arrays.items()}

    def render(self, example: RankingExample, selected: Sequence[Any] | None = None) -> list[str]:
        """The prompt's pieces as text, with the `selected` of its candidate paths (all by default), as of a model's
        `selected_paths`: one list, or one for each candidate."""
        with self._own_texts():
            found, _ = self.candidate_paths(example)
            lines = self.path_pieces([example], found)
            pieces = self.prefix_pieces([example], [self.max_length - self.candidates_room(example)])
            if self.readout == "letters":
                shown = range(len(found)) if selected is None else [row for row in selected if row >= 0]
                pieces += [*lines[shown], self.suffix_pieces(example)]
            else:
                for place, block in enumerate(self.candidate_pieces(example.candidates)):
                    own = np.flatnonzero(found.target_index == place) if selected is None else selected[place]
                    pieces += [block, *(lines[row] for row in own if row >= 0)]
            texts = [self._text(entry) for entry in np.concatenate(pieces)]
            return [self.tokenizer.bos_token, *texts] if self._bos() else texts

    def _text(self, entry: int) -> str:
        text, tokens = self.token_table.text(entry), self.token_table.tokens(np.array([entry]))
        return self.tokenizer.decode(tokens) if text is None else text


def _padded(rows: Sequence[np.ndarray], count: int) -> np.ndarray:
    """Arrays of (C, ...) -> `float32`, (B, count, ...), with zeros where a row is shorter."""
    result = np.zeros((len(rows), count, *np.shape(rows[0])[1:]), dtype=np.float32)
    for row, values in enumerate(rows):
        result[row, : min(len(values), count)] = values[:count]
    return result


def _without_people(graph: KnowledgeGraph) -> KnowledgeGraph:
    """The graph; raises `LKGError` where people are in it."""
    if graph.has_people:
        raise LKGError(
            "There are people in this graph (nodes of users, or RATED edges), who would be saved with the processor. "
            "Build it with `KnowledgeGraph.from_dataset(dataset)`, and add what interactions say, summed over people, "
            "with `graph.with_co_ratings(co_ratings(dataset))`."
        )
    return graph


AutoProcessor.register(LlamaRecLKGConfig, LlamaRecLKGProcessor, exist_ok=True)
