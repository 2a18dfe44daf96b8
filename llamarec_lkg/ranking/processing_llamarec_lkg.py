"""From a user's history and a list of candidates to the parts of a batch. It never imports the model.

The prompt, piece by piece (each line of the sketch is made of pieces that are tokenized on their own and cached):

    ### Instruction: ...            prefix
    ### History:
    Heat (1995)
    ### Paths:
    Heat (1995) -> DIRECTED_BY Michael Mann -> (B)      one for each path; the model chooses which
    ### Candidates:                 suffix
    (A) Toy Story (1995)
    (B) Insider, The (1999)
    ### Response:
                                    <- the next token is the answer, a bare letter without a space before it

The letter rule: an answer is the single token that the tokenizer makes of a letter right after the line end of the
response cue. It is looked up once, by tokenizing cue and letter together, and checked to be one distinct token for
every letter.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from copy import copy
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from transformers import AutoProcessor, AutoTokenizer, BatchFeature, PreTrainedTokenizerBase, ProcessorMixin

from ..data.schema import ITEM_ID, RATED, TITLE, UNKNOWN_USER, USER_ID, RankingExample, clean_text, raw_id_list
from ..graph import paths
from ..graph.evidence import EvidenceIndex
from ..graph.knowledge_graph import KnowledgeGraph
from ..hub.layout import (
    GRAPH_FILES,
    GRAPH_FOLDER,
    PROCESSOR_FILE,
    PROCESSOR_MAP,
    USERS_FILE,
    ignore_private,
    write_shim,
)
from ..hub.mixin import HubMixin
from ..hub.push import PushOptions, push_folder
from ..hub.saved_folder import check_graph
from ..utils.errors import LKGError
from ..utils.files import atomic_file, read_json, write_json
from ..utils.fingerprints import catalogue_fingerprint
from ..utils.hub import fetch, hub_options, pinned
from .configuration_llamarec_lkg import LETTERS, LlamaRecLKGConfig


INSTRUCTION = (
    "### Instruction: Given what the user liked, oldest first, choose what the user will like next. "
    "Answer with its letter."
)


# settings of the configuration that shape the batch; model and processor must agree on them
SHARED_SETTINGS = (
    "num_paths",
    "one_path_per_history_item",
    "path_weighting",
    "path_style",
    "history_length",
    "max_title_tokens",
    "num_candidates",
    "max_length",
    "evidence_half_life",
)


def sanitize(text: str) -> str:
    """A title or name that cannot pass for a part of the prompt: no line ends, no "(B)", no "### Response:", no " ->
    "."""
    text = re.sub(r"\(\s*([A-Za-z])\s*\)", r"[\1]", clean_text(text))
    return re.sub(r"-+>", "-", re.sub(r"#{2,}", "#", text))


