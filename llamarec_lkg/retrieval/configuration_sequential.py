"""What the configurations of all neural retrievers share: the catalogue, and what an item's vector is made of."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig

from ..utils.errors import LKGError


class SequentialRetrieverConfig(PreTrainedConfig):
    """Sizes of a model that reads a history of items and scores all items by their vectors.

    Args:
        num_items: dense items, without padding.
        num_trained_items: the first of them, that it was trained on; others were added later. None is all.
        hidden_size: width of item vectors.
        max_length: how much history is read; older items are cut off.
        text_size: width of the items' text vectors; 0 where there are none.
        text_scale: of the projected text. The projection starts the smaller the larger this is, so that it changes
            only how fast the text is learned.
        num_entities, num_entity_links: entities that items share, and how often an item has one; 0 where there are
            none.
        text_backbone, text_layers, text_state_size: what the text was read with, see [`~text_vectors.TextProjection`];
            a size of 0 where that is not known.
        catalogue: [`~utils.fingerprints.catalogue_fingerprint`] of the items it was trained to find; None is not
            compared with anything.
    """

    num_items: int = 1
    num_trained_items: int | None = None
    hidden_size: int = 64
    num_hidden_layers: int = 2
    hidden_dropout_prob: float = 0.2
    max_length: int = 200
    initializer_range: float = 0.02
    text_size: int = 0
    text_scale: float = 0.3
    num_entities: int = 0
    num_entity_links: int = 0
    text_backbone: str | None = None
    text_layers: int = 0
    text_state_size: int = 0
    catalogue: str | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        dropout, length = self.hidden_dropout_prob, self.max_length
        if not (isinstance(dropout, int | float) and 0 <= dropout < 1):
            raise LKGError(f"hidden_dropout_prob is {dropout!r}; it is from 0 to less than 1.")
        if not (isinstance(length, int) and length > 0):
            raise LKGError(f"max_length is {length!r}; it is a whole number from 1 on.")
