"""Collecting nodes and edges in any order, and packing them into the arrays of a `KnowledgeGraph`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..data.schema import Triples


USER, ITEM, ENTITY = "user", "item", "entity"
UNDATED = np.iinfo(np.int64).min


class GraphBuilder:
    """`node` and `edges` collect; `build` sorts, removes repeated facts and packs.

    Args:
        relations: the beginning of the vocabulary; others follow in the order in which they appear.
    """

    def __init__(self, relations: Sequence[str] = ()) -> None:
        self.index: dict[tuple[str, str], int] = {}
        self.names: list[str] = []
        self.relations: dict[str, int] = {name: code for code, name in enumerate(relations)}
        self.parts: list[tuple[np.ndarray, ...]] = []

    def node(self, kind: str, key: str, name: str) -> int:
        """The number of a node, made when it is first asked for."""
        node = self.index.setdefault((kind, str(key)), len(self.index))
        if node == len(self.names):
            self.names.append(name)
        return node

    def edges(
        self,
        relation: str,
        sources: Sequence[int] | np.ndarray,
        targets: Sequence[int] | np.ndarray,
        timestamps: Sequence[int] | np.ndarray | None = None,
        weights: Sequence[float] | np.ndarray | None = None,
        both_ways: bool = True,
    ) -> None:
        """Add edges of one relation; `both_ways` adds each against its direction as well."""
        code = 2 * self.relations.setdefault(relation, len(self.relations))
        sources, targets = np.asarray(sources, dtype=np.int64), np.asarray(targets, dtype=np.int64)
        stamps = np.full(len(sources), UNDATED) if timestamps is None else np.asarray(timestamps, dtype=np.int64)
        weights = np.full(len(sources), np.nan) if weights is None else np.asarray(weights)
        weights = weights.astype(np.float32)
        self.parts.append((sources, np.full(len(sources), code), targets, stamps, weights))
        if both_ways:
            self.parts.append((targets, np.full(len(sources), code + 1), sources, stamps, weights))

    def add_triples(self, triples: Triples, item_node: Mapping[str, int]) -> None:
        """Add facts. An entity that is linked to one of the items is that item."""

        def node_of(entity: str) -> int:
            item = item_node.get(triples.item_of_entity.get(entity, ""))
            return self.node(ENTITY, entity, "") if item is None else item

        entities = {entity: node_of(entity) for entity in dict.fromkeys([*triples.heads, *triples.tails])}
        heads = np.array([entities[entity] for entity in triples.heads], dtype=np.int64)
        tails = np.array([entities[entity] for entity in triples.tails], dtype=np.int64)
        facts: dict[str, np.ndarray] = {}
        for relation in dict.fromkeys(triples.relations):
            mask = triples.relations == relation
            facts[relation] = np.unique(np.stack([heads[mask], tails[mask]], axis=1), axis=0)
        for relation, pairs in merge_inverses(facts).items():
            self.edges(relation, pairs[:, 0], pairs[:, 1])

    def build(self, item_nodes: Sequence[int]) -> dict[str, Any]:
        """The fields of a `KnowledgeGraph`; `item_nodes` as there."""
        columns = [np.concatenate(column) for column in zip(*self.parts, strict=True)]
        columns = columns or [np.zeros(0, np.int64)] * 5
        sources, codes, targets, stamps, _ = columns
        order = np.lexsort((stamps, targets, codes, sources))
        # of a fact given twice the earliest date stays
        ends = np.stack([sources[order], codes[order], targets[order]])
        order = order[np.append(True, (np.diff(ends) != 0).any(axis=0))[: len(order)]]
        sources, codes, targets, stamps, weights = (column[order] for column in columns)
        kinds = list(dict.fromkeys(kind for kind, _ in self.index))
        return {
            "relations": tuple(self.relations),
            "entity_types": tuple(kinds),
            "node_keys": np.array([key for _, key in self.index], dtype=object),
            "node_names": np.array(self.names, dtype=object),
            "node_types": np.array([kinds.index(kind) for kind, _ in self.index], dtype=np.int32),
            "offsets": np.concatenate([[0], np.cumsum(np.bincount(sources, minlength=len(self.index)))]).astype(
                np.int64
            ),
            "targets": targets.astype(np.int32),
            "edge_relations": codes.astype(np.int32),
            "timestamps": stamps.astype(np.int64),
            "item_nodes": np.asarray(item_nodes, dtype=np.int32),
            "weights": None if np.isnan(weights).all() else weights,
        }


def merge_inverses(facts: Mapping[str, np.ndarray], overlap: float = 0.9) -> dict[str, np.ndarray]:
    """Join relations that state the same facts in opposite directions, as Freebase does under two names; the name that
    comes first stays.

    Args:
        facts: relation -> distinct (head, tail) pairs, shape (T, 2).
        overlap: share of the smaller relation's facts that must appear, reversed, in the larger.
    """
    merged: dict[str, np.ndarray] = {}
    keys: dict[str, set[tuple[int, int]]] = {}
    for relation, pairs in sorted(facts.items()):
        reversed_keys = {(tail, head) for head, tail in pairs.tolist()}
        twin = next(
            (
                other
                for other, known in keys.items()
                if len(reversed_keys & known) >= overlap * min(len(reversed_keys), len(known)) > 0
                and max(len(reversed_keys), len(known)) <= 2 * min(len(reversed_keys), len(known))
            ),
            None,
        )
        if twin is None:
            merged[relation] = pairs
            keys[relation] = {(head, tail) for head, tail in pairs.tolist()}
        else:
            merged[twin] = np.unique(np.concatenate([merged[twin], pairs[:, ::-1]]), axis=0)
            keys[twin] |= reversed_keys
    return merged