class LlamaRecLKGProcessor(HubMixin, ProcessorMixin):
    """Tokenizer, knowledge graph and item titles -> batches for [`LlamaRecLKGForRanking`].

    Args:
        tokenizer: the backbone's.
        knowledge_graph: its items are dense items 1, 2, ...
        item_ids, titles (`Sequence[str]`): of dense items 1, 2, ...
        user_ids (`Sequence[str]`): raw ids of dense users 1, 2, ...; without them every user is unknown.
        evidence_scale (`Sequence[float]`, optional): set by `fit`.
        settings: values for `SHARED_SETTINGS`; see [`LlamaRecLKGConfig`], whose defaults they have.

    Raises:
        LKGError: graph and titles differ in number, or the tokenizer cannot tell the letters apart.
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
        **settings: Any,
    ):
        if not len(item_ids) == len(titles) == knowledge_graph.num_items:
            raise LKGError(
                f"The graph has {knowledge_graph.num_items} items, but {len(item_ids)} item ids and {len(titles)} "
                "titles were given. Build the graph from the same data set as the titles."
            )
        unknown = sorted(set(settings) - set(SHARED_SETTINGS))
        if unknown:
            raise LKGError(f"Unknown settings {unknown}; the processor knows {sorted(SHARED_SETTINGS)}.")
        checked = LlamaRecLKGConfig(**settings)
        self.settings = {name: getattr(checked, name) for name in SHARED_SETTINGS}
        for name, value in self.settings.items():
            setattr(self, name, value)
        self.item_ids = tuple(item_ids)
        self.titles = tuple(titles)
        self.user_ids = tuple(user_ids)
        self.dense_item = {raw: row + 1 for row, raw in enumerate(self.item_ids)}
        self.dense_user = {raw: row + 1 for row, raw in enumerate(self.user_ids)}
        self.evidence_scale = None if evidence_scale is None else [float(value) for value in evidence_scale]
        self.use_knowledge_graph(knowledge_graph)
        super().__init__(tokenizer)
        self._token_cache: dict[str | int, tuple[int, ...]] = {}
        self.letter_token_ids = self._find_letters()

    @classmethod
    def from_config(
        cls,
        config: LlamaRecLKGConfig,
        tokenizer: PreTrainedTokenizerBase,
        knowledge_graph: KnowledgeGraph,
        item_ids: Sequence[str],
        titles: Sequence[str],
        user_ids: Sequence[str] = (),
    ) -> LlamaRecLKGProcessor:
        """A processor with the configuration's prompt settings. Fills in the configuration what only the tokenizer
        knows."""
        settings = {name: getattr(config, name) for name in SHARED_SETTINGS}
        processor = cls(tokenizer, knowledge_graph, item_ids, titles, user_ids, **settings)
        config.letter_token_ids = list(processor.letter_token_ids)
        config.prior_input_ids = processor.empty_prompt_ids()
        config.catalogue, config.users = processor.catalogue, processor.users
        if not config.relations:
            config.relations = list(processor.relations)
        processor.check_model(config)
        return processor

    def model_config(self, **overrides: Any) -> LlamaRecLKGConfig:
        """A configuration that fits this processor; `overrides` set everything but the shared prompt settings."""
        return LlamaRecLKGConfig(
            **{
                "relations": list(self.relations),
                "num_users": len(self.user_ids),
                "letter_token_ids": list(self.letter_token_ids),
                "prior_input_ids": self.empty_prompt_ids(),
                "catalogue": self.catalogue,
                "users": self.users,
                **self.settings,
                **overrides,
            }
        )

    def check_model(self, config: LlamaRecLKGConfig) -> None:
        """Raise `LKGError` unless a model with this configuration was made for this graph, tokenizer and
        prompt."""
        if list(config.relations) != list(self.relations):
            raise LKGError(
                f"The model was made for the relations {config.relations}, the processor's graph has "
                f"{list(self.relations)}. Load model and processor from the same place, or train a new model for this "
                "graph."
            )
        if list(config.letter_token_ids) != list(self.letter_token_ids):
            raise LKGError(
                "The model reads other letter tokens than this processor's tokenizer writes. Load model and "
                "processor from the same place; a model is tied to its tokenizer."
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
                f"ids look like {list(self.item_ids[:3])}. Load model and processor from the same place. If the "
                "catalogue has changed on purpose, set `model.config.catalogue = None`."
            )
        differing = {n: (getattr(config, n), v) for n, v in self.settings.items() if getattr(config, n) != v}
        if differing:
            raise LKGError(f"Model and processor differ in their prompt settings; (model, processor): {differing}.")
        if config.prior_input_ids and list(config.prior_input_ids) != self.empty_prompt_ids():
            raise LKGError(
                "This processor's tokenizer writes the prompt in other tokens than those the model was trained with. "
                "Load model and processor from the same place; a model is tied to its tokenizer."
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

    def use_knowledge_graph(self, graph: KnowledgeGraph) -> None:
        """Put another graph in place, for example a shuffled one as a control. Its items and relations must be the
        same."""
        if "knowledge_graph" in self.__dict__ and graph.relations != self.relations:
            raise LKGError(
                f"The new graph has the relations {graph.relations}; this processor needs {self.relations}."
            )
        self.knowledge_graph = graph
        for name in ("evidence_index", "_path_graph"):
            self.__dict__.pop(name, None)

    def with_knowledge_graph(self, graph: KnowledgeGraph) -> LlamaRecLKGProcessor:
        """A processor that shares everything with this one but reads another graph with the same items and
        relations."""
        other = copy(self)
        other.use_knowledge_graph(graph)
        return other

    @cached_property
    def evidence_index(self) -> EvidenceIndex:
        index = EvidenceIndex.from_graph(self.knowledge_graph, self.user_ids, half_life=self.evidence_half_life)
        return index if self.evidence_scale is None else index.with_scale(self.evidence_scale)

    @cached_property
    def _path_graph(self) -> KnowledgeGraph:
        # through users run thousands of paths without a word to say; what they know is in the evidence along RATED
        return self.knowledge_graph.without_relations([RATED])

    def fit(self, examples: Sequence[RankingExample | Mapping[str, Any]]) -> LlamaRecLKGProcessor:
        """Set the scale of each relation's evidence to its standard deviation over the candidates of training
        examples."""
        index = self.evidence_index.with_scale(np.ones(len(self.relations)))
        rows = [
            index.evidence(example.history, example.candidates, example.user) for example in map(_as_example, examples)
        ]
        spread = np.concatenate(rows).std(axis=0) if rows else np.zeros(len(self.relations))
        self.set_evidence_scale(np.where(spread > 1e-6, spread, 1.0))
        return self

    def set_evidence_scale(self, scale: Sequence[float]) -> None:
        """What each relation's evidence is divided by, R positive numbers."""
        self.evidence_scale = [float(value) for value in scale]
        self.__dict__.pop("evidence_index", None)

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
        """A list to rank, from raw ids.

        A user that is not known is the average user: the history alone decides. An empty history gives no evidence and
        no paths; retriever and candidates' titles decide.

        Raises:
            LKGError: an item is not known, a candidate appears twice, there are fewer than two, or lengths differ.
        """
        history, candidates = raw_id_list("history", history), raw_id_list("candidates", candidates)
        dense = {"history": self.dense_items(history), "candidates": self.dense_items(candidates)}
        if label is not None and str(label) not in [str(raw) for raw in candidates]:
            raise LKGError(f"The label {label!r} is not among the candidates. Give the id of one of them.")
        example = RankingExample(
            user=self.user_index(user),
            history=dense["history"],
            ratings=np.asarray(np.ones(len(history)) if ratings is None else ratings, dtype=np.float32),
            candidates=dense["candidates"],
            retrieval_scores=np.asarray(
                np.zeros(len(candidates)) if retrieval_scores is None else retrieval_scores, dtype=np.float32
            ),
            label=-1 if label is None else [str(raw) for raw in candidates].index(str(label)),
        )
        self.check_example(example)
        return example

    def history_example(self, history: np.ndarray, user: str | None = None) -> RankingExample:
        """An example without candidates: enough for `history_features`. `history` holds dense items."""
        return RankingExample(
            user=self.user_index(user),
            history=history,
            ratings=np.ones(len(history), dtype=np.float32),
            candidates=np.zeros(0, dtype=np.int64),
            retrieval_scores=np.zeros(0, dtype=np.float32),
        )

    def known_history(self, user: str) -> np.ndarray:
        """Dense items that the graph says a user has rated, oldest first; empty where it does not say.

        Raises:
            LKGError: the user is not known.
        """
        if not self.user_ids:
            raise LKGError("This model was saved without its users. Give the history with --history or `history=`.")
        if str(user) not in self.dense_user:
            raise LKGError(
                f"User {user!r} is not one of the {len(self.user_ids):,} known users. Known ids look like "
                f"{list(self.user_ids[:3])}; for anybody else give the history."
            )
        return self.knowledge_graph.rated_items(str(user))

    def user_index(self, user: str | None) -> int:
        """Dense id of a raw user id; 0, the average user, where it is None or not known."""
        return UNKNOWN_USER if user is None else self.dense_user.get(str(user), UNKNOWN_USER)

    def dense_items(self, raw_ids: Sequence[str]) -> np.ndarray:
        """Dense ids of raw item ids; `LKGError` names those that are not known."""
        unknown = [raw for raw in raw_ids if str(raw) not in self.dense_item]
        if unknown:
            raise LKGError(
                f"{len(unknown)} item id(s) are not in the catalogue of {len(self.item_ids):,}, the first is "
                f"{unknown[0]!r}. Known ids look like {list(self.item_ids[:3])}; leave unknown items out of histories "
                "and candidates."
            )
        return np.array([self.dense_item[str(raw)] for raw in raw_ids], dtype=np.int64)

    def check_example(self, example: RankingExample) -> None:
        """Raise `LKGError` where an example cannot be ranked; the message says why."""
        candidates = example.candidates
        if not 2 <= len(candidates) <= self.num_candidates:
            raise LKGError(
                f"{len(candidates)} candidate(s) were given; one forward pass ranks 2 to {self.num_candidates}. A "
                "single candidate needs no ranking; rank longer lists through windows, or configure num_candidates "
                f"(at most {len(LETTERS)})."
            )
        if len(np.unique(candidates)) < len(candidates):
            values, counts = np.unique(candidates, return_counts=True)
            raise LKGError(
                f"Candidate {self._raw(values[counts.argmax()])!r} appears {counts.max()} times. Give each candidate "
                "once."
            )
        for name, items in (("history", example.history), ("candidates", candidates)):
            if len(items) and not 1 <= items.min() <= items.max() <= len(self.item_ids):
                raise LKGError(
                    f"The {name} holds dense item {int(items.min() if items.min() < 1 else items.max())}; this "
                    f"catalogue has items 1 to {len(self.item_ids)}. Were the examples made from another data set?"
                )
        if len(example.retrieval_scores) != len(candidates) or not np.isfinite(example.retrieval_scores).all():
            raise LKGError(
                f"{len(example.retrieval_scores)} retrieval scores for {len(candidates)} candidates, all of which "
                "must be numbers. Give one finite score a candidate, or none at all."
            )
        if not -1 <= example.label < len(candidates) or example.user < 0:
            raise LKGError(
                f"The example has label {example.label} and user {example.user}; a label is the index of one of its "
                f"{len(candidates)} candidates or -1, a user is 0 or a dense id."
            )
        if len(example.ratings) != len(example.history):
            raise LKGError(f"{len(example.ratings)} ratings were given for a history of {len(example.history)} items.")

    def _raw(self, item: int) -> str:
        return self.item_ids[item - 1] if 1 <= item <= len(self.item_ids) else f"#{item}"

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
            examples: one or more lists to rank.
            pad_to_candidates: width C of the batch, by default that of the longest list.
            with_prompt: False leaves the text parts out, for models with `use_language_model=False`.

        Raises:
            LKGError: an example cannot be ranked, or `max_length` is too small for its candidates alone.
        """
        examples = [_as_example(example) for example in examples]
        for example in examples:
            self.check_example(example)
        index = self.evidence_index
        count = pad_to_candidates or max(len(example.candidates) for example in examples)
        batch: dict[str, Any] = {
            "evidence": np.zeros((len(examples), count, len(self.relations)), dtype=np.float32),
            "retrieval_scores": np.zeros((len(examples), count), dtype=np.float32),
            "candidate_mask": np.zeros((len(examples), count), dtype=bool),
            "user_ids": np.array([example.user for example in examples], dtype=np.int64),
            "history_relations": np.stack([self.history_features(example) for example in examples]),
            "labels": np.array([example.label for example in examples], dtype=np.int64),
        }
        for row, example in enumerate(examples):
            size = len(example.candidates)
            batch["evidence"][row, :size] = index.evidence(example.history, example.candidates, example.user)
            batch["retrieval_scores"][row, :size] = example.retrieval_scores
            batch["candidate_mask"][row, :size] = True
        batch = {name: torch.from_numpy(value) for name, value in batch.items()}
        if with_prompt:
            batch |= self._prompt_parts(examples)
        return BatchFeature(batch)

    def history_features(self, example: RankingExample) -> np.ndarray:
        """`history_relations` of one example, shape (R, S); see `evidence.STATISTICS`."""
        return self.evidence_index.history_statistics(example.history, example.user)

    def _prompt_parts(self, examples: Sequence[RankingExample]) -> dict[str, torch.Tensor]:
        prefixes, suffixes, path_ids, path_weights, path_sources = [], [], [], [], []
        for example in examples:
            suffixes.append(self._join(self.suffix_pieces(example)))
            prefixes.append(self._join(self.prefix_pieces(example, room=self.max_length - len(suffixes[-1]))))
            found, weights = self.candidate_paths(example)
            path_ids.append([self._join(self.path_pieces(example, found, row)) for row in range(len(found))])
            path_weights.append(weights)
            path_sources.append(found.source_index)
        num_paths, longest = (
            max(1, *map(len, path_ids)),
            max((len(ids) for rows in path_ids for ids in rows), default=1),
        )
        paths_input_ids = np.zeros((len(examples), num_paths, longest), dtype=np.int64)
        paths_mask = np.zeros_like(paths_input_ids)
        weights = np.zeros((len(examples), num_paths, len(self.relations)), dtype=np.float32)
        sources = np.full((len(examples), num_paths), -1, dtype=np.int64)
        for row, rows in enumerate(path_ids):
            for column, ids in enumerate(rows):
                paths_input_ids[row, column, : len(ids)] = ids
                paths_mask[row, column, : len(ids)] = 1
            weights[row, : len(rows)] = path_weights[row]
            sources[row, : len(rows)] = path_sources[row]
        prefix_ids, prefix_mask = _pad(prefixes, left=True)
        suffix_ids, suffix_mask = _pad(suffixes, left=False)
        return {
            "prefix_input_ids": prefix_ids,
            "prefix_attention_mask": prefix_mask,
            "path_input_ids": torch.from_numpy(paths_input_ids),
            "path_attention_mask": torch.from_numpy(paths_mask),
            "path_relation_weights": torch.from_numpy(weights),
            "path_sources": torch.from_numpy(sources),
            "suffix_input_ids": suffix_ids,
            "suffix_attention_mask": suffix_mask,
        }

    def candidate_paths(self, example: RankingExample) -> tuple[paths.Paths, np.ndarray]:
        """Paths from the shown history to the candidates that some preferences could select, with their (P, R)
        weights."""
        shown, candidates = self._shown(example), example.candidates
        found = paths.find(self._path_graph, shown, candidates if self.num_paths else [])
        if self.path_weighting == "evidence":
            weights = self.evidence_index.path_weights(
                found, example.history[len(example.history) - len(shown) :], candidates
            )
            carrying = np.flatnonzero(weights.any(axis=1))
            found, weights = found.take(carrying), weights[carrying]
        else:
            weights = paths.tfidf(found, len(self.relations))
        sources = found.source_index if self.one_path_per_history_item else None
        kept = paths.keep_selectable(weights, self.num_paths, sources)
        return found.take(kept), weights[kept]

    def _shown(self, example: RankingExample) -> np.ndarray:
        return example.history[-self.history_length :] if self.history_length else example.history[:0]

    # -- text -------------------------------------------------------------------------------------------------------

    def prefix_pieces(self, example: RankingExample, room: int | None = None) -> list[str | int]:
        """Instruction and history. Text pieces are tokenized; an `int` stands for the title of that dense item.

        With `room` (tokens), the oldest items of the history are left out until the rest fits.
        """
        head: list[str | int] = [f"{INSTRUCTION}\n### History:\n"]
        tail: list[str | int] = ["### Paths:\n"] if self.num_paths else []
        lines: list[list[str | int]] = []
        for item, rating in zip(
            self._shown(example), example.ratings[len(example.ratings) - len(self._shown(example)) :], strict=True
        ):
            if self.path_style == "published":
                lines.append(["The user rated the", int(item), f" {rating:.1f} stars.\n"])
            else:
                lines.append([int(item), "\n"])
        if room is not None:
            room -= len(self._join([*head, *tail]))
            lengths = [len(self._join(line)) for line in lines]
            while lines and sum(lengths) > room:
                lines, lengths = lines[1:], lengths[1:]
            if room < 0:
                raise LKGError(
                    f"max_length is {self.max_length} tokens, but instruction and candidates alone need {-room} more. "
                    "Raise max_length, shorten titles (max_title_tokens), or rank fewer candidates at a time."
                )
        return [*head, *(piece for line in lines for piece in line), *tail]

    def suffix_pieces(self, example: RankingExample) -> list[str | int]:
        """Candidates behind their letters, and the response cue."""
        pieces: list[str | int] = ["### Candidates:\n"]
        for letter, item in zip(LETTERS, example.candidates.tolist(), strict=False):
            pieces += [f"({letter})", item, "\n"]
        return [*pieces, RESPONSE_CUE]

    def path_pieces(self, example: RankingExample, found: paths.Paths, row: int) -> list[str | int]:
        """One path as text, from an item of the history to the letter of a candidate."""
        source = int(self._shown(example)[found.source_index[row]])
        letter = LETTERS[found.target_index[row]]
        if self.path_style == "published":
            length = int(found.lengths[row])
            names = [sanitize(str(self.knowledge_graph.node_names[node])) for node in found.nodes[row, 1:length]]
            relations = [sanitize(self.relations[code // 2]) for code in found.edge_codes[row, :length]]
            steps = [step for pair in zip(relations, [*names, ""], strict=True) for step in pair if step]
            target = int(example.candidates[found.target_index[row]])
            return [source, f" -> {' -> '.join(steps)} -> ({letter})", target, " \n "]
        return [source, f"{self._steps(found, row)} -> ({letter})\n"]

    def _steps(self, found: paths.Paths, row: int) -> str:
        """Relations and entities between the ends of a path; a relation that leads there and back is named once."""
        length = int(found.lengths[row])
        text, previous = "", None
        for hop in range(length):
            relation = sanitize(self.relations[found.edge_codes[row, hop] // 2])
            text += "" if relation == previous else f" -> {relation}"
            if hop + 1 < length:
                name = sanitize(str(self.knowledge_graph.node_names[found.nodes[row, hop + 1]]))
                text += f" {name}" if name else ""
            previous = relation
        return text

    def piece_text(self, piece: str | int) -> str:
        """The text of a piece; a title is shortened to `max_title_tokens`."""
        return piece if isinstance(piece, str) else self.tokenizer.decode(self._ids(piece))

    def render(self, example: RankingExample, selected: Sequence[int] | None = None) -> list[str]:
        """The prompt's pieces as text, with the `selected` of its candidate paths (all by default)."""
        found, _ = self.candidate_paths(example)
        rows = range(len(found)) if selected is None else [row for row in selected if row >= 0]
        suffix = self.suffix_pieces(example)
        pieces = self.prefix_pieces(example, room=self.max_length - len(self._join(suffix)))
        pieces += [piece for row in rows for piece in self.path_pieces(example, found, row)]
        texts = [self.piece_text(piece) for piece in [*pieces, *suffix]]
        return [self.tokenizer.bos_token, *texts] if self._bos() else texts

    def empty_prompt_ids(self) -> list[int]:
        """The prompt without a history, paths or titles: what the letters alone make of themselves."""
        pieces = [f"{INSTRUCTION}\n### History:\n", "### Paths:\n" if self.num_paths else "", "### Candidates:\n"]
        pieces += [piece for letter in LETTERS[: self.num_candidates] for piece in (f"({letter})", "\n")]
        return self._bos() + [token for piece in [*pieces, RESPONSE_CUE] for token in self._ids(piece)]

    def _join(self, pieces: Sequence[str | int]) -> list[int]:
        start = self._bos() if pieces and isinstance(pieces[0], str) and pieces[0].startswith(INSTRUCTION) else []
        return start + [token for piece in pieces for token in self._ids(piece)]

    def _ids(self, piece: str | int) -> tuple[int, ...]:
        """Tokens of a piece, each made once. Text that looks like a special token is text."""
        ids = self._token_cache.get(piece)
        if ids is None:
            text = piece if isinstance(piece, str) else f" {sanitize(self.titles[piece - 1])}"
            ids = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
            ids = tuple(ids if isinstance(piece, str) else ids[: self.max_title_tokens])
            if len(self._token_cache) < TOKEN_CACHE_SIZE:
                self._token_cache[piece] = ids
        return ids

    def _bos(self) -> list[int]:
        """The beginning-of-sequence token where this tokenizer sets one by itself."""
        bos = self.tokenizer.bos_token_id
        return [bos] if bos is not None and self.tokenizer("x")["input_ids"][:1] == [bos] else []

    def _find_letters(self) -> list[int]:
        cue = self._ids(RESPONSE_CUE)
        letters = []
        for letter in LETTERS[: self.num_candidates]:
            ids = self._ids(RESPONSE_CUE + letter)
            if ids[: len(cue)] != cue or len(ids) != len(cue) + 1:
                raise LKGError(
                    f"This tokenizer writes the response cue followed by {letter!r} as {list(ids)}, not as the cue's "
                    f"tokens {list(cue)} and one more. The verbalizer needs one token a letter: use another backbone, "
                    "or fewer candidates."
                )
            letters.append(ids[-1])
        if len(set(letters)) < len(letters):
            raise LKGError(
                "This tokenizer writes two letters as the same token, so their scores cannot be told apart."
            )
        return letters

    # -- keeping it -------------------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """What `processor_config.json` holds; graph and titles have files of their own."""
        return {
            "processor_class": type(self).__name__,
            "settings": self.settings,
            "evidence_scale": self.evidence_scale,
            "relations": list(self.relations),
            "auto_map": PROCESSOR_MAP,
        }

    def save_pretrained(self, save_directory: str | Path, push_to_hub: bool = False, **kwargs: Any) -> list[str]:
        """Write the tokenizer, `processor_config.json`, `items.parquet`, `users.parquet` and the graph in its
        folder; and, where there are people in them, a `.gitignore` or a warning (`home_file.stays_home`).

        With `push_to_hub=True` it is then pushed, to `repo_id` or the folder's name; unknown arguments then raise.
        """
        options = PushOptions.take(kwargs, strict=push_to_hub)
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        write_shim(folder)
        self.tokenizer.save_pretrained(folder)
        with atomic_file(folder / "items.parquet") as temporary:
            pd.DataFrame({ITEM_ID: list(self.item_ids), TITLE: list(self.titles)}).to_parquet(temporary)
        if self.user_ids:
            ignore_private(folder)
            with atomic_file(folder / USERS_FILE) as temporary:
                pd.DataFrame({USER_ID: list(self.user_ids)}).astype(str).to_parquet(temporary)
        self.knowledge_graph.save_pretrained(folder / GRAPH_FOLDER)
        write_json(folder / PROCESSOR_FILE, self.to_dict())  # last: with it the folder is a processor
        if push_to_hub:
            push_folder(folder, kwargs.get("repo_id", folder.name), parts=(self.hub_part,), options=options)
        return sorted(str(path) for path in folder.iterdir())

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> LlamaRecLKGProcessor:
        """Load what `save_pretrained` wrote, from a folder or from the Hub.

        Raises:
            LKGError: a file is damaged, or the files do not fit each other.
            OSError: a file is absent.
        """
        name = str(pretrained_model_name_or_path)
        hub = pinned(name, hub_options(kwargs))
        description = read_json(fetch(name, PROCESSOR_FILE, **hub))
        graph_files = [fetch(name, f"{GRAPH_FOLDER}/{file}", **hub) for file in GRAPH_FILES]
        try:
            items = pd.read_parquet(fetch(name, "items.parquet", **hub))
            users = fetch(name, USERS_FILE, optional=True, **hub)
            users = pd.DataFrame({USER_ID: []}) if users is None else pd.read_parquet(users)
        except LKGError:
            raise
        except ValueError as error:
            raise LKGError(
                f"items.parquet or users.parquet in {name} is damaged ({error}). Save or download it again."
            ) from error
        graph = KnowledgeGraph.from_pretrained(Path(graph_files[0]).parent)
        check_graph(name, description["relations"], graph, tuple(items[ITEM_ID]))
        return cls(
            AutoTokenizer.from_pretrained(name, **hub),
            graph,
            tuple(items[ITEM_ID]),
            tuple(items[TITLE]),
            tuple(users[USER_ID]),
            evidence_scale=description["evidence_scale"],
            **description["settings"],
        )


TOKEN_CACHE_SIZE = 200_000


RESPONSE_CUE = "### Response:\n"


def _as_example(example: RankingExample | Mapping[str, Any]) -> RankingExample:
    return example if isinstance(example, RankingExample) else RankingExample.from_mapping(example)


def _pad(rows: Sequence[Sequence[int]], *, left: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Token lists -> ids and mask of `long`, (B, longest); padding is id 0 under mask 0."""
    ids = np.zeros((len(rows), max(1, *map(len, rows))), dtype=np.int64)
    mask = np.zeros_like(ids)
    for row, tokens in enumerate(rows):
        part = slice(ids.shape[1] - len(tokens), None) if left else slice(0, len(tokens))
        ids[row, part], mask[row, part] = tokens, 1
    return torch.from_numpy(ids), torch.from_numpy(mask)


AutoProcessor.register(LlamaRecLKGConfig, LlamaRecLKGProcessor, exist_ok=True)
