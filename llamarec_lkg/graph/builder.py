"""Collecting nodes and edges in any order, and packing them into the arrays of a `KnowledgeGraph`."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from ..data.links import unmet_links
from ..data.schema import CO_RATED, ENTITY, ITEM, RATED, USER, Triples
from ..utils.errors import LKGError


UNDATED = np.iinfo(np.int64).min
OVERLAP = 0.9


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
        timestamps: Sequence[int] | np.ndarray | int = UNDATED,
        weights: Sequence[float] | np.ndarray | float = np.nan,
        both_ways: bool = True,
    ) -> None:
        """Add edges of one relation; `both_ways` adds each against its direction as well."""
        code = 2 * self.relations.setdefault(relation, len(self.relations))
        sources, targets = np.asarray(sources, dtype=np.int64), np.asarray(targets, dtype=np.int64)
        stamps = np.broadcast_to(np.asarray(timestamps, dtype=np.int64), len(sources))
        weights = np.broadcast_to(np.asarray(weights, dtype=np.float32), len(sources))
        self.parts.append((sources, np.full(len(sources), code), targets, stamps, weights))
        if both_ways:
            self.parts.append((targets, np.full(len(sources), code + 1), sources, stamps, weights))

    def add_triples(self, triples: Triples, item_node: Mapping[str, int], dropped: Iterable[str] = ()) -> None:
        """Add facts. An entity that is linked to one of the items is that item; an `LKGError` where none is, nor one
        of the `dropped` ones, which have no node."""
        unmet_links(triples, [*item_node, *dropped])

        def node_of(entity: str) -> int:
            item = item_node.get(triples.item_of_entity.get(entity, ""))
            return self.node(ENTITY, entity, "") if item is None else item

        entities = {entity: node_of(entity) for entity in dict.fromkeys([*triples.heads, *triples.tails])}
        heads = np.array([entities[entity] for entity in triples.heads], dtype=np.int64)
        tails = np.array([entities[entity] for entity in triples.tails], dtype=np.int64)
        pairs = np.stack([heads, tails], axis=1)
        rows_of_relation = pd.Series(heads).groupby(triples.relations).indices
        facts = {relation: np.unique(pairs[rows], axis=0) for relation, rows in rows_of_relation.items()}
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
            "offsets": row_offsets(sources, len(self.index)),
            "targets": targets.astype(np.int32),
            "edge_relations": codes.astype(np.int32),
            "timestamps": stamps.astype(np.int64),
            "item_nodes": np.asarray(item_nodes, dtype=np.int32),
            "weights": None if np.isnan(weights).all() else weights,
        }


def refuse_taken_name(relation: str, source: str, target: str) -> None:
    """Raise `LKGError` where an edge between these types of nodes has the name of one that interactions make."""
    if (relation == RATED and source == ITEM and target != USER) or (
        relation == CO_RATED and not source == target == ITEM
    ):
        raise LKGError(
            f"An edge from a node of type {source!r} to one of type {target!r} is called {relation!r}, the library's "
            "name for what interactions say. Rename the relation, or give people's nodes the type 'user'."
        )


def joined_value(values: Sequence[str]) -> str:
    """The values of one item as one, as published for genres."""
    return "|".join(values) or "(none listed)"  # the published graph has a node for films without a genre, too


def row_offsets(sources: np.ndarray, num_nodes: int) -> np.ndarray:
    """Where the edges of each node begin among all edges, shape (num_nodes + 1,), from their sorted sources."""
    return np.concatenate([[0], np.cumsum(np.bincount(sources, minlength=num_nodes))]).astype(np.int64)


def merge_inverses(facts: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Join relations that state the same facts in opposite directions, as Freebase does under two names; the name that
    comes first stays. `facts` are the distinct (head, tail) pairs of each relation, shape (T, 2); of the smaller
    relation's, the share `OVERLAP` must appear, reversed, in the larger.
    """
    merged: dict[str, np.ndarray] = {}
    stated_by: dict[tuple[int, int], set[str]] = defaultdict(set)

    def is_same(shared: int, one: int, other: int) -> bool:
        return shared >= OVERLAP * min(one, other) and max(one, other) <= 2 * min(one, other)

    for relation, pairs in sorted(facts.items()):
        backwards = pairs[:, ::-1]
        shared = Counter(other for pair in backwards.tolist() for other in stated_by.get(tuple(pair), ()))
        twins = (name for name in sorted(shared) if is_same(shared[name], len(pairs), len(merged[name])))
        name = next(twins, relation)
        merged[name] = pairs if name == relation else np.unique(np.concatenate([merged[name], backwards]), axis=0)
        for pair in merged[name].tolist():
            stated_by[tuple(pair)].add(name)
    return merged
