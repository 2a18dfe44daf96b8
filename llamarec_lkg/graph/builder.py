"""Collecting nodes and edges in any order, and packing them into the arrays of a `KnowledgeGraph`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from ..data.links import unmet_links
from ..data.schema import CO_RATED, ENTITY, ITEM, RATED, USER, Triples
from ..utils.errors import LKGError
from .ranges import ranges


UNDATED = int(np.iinfo(np.int64).min)
OVERLAP = 0.9


class GraphBuilder:
    """`node` and `edges` collect; `build` sorts, removes repeated facts and packs.

    Args:
        relations: the beginning of the vocabulary; others follow in the order in which they appear.
    """

    def __init__(self, relations: Sequence[str] = ()) -> None:
        self.nodes: dict[str, dict[str, int]] = {}  # by type and key
        self.names: list[str] = []
        self.relations: dict[str, int] = {name: code for code, name in enumerate(relations)}
        self.parts: list[tuple[int, np.ndarray, np.ndarray, Any, Any]] = []  # code, ends, dates, weights

    def node(self, kind: str, key: str, name: str) -> int:
        """The number of a node, made when it is first asked for."""
        node = self.nodes.setdefault(kind, {}).setdefault(str(key), len(self.names))
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
        sources, targets = np.asarray(sources, dtype=np.int32), np.asarray(targets, dtype=np.int32)
        self.parts.append((code, sources, targets, timestamps, weights))
        if both_ways:
            self.parts.append((code + 1, targets, sources, timestamps, weights))

    def add_triples(self, triples: Triples, item_node: Mapping[str, int], dropped: Iterable[str] = ()) -> None:
        """Add facts. An entity that is linked to one of the items is that item; an `LKGError` where none is, nor one
        of the `dropped` ones, which have no node."""
        unmet_links(triples, [*item_node, *dropped])

        def node_of(entity: str) -> int:
            item = item_node.get(triples.item_of_entity.get(entity, ""))
            return self.node(ENTITY, entity, "") if item is None else item

        (heads, first), (tails, last) = pd.factorize(triples.heads), pd.factorize(triples.tails)
        heads, tails = (
            np.array([node_of(entity) for entity in entities], dtype=np.int32)[codes]
            for codes, entities in ((heads, first), (tails, last))
        )
        codes, relations = pd.factorize(triples.relations)
        for relation, pairs in merge_inverses(_distinct(heads, tails, codes, relations)).items():
            self.edges(relation, pairs[:, 0], pairs[:, 1])

    def build(self, item_nodes: Sequence[int]) -> dict[str, Any]:
        """The fields of a `KnowledgeGraph`; `item_nodes` as there."""
        num_nodes, num_codes = len(self.names), 2 * len(self.relations)
        sizes = [len(sources) for _, sources, *_ in self.parts]
        # an edge is one number, which takes little room and sorts fast: source, code, target
        edges = np.empty(sum(sizes), dtype=np.int64)
        for (code, sources, targets, *_), end, size in zip(self.parts, np.cumsum(sizes), sizes, strict=True):
            part = edges[end - size : end]
            np.multiply(sources, num_codes, out=part, dtype=np.int64)
            part += code
            part *= num_nodes
            part += targets
        timestamps, weights = self._column(3, np.int64, UNDATED), self._column(4, np.float32, np.nan)
        self.parts = []
        if timestamps is None and weights is None:
            edges.sort()
            edges = edges[_firsts(edges)]
        else:
            order = np.argsort(edges, kind="stable") if timestamps is None else np.lexsort((timestamps, edges))
            order = order[_firsts(edges[order])]  # of a fact given twice the earliest date stays
            edges = edges[order]
            timestamps, weights = (None if column is None else column[order] for column in (timestamps, weights))
        targets = (edges % max(num_nodes, 1)).astype(np.int32)
        edges //= max(num_nodes, 1)
        codes = (edges % max(num_codes, 1)).astype(np.int32)
        edges //= max(num_codes, 1)
        keys, types = np.empty(num_nodes, dtype=object), np.empty(num_nodes, dtype=np.int32)
        for kind, table in enumerate(self.nodes.values()):
            numbers = np.fromiter(table.values(), dtype=np.int64, count=len(table))
            keys[numbers], types[numbers] = list(table), kind
        return {
            "relations": tuple(self.relations),
            "entity_types": tuple(self.nodes),
            "node_keys": keys,
            "node_names": np.array(self.names, dtype=object),
            "node_types": types,
            "offsets": row_offsets(edges, num_nodes),
            "targets": targets,
            "edge_relations": codes,
            "timestamps": np.full(len(edges), UNDATED) if timestamps is None else timestamps,
            "item_nodes": np.asarray(item_nodes, dtype=np.int32),
            "weights": None if weights is None or np.isnan(weights).all() else weights,
        }

    def _column(self, place: int, dtype: type, empty: float) -> np.ndarray | None:
        """Dates or weights of all edges; None where no part has any."""
        columns = [(part[place], len(part[1])) for part in self.parts]
        if all(column is empty for column, _ in columns):
            return None
        return np.concatenate([np.broadcast_to(np.asarray(column, dtype), size) for column, size in columns])


def _firsts(values: np.ndarray) -> np.ndarray:
    """Which of sorted values are not equal to the one before, shape (len(values),)."""
    firsts = np.ones(len(values), dtype=bool)
    np.not_equal(values[1:], values[:-1], out=firsts[1:])
    return firsts


def _distinct(
    heads: np.ndarray, tails: np.ndarray, codes: np.ndarray, relations: Sequence[str]
) -> dict[str, np.ndarray]:
    """The distinct pairs of each relation in order, shape (T, 2)."""
    width = int(tails.max(initial=0)) + 1
    order = np.argsort(codes.astype(np.min_scalar_type(len(relations))), kind="stable")
    ends = np.bincount(codes, minlength=len(relations)).cumsum()
    found, start = {}, 0
    for relation, end in zip(relations, ends.tolist(), strict=False):
        rows, start = order[start:end], end
        pairs = heads[rows].astype(np.int64) * width + tails[rows]
        pairs.sort()
        found[relation] = np.stack(np.divmod(pairs[_firsts(pairs)], width), axis=1).astype(np.int32)
    return found


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
    names, width = sorted(facts), 1 + max((int(pairs.max(initial=0)) for pairs in facts.values()), default=0)
    shared = _stated_backwards([facts[name] for name in names], width)
    merged: dict[str, np.ndarray] = {}  # as one number a pair
    larger: set[str] = set()  # than what `shared` counted

    def is_same(place: int, backwards: np.ndarray, other: str) -> bool:
        one, two = sorted((len(backwards), len(merged[other])))
        if two > 2 * one:
            return False
        if other in larger:
            return np.isin(backwards, merged[other], assume_unique=True).sum() >= OVERLAP * one
        return shared.get((place, names.index(other)), 0) >= OVERLAP * one

    for place, relation in enumerate(names):
        heads, tails = facts[relation].T.astype(np.int64)
        backwards = tails * width + heads
        name = next((name for name in sorted(merged) if is_same(place, backwards, name)), relation)
        if name == relation:
            merged[name] = heads * width + tails
        else:
            merged[name] = np.union1d(merged[name], backwards)
            larger.add(name)
    return {name: np.stack(np.divmod(pairs, width), axis=1) for name, pairs in merged.items()}


def _stated_backwards(relations: Sequence[np.ndarray], width: int) -> dict[tuple[int, int], int]:
    """How many pairs of one relation another one has in the opposite direction."""
    ends = np.concatenate([np.zeros((0, 2), np.int64), *relations])
    either_way = ends.min(axis=1).astype(np.int64) * width + ends.max(axis=1)
    ordered = np.sort(either_way)
    twice = ordered[1:][~_firsts(ordered)[1:]]  # most are stated once, and are done with here
    rows = np.flatnonzero(np.isin(either_way, twice))
    relation = np.repeat(np.arange(len(relations)), [len(pairs) for pairs in relations])[rows]
    heads, tails = ends[rows].T.astype(np.int64)
    forward, backward = heads * width + tails, tails * width + heads
    order = np.argsort(forward)
    starts = np.searchsorted(forward[order], backward)
    counts = np.searchsorted(forward[order], backward, side="right") - starts
    which, places = ranges(starts, counts)
    pairs, counts = np.unique(relation[which] * len(relations) + relation[order[places]], return_counts=True)
    return {divmod(pair, len(relations)): count for pair, count in zip(pairs.tolist(), counts.tolist(), strict=True)}
