"""Items that a retriever has not been trained on."""

from __future__ import annotations

from pathlib import Path

from ..data.schema import ItemTable
from ..ranking.backbones import resolve_backbone
from ..ranking.processing_llamarec_lkg import LlamaRecLKGProcessor
from ..retrieval.base import Retriever
from ..retrieval.item_features import ItemFeatures, item_texts, new_entities
from ..retrieval.sequential import NeuralRetriever
from ..utils.errors import LKGError


def with_items(
    retriever: Retriever,
    items: ItemTable,
    before: LlamaRecLKGProcessor,
    after: LlamaRecLKGProcessor,
    text_backbone: str | Path | None,
) -> Retriever:
    """A retriever that finds the further items that a processor knows afterwards, too.

    Raises:
        LKGError: it knows items by their ids alone, or the language model that reads texts for it has no name.
    """
    config = retriever.model.config if isinstance(retriever, NeuralRetriever) else None
    if config is None or not (config.text_size or config.num_entities):
        raise LKGError(
            "This retriever knows items by their ids alone, so it cannot find one that it has not been trained on. "
            "Train one whose item vectors know more (`retriever.item_vectors=text`), or use none."
        )
    entities = None
    if config.num_entities:
        entities = new_entities(before.knowledge_graph, after.knowledge_graph, config.num_trained_items)
    features = ItemFeatures(None, entities)
    if config.text_size:
        name = text_backbone or config.text_backbone
        if name is None:
            raise LKGError(
                "The language model that read the items' texts for the retriever was a folder, and has no name by "
                "which it could be loaded. Give it as `text_backbone`."
            )
        features = retriever.read_items(item_texts(items), resolve_backbone(str(name)), entities, progress=False)
    return retriever.add_items(features, after.item_ids)
