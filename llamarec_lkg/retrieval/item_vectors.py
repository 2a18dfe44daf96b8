"""The part of an item's vector that does not depend on who took it: projected text and entities."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from .configuration_sequential import SequentialRetrieverConfig
from .item_features import ItemFeatures


class ItemContent(nn.Module):
    """Projection of an item's text plus the mean of its entities' vectors, each where the configuration has it.

    Features are buffers: they do not learn, and are saved with the weights.
    """

    def __init__(self, config: SequentialRetrieverConfig):
        super().__init__()
        rows, size = config.num_items + 1, config.hidden_size
        self.text_scale = config.text_scale
        self.text_projection = self.entity_embedding = None
        if config.text_size:
            self.register_buffer("text", torch.zeros(rows, config.text_size))
            self.text_projection = nn.Linear(config.text_size, size, bias=False)
        if config.text_state_size:
            self.register_buffer("text_mean", torch.zeros(config.text_state_size))
            self.register_buffer("text_directions", torch.zeros(config.text_state_size, config.text_size))
        if config.num_entities:
            self.register_buffer("entity_offsets", torch.zeros(rows + 1, dtype=torch.long))
            self.register_buffer("entity_indices", torch.zeros(config.num_entity_links, dtype=torch.long))
            self.entity_embedding = nn.Embedding(config.num_entities, size)

    def forward(self) -> torch.Tensor:
        """Vectors of all items, shape (num_items + 1, D); zeros for padding."""
        parts = []
        if self.text_projection is not None:
            parts.append(self.text_scale * self.text_projection(self.text))
        if self.entity_embedding is not None:
            weight, offsets = self.entity_embedding.weight, self.entity_offsets
            parts.append(F.embedding_bag(self.entity_indices, weight, offsets, mode="mean", include_last_offset=True))
        return sum(parts)

    def reset(self, std: float) -> None:
        """Vectors start with the spread of id vectors, whatever the width of the text."""
        if self.text_projection is not None:
            spread = self.text_scale * self.text_projection.in_features**0.5
            nn.init.normal_(self.text_projection.weight, std=std / spread)
        if self.entity_embedding is not None:
            nn.init.normal_(self.entity_embedding.weight, std=std)

    @torch.no_grad()
    def load_features(self, features: ItemFeatures) -> None:
        """Take the features in; their sizes are those of the configuration ([`feature_sizes`])."""
        if features.text is not None:
            self.text.copy_(torch.from_numpy(features.text))
        if features.projection is not None:
            self.text_mean.copy_(torch.from_numpy(features.projection.mean))
            self.text_directions.copy_(torch.from_numpy(features.projection.directions))
        if features.entities is not None:
            offsets, indices = (torch.from_numpy(np.asarray(array, dtype=np.int64)) for array in features.entities)
            self.entity_offsets.copy_(offsets)
            self.entity_indices.copy_(indices)


def feature_sizes(features: ItemFeatures | None) -> dict[str, int | str | None]:
    """What the configuration of a retriever says of its items' features."""
    sizes: dict[str, int | str | None] = {}
    if features is not None and features.text is not None:
        sizes["text_size"] = features.text.shape[1]
        if (projection := features.projection) is not None:
            sizes["text_state_size"], sizes["text_layers"] = len(projection.mean), projection.layers
            sizes["text_backbone"] = projection.backbone
    if features is not None and features.entities is not None and len(features.entities[1]):
        sizes["num_entities"] = int(features.entities[1].max()) + 1
        sizes["num_entity_links"] = len(features.entities[1])
    return sizes
