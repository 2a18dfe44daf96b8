"""What every neural retriever has: item vectors that enter a history and score the next item, their loss, and the
border behind which any of them is a `Retriever`. A model brings `encode_packed`, and `model_type` in its
configuration.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from ..data.schema import PADDING_ITEM
from ..hub.layout import CONFIG_FILE, RETRIEVER_FOLDER
from ..utils.errors import LKGError
from ..utils.files import read_json
from ..utils.fingerprints import catalogue_fingerprint
from ..utils.hub import fetch
from .base import pad_left
from .configuration_sequential import SequentialRetrieverConfig
from .cross_entropy import catalogue_cross_entropy, sampled_cross_entropy
from .item_features import ItemFeatures
from .item_vectors import ItemContent
from .text_vectors import TextProjection, text_states, with_padding_row


@dataclass
class RetrievalOutput(ModelOutput):
    """
    Args:
        loss (`torch.Tensor`, shape (), optional): mean cross-entropy over all items and labelled positions.
        logits (`torch.Tensor`, shape (B, num_items + 1), optional): scores of all items after the last position; the
            column of the padding item is -inf.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None


class SequentialRetrieverModel(PreTrainedModel):
    """Scores all items for a left-padded history of dense item ids.

    An item's vector is share x id vector + projection of its text + mean of its entities' vectors, and its bias is
    share x bias; what an item lacks is left out. The share is 1 for items known by their ids alone; else it grows with
    how often the item was trained on, and is 0 for one that never was.
    """

    config: SequentialRetrieverConfig
    main_input_name = "item_ids"
    accepts_loss_kwargs = False

    def __init__(self, config: SequentialRetrieverConfig):
        super().__init__(config)
        self.item_embedding = nn.Embedding(config.num_items + 1, config.hidden_size, padding_idx=PADDING_ITEM)
        self.item_bias = nn.Parameter(torch.zeros(config.num_items + 1))
        self.item_content = ItemContent(config) if config.text_size or config.num_entities else None
        self.register_buffer("id_share", None if self.item_content is None else torch.ones(config.num_items + 1))

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        std = self.config.initializer_range
        if isinstance(module, ItemContent):
            module.reset(std)
        elif isinstance(module, nn.Linear | nn.Embedding):
            nn.init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
            if isinstance(module, nn.Embedding):
                module.weight[PADDING_ITEM].zero_()
            elif module.bias is not None:
                module.bias.zero_()
        elif isinstance(module, nn.LayerNorm):
            module.weight.fill_(1.0)
            module.bias.zero_()
        elif isinstance(module, SequentialRetrieverModel):
            module.item_bias.zero_()

    def get_input_embeddings(self) -> nn.Module:
        return self.item_embedding

    def item_vectors(self) -> torch.Tensor:
        """Vectors of all items, shape (num_items + 1, D): a product over the whole catalogue where items have text, so
        it is made once for a step, or for all histories that are scored together."""
        vectors = self.item_embedding.weight
        if self.id_share is not None:
            vectors = vectors * self.id_share[:, None].to(vectors.dtype)
        return vectors if self.item_content is None else vectors + self.item_content()

    def encode(self, item_ids: torch.Tensor, item_vectors: torch.Tensor | None = None) -> torch.Tensor:
        """(B, L) dense items, left-padded with 0 -> states (B, L, D)."""
        item_vectors = self.item_vectors() if item_vectors is None else item_vectors
        mask = item_ids != PADDING_ITEM
        states = self._states(item_ids, mask, item_vectors)
        hidden = states.new_zeros(*mask.shape, states.shape[-1])
        hidden[mask] = states
        return hidden

    def last_states(self, item_ids: torch.Tensor, item_vectors: torch.Tensor) -> torch.Tensor:
        """States (B, D) at the end of histories (B, L), 0 of an empty one."""
        mask = item_ids != PADDING_ITEM
        states, ends = self._states(item_ids, mask, item_vectors), mask.sum(dim=1).cumsum(0) - 1
        last = states.new_zeros(len(mask), states.shape[-1])
        some = mask.any(dim=1)
        last[some] = states[ends[some]]
        return last

    def encode_packed(self, vectors: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
        """Item vectors (N, D) of histories of `lengths`, one after the other, oldest item first -> states (N, D), each
        of which has seen what comes before it in its history, and its own item."""
        raise NotImplementedError

    def _states(self, item_ids: torch.Tensor, mask: torch.Tensor, item_vectors: torch.Tensor) -> torch.Tensor:
        """States (N, D) of the N places where `mask` (B, L) is true, in its order: of padding nothing is computed."""
        return self.encode_packed(F.embedding(item_ids[mask], item_vectors), mask.sum(dim=1).tolist())

    def forward(
        self,
        item_ids: torch.Tensor,
        labels: torch.Tensor | None = None,
        item_vectors: torch.Tensor | None = None,
        sample: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> RetrievalOutput:
        """
        Args:
            item_ids (`torch.Tensor` of `long`, shape (B, L)): dense items, oldest first, left-padded with 0.
            labels (`torch.Tensor` of `long`, shape (B, L), optional): the next item at each position, 0 where there
                is none.
            item_vectors (`torch.Tensor`, shape (num_items + 1, D), optional): `item_vectors()`, where it is known.
            sample (`torch.Tensor` of `long` and of `float32`, each of shape (S,), optional): items, each once, that
                stand for the whole catalogue in the loss, and the logarithm of how many items each stands for.

        Returns:
            [`RetrievalOutput`] with the loss when labels are given, else with the scores after the last position.
        """
        item_vectors = self.item_vectors() if item_vectors is None else item_vectors
        bias = self.bias()
        if labels is None:
            last = self.last_states(item_ids, item_vectors)
            return RetrievalOutput(logits=F.linear(last, item_vectors, bias.to(last.dtype)).float())
        if self.training and self.id_share is not None:
            # what nobody could choose, nobody refused: it is no negative
            bias = bias.masked_fill(self.id_share == 0, -torch.inf)
        mask = item_ids != PADDING_ITEM
        labels = labels[mask]
        labelled = labels != PADDING_ITEM
        labels = labels[labelled]
        if sample is None:
            states = self._states(item_ids, mask, item_vectors)
            states = states if len(labels) == len(states) else states[labelled]  # the gradient of a choice is slow
            return RetrievalOutput(loss=catalogue_cross_entropy(states, item_vectors, bias, labels))
        sampled, stands_for = sample
        # looked up together: the gradient of each look-up is a table as large as the catalogue's
        parts = item_ids[mask], labels, sampled
        vectors = F.embedding(torch.cat(parts), item_vectors).split([len(part) for part in parts])
        states, biases = self.encode_packed(vectors[0], mask.sum(dim=1).tolist())[labelled], bias[torch.cat(parts[1:])]
        own = (states * vectors[1]).sum(dim=-1) + biases[: len(labels)]
        order = sampled.argsort()
        near = torch.searchsorted(sampled[order], labels).clamp(max=len(sampled) - 1)
        hits = order[near].masked_fill(sampled[order][near] != labels, -1)
        return RetrievalOutput(
            loss=sampled_cross_entropy(states, vectors[2], biases[len(labels) :] + stands_for, own, hits)
        )

    def bias(self) -> torch.Tensor:
        """Bias of all items, -inf for padding."""
        bias = self.item_bias if self.id_share is None else self.item_bias * self.id_share.to(self.item_bias.dtype)
        return bias.masked_fill(torch.arange(len(bias), device=bias.device) == PADDING_ITEM, -torch.inf)

    @torch.no_grad()
    def load_features(self, features: ItemFeatures, trained_on: np.ndarray) -> None:
        """Take in what is known of the items: features of the sizes that the configuration names, and which of them
        (`bool`, shape (num_items + 1,)) anybody took. Of the others nothing is learned, so they have no id vector and
        no bias."""
        self.item_content.load_features(features)
        self.id_share.copy_(torch.from_numpy(trained_on))

    @torch.no_grad()
    def with_items(self, features: ItemFeatures) -> SequentialRetrieverModel:
        """A copy that knows further items, counted on from `num_items`, by their features alone: id vectors and biases
        are 0. Nothing is trained. `config.catalogue` is None.

        Raises:
            LKGError: items are known by id alone here, or the features do not fit.
        """
        self._check_new(features)
        offsets, indices = features.entities or (np.zeros(features.num_items + 2, dtype=np.int64), np.empty(0))
        config = copy.deepcopy(self.config)
        config.num_trained_items = config.num_trained_items or config.num_items
        config.num_items += features.num_items
        config.num_entity_links += len(indices)
        config.catalogue = None
        added = {"item_embedding.weight": torch.zeros(features.num_items, config.hidden_size)}
        added |= {name: torch.zeros(features.num_items) for name in ("item_bias", "id_share")}
        if config.text_size:
            added["item_content.text"] = torch.from_numpy(features.text[1:])
        state = self.state_dict()
        if config.num_entities:
            added["item_content.entity_indices"] = torch.from_numpy(indices)
            added["item_content.entity_offsets"] = state["item_content.entity_offsets"][-1].cpu() + torch.from_numpy(
                offsets[2:]
            )
        state |= {name: torch.cat([state[name], rows.to(state[name])]) for name, rows in added.items()}
        model = type(self)(config).to(device=self.device, dtype=self.dtype)
        model.load_state_dict(state)
        return model.train(self.training)

    def _check_new(self, features: ItemFeatures) -> None:
        config = self.config
        if self.item_content is None:
            raise LKGError(
                "The retriever knows items by their ids alone, so that it cannot score a new one. Train it with "
                "item_vectors='text', 'entities' or 'text+entities'."
            )
        text_size = 0 if features.text is None else features.text.shape[1]
        if text_size != config.text_size:
            raise LKGError(
                f"The new items have text vectors of width {text_size}, the retriever's items {config.text_size}. "
                "Make them with its own projection (`NeuralRetriever.read_items`)."
            )
        largest = -1 if features.entities is None else int(features.entities[1].max(initial=-1))
        if largest >= config.num_entities:
            raise LKGError(
                f"A new item has entity {largest}, the retriever knows {config.num_entities} entities, counted from "
                "0. Leave out those it was not trained with."
            )


class NeuralRetriever:
    """A neural model behind the `Retriever` border: padding, batching and device are its business."""

    def __init__(self, model: SequentialRetrieverModel, batch_size: int = 128):
        self.model = model
        self.batch_size = batch_size
        self.num_items = model.config.num_items
        self._vectors: torch.Tensor | None = None  # of a frozen one

    @classmethod
    def from_pretrained(cls, name: str, **hub: Any) -> NeuralRetriever:
        """The retriever of a folder or repository whose `config.json` is its own; `hub` as for `utils.hub.fetch`.

        Raises:
            LKGError: what is there is no retriever.
        """
        from transformers import CONFIG_MAPPING, MODEL_MAPPING

        model_type = read_json(fetch(name, CONFIG_FILE, **hub)).get("model_type")
        config_class = CONFIG_MAPPING[model_type] if model_type in CONFIG_MAPPING else type(None)
        if not issubclass(config_class, SequentialRetrieverConfig):
            raise LKGError(
                f"{name} holds a model of type {model_type!r}, which is no retriever of this library. Give the folder "
                "that a retriever was saved in."
            )
        return cls(MODEL_MAPPING[config_class].from_pretrained(name, **hub))

    @classmethod
    def from_repository(cls, name: str, hub: dict[str, Any]) -> NeuralRetriever | None:
        """The retriever of a saved folder or repository, where it holds one; `hub` as for `utils.hub.fetch`."""
        if fetch(name, f"{RETRIEVER_FOLDER}/{CONFIG_FILE}", optional=True, **hub) is None:
            return None
        place = {**hub, "subfolder": "/".join(filter(None, (hub.get("subfolder"), RETRIEVER_FOLDER)))}
        return cls.from_pretrained(name, **place)

    @property
    def catalogue(self) -> str | None:
        """Fingerprint of the items it was trained to find, where it is known."""
        return self.model.config.catalogue

    def read_items(
        self,
        texts: Sequence[str],
        backbone: str | Path | tuple[Any, Any],
        entities: tuple[np.ndarray, np.ndarray] | None = None,
        *,
        progress: bool = True,
    ) -> ItemFeatures:
        """Features of new items for [`add_items`], their texts read as those of the trained items were.

        Args:
            texts: one an item, as [`~item_features.item_texts`] writes them.
            backbone: the language model `model.config.text_backbone`, as for [`~text_vectors.text_states`].
            entities: of the new items, as in [`~item_features.ItemFeatures`], counted as in training.

        Raises:
            LKGError: how the trained items' texts were read is not known, or the backbone is another one.
        """
        config = self.model.config
        if not config.text_state_size:
            raise LKGError(
                "The retriever was trained on text vectors without their projection. Make those of new items as they "
                "were made, and give `ItemFeatures(text=...)`; or train with `item_features('text', ...)`."
            )
        content = self.model.item_content
        arrays = (content.text_mean, content.text_directions)
        mean, directions = (array.float().cpu().numpy() for array in arrays)
        projection = TextProjection(mean, directions, config.text_layers, config.text_backbone)
        states = text_states(texts, backbone, layers=projection.layers, progress=progress)
        if states.shape[1] != len(mean):
            raise LKGError(
                f"The backbone's states are {states.shape[1]} wide, those the retriever was trained on {len(mean)}. "
                f"Give {config.text_backbone or 'the backbone that read the trained items'}."
            )
        return ItemFeatures(with_padding_row(projection(states)), entities, projection)

    def add_items(self, features: ItemFeatures, item_ids: Sequence[str] | None = None) -> NeuralRetriever:
        """A retriever that finds further items, too, without training; see [`SequentialRetrieverModel.with_items`].

        Args:
            features: of the new items, which are counted on from `num_items`; row 0 is padding.
            item_ids: raw ids of all items, the old ones first, for `catalogue`.
        """
        model = self.model.with_items(features)
        model.config.catalogue = None if item_ids is None else catalogue_fingerprint(item_ids)
        return NeuralRetriever(model, self.batch_size)

    def frozen(self) -> NeuralRetriever:
        """The retriever with the vectors of all items as they are now: for many calls of `score` in between which
        nothing is trained."""
        retriever = copy.copy(self)
        with torch.inference_mode():
            retriever._vectors = self.model.item_vectors()
        return retriever

    @torch.inference_mode()
    def states(self, histories: Sequence[np.ndarray]) -> torch.Tensor:
        """States at the end of B histories, (B, D), whose products with item vectors, plus biases, are scores."""
        training = self.model.training
        self.model.eval()
        vectors = self.model.item_vectors() if self._vectors is None else self._vectors
        states = vectors.new_zeros(len(histories), vectors.shape[-1])
        order = np.argsort([len(history) for history in histories], kind="stable")  # alike in length, alike in time
        for start in range(0, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            batch = pad_left([histories[row] for row in rows], self.model.config.max_length).to(self.model.device)
            states[torch.from_numpy(rows)] = self.model.last_states(batch, vectors)
        self.model.train(training)
        return states

    @torch.inference_mode()
    def score(self, histories: Sequence[np.ndarray]) -> np.ndarray:
        vectors = self.model.item_vectors() if self._vectors is None else self._vectors
        states = self.states(histories)
        return torch.addmm(self.model.bias().to(states.dtype), states, vectors.T).float().cpu().numpy()
