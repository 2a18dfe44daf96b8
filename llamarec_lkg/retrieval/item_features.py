"""What is known of items besides who took them: their text as a language model reads it, and the entities they have
in the graph. With these a retriever can find an item that nobody has interacted with."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..data.schema import CO_RATED, RATED, ItemTable
from ..graph.knowledge_graph import KnowledgeGraph
from ..utils.errors import LKGError
from .text_vectors import TextProjection, read_texts, with_padding_row


@dataclass(frozen=True)
class ItemFeatures:
    """Features of I items; row 0 is the padding item and has none.

    Args:
        text (`np.ndarray` of `float32`, shape (I + 1, T), optional): text vectors.
        entities (offsets `int64` (I + 2,), indices `int64` (L,), optional): the entities, counted from 0, of item `i`
            are `indices[offsets[i]:offsets[i + 1]]`.
        projection (optional): how the text vectors were made, so that those of new items can be made alike.
    """

    text: np.ndarray | None = None
    entities: tuple[np.ndarray, np.ndarray] | None = None
    projection: TextProjection | None = None

    def __post_init__(self) -> None:
        if self.text is not None and (self.text.ndim != 2 or self.text[0].any()):
            raise LKGError(
                f"Text vectors of shape {self.text.shape} were given; they have a row for each item and, as row 0, "
                "zeros for the padding item."
            )
        if self.entities is not None:
            offsets, indices = self.entities
            if offsets[0] or offsets[1] or offsets[-1] != len(indices) or (np.diff(offsets) < 0).any():
                raise LKGError(
                    f"The entities' offsets go from {offsets[0]} to {offsets[-1]} for {len(indices)} indices; they "
                    "rise from 0 to their number, and item 0, the padding item, has none: the second is 0, too."
                )
        if self.text is not None and self.entities is not None and len(self.text) != len(self.entities[0]) - 1:
            raise LKGError(
                f"There are text vectors for {len(self.text) - 1} items and entities for {len(self.entities[0]) - 2}. "
                "Give both for the same items."
            )

    @property
    def num_items(self) -> int | None:
        """None where there is nothing."""
        if self.text is not None:
            return len(self.text) - 1
        return None if self.entities is None else len(self.entities[0]) - 2


def item_texts(items: ItemTable) -> list[str]:
    """One text an item: its title, and a line for each attribute ("directed by: Mann")."""
    texts = []
    for row, title in enumerate(items.titles):
        lines = [title]
        for relation, cells in items.attributes.items():
            if cells[row]:
                lines.append(f"{relation.replace('_', ' ').lower()}: {', '.join(cells[row])}")
        texts.append("\n".join(lines))
    return texts


def item_entities(graph: KnowledgeGraph) -> tuple[np.ndarray, np.ndarray]:
    """What each item is tied to in the graph, along any relation and in either direction, as `ItemFeatures.entities`;
    entity `k` is the node `shared_entities(graph)[k]`."""
    items, nodes = _ties(graph)
    entities = shared_entities(graph)
    shared = np.isin(nodes, entities)
    counts = np.bincount(items[shared], minlength=graph.num_items + 1)
    return np.concatenate([[0], np.cumsum(counts)]), np.searchsorted(entities, nodes[shared])


def new_entities(
    graph: KnowledgeGraph, grown: KnowledgeGraph, num_trained_items: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Entities of the items that `grown` (`graph.with_items(items)`) has beyond those of `graph`, numbered as
    `item_entities` did for the first `num_trained_items` (all of `graph`, where that is None); others are left out."""
    items, nodes = _ties(grown)
    entities = shared_entities(graph, num_trained_items)
    kept = (items > graph.num_items) & np.isin(nodes, entities)
    counts = np.bincount(items[kept] - graph.num_items, minlength=grown.num_items - graph.num_items + 1)
    return np.concatenate([[0], np.cumsum(counts)]), np.searchsorted(entities, nodes[kept])


def shared_entities(graph: KnowledgeGraph, num_items: int | None = None) -> np.ndarray:
    """Nodes that two items or more, of the first `num_items` or of all, are tied to. People and other items are none
    of them."""
    items, nodes = _ties(graph)
    nodes, counts = np.unique(nodes[items <= (num_items or graph.num_items)], return_counts=True)
    return nodes[counts > 1]


def _ties(graph: KnowledgeGraph) -> tuple[np.ndarray, np.ndarray]:
    """Dense item and node of every tie to a node that is no item, each pair once, by item."""
    item_of_node = graph.item_of_node()
    interactions = [index for index, name in enumerate(graph.relations) if name in (RATED, CO_RATED)]
    items = item_of_node[graph.edge_sources()]
    kept = (items > 0) & (item_of_node[graph.targets] <= 0) & ~np.isin(graph.edge_relations // 2, interactions)
    return np.unique(np.stack([items[kept], graph.targets[kept]]).astype(np.int64), axis=1)


def item_features(
    kind: str,
    items: ItemTable,
    *,
    backbone: str | None = None,
    backbone_name: str | None = None,
    graph: KnowledgeGraph | None = None,
    layers: int = 8,
    size: int = 128,
    attributes: bool = True,
    device: str | None = None,
    progress: bool = True,
) -> ItemFeatures | None:
    """The features that `RetrieverTrainingArguments.item_vectors` names, None for "ids".

    Args:
        kind: "ids", "text", "entities" or "text+entities".
        items: in dense order.
        backbone: folder or Hub id of the language model that reads the text; needed for text.
        backbone_name: what it is called, where `backbone` is a folder of this machine.
        graph: of these items; needed for entities.
        layers, size: see [`~text_vectors.read_texts`].
        attributes: whether attributes stand in the text beside the title.

    Raises:
        LKGError: `kind` is unknown, or needs what is not given.
    """
    check_kind(kind)
    text = projection = entities = None
    if "text" in kind:
        if backbone is None:
            raise LKGError(f"item_vectors={kind!r} needs a language model to read the items' text: give `backbone=`.")
        texts = item_texts(items) if attributes else items.titles
        settings = {"layers": layers, "size": size, "name": backbone_name, "device": device, "progress": progress}
        text, projection = read_texts(texts, backbone, **settings)
        text = with_padding_row(text)
    if "entities" in kind:
        if graph is None:
            raise LKGError(f"item_vectors={kind!r} needs a graph with the items' entities: give `graph=`.")
        entities = item_entities(graph)
    return None if kind == "ids" else ItemFeatures(text, entities, projection)


KINDS = ("ids", "text", "entities", "text+entities")


def check_kind(kind: str) -> None:
    """Raise `LKGError` for what is no name of features."""
    if kind not in KINDS:
        raise LKGError(f"item_vectors is {kind!r}; it is one of {', '.join(map(repr, KINDS))}.")
