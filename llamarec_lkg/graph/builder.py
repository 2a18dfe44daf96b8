"""Collecting nodes and edges in any order, and packing them into the arrays of a `KnowledgeGraph`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from ..data.links import unmet_links
from ..data.schema import CO_RATED, ENTITY, ITEM, RATED, USER, Triples
from ..utils.errors import LKGError


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

    def add_triples(self, triples: Triples, dropped: Iterable[str] = ()) -> None:
        """Add facts. An entity that is linked to one of the items is that item; an `LKGError` where none is, nor one
        of the `dropped` ones, which have no node."""
        items = self.nodes.get(ITEM, {})
        unmet_links(triples, [*items, *dropped])

        def node_of(entity: str) -> int:
            item = items.get(triples.item_of_entity.get(entity, ""))
            return self.node(ENTITY, entity, "") if item is None else item

        def nodes_of(ends: np.ndarray) -> np.ndarray:
            codes, entities = pd.factorize(ends)
            return np.fromiter(map(node_of, entities), dtype=np.int32, count=len(entities))[codes]

        heads, tails = nodes_of(triples.heads), nodes_of(triples.tails)
        width = len(self.names)
        # a fact is one number as well: relation, head, tail
        facts, relations = pd.factorize(triples.relations)
        _require_room(width, len(relations))
        for ends in (heads, tails):
            facts *= width
            facts += ends
        del heads, tails, ends
        facts = _distinct(facts)
        starts = np.arange(len(relations)) * width**2
        parts = np.split(facts, facts.searchsorted(starts[1:]))
        for part, start in zip(parts, starts, strict=False):
            part -= start
        for relation, pairs in merge_inverses(dict(zip(relations, parts, strict=False)), width).items():
            self.edges(relation, *np.divmod(pairs, width))

    def build(self, item_nodes: Sequence[int]) -> dict[str, Any]:
        """The fields of a `KnowledgeGraph`; `item_nodes` as there."""
        num_nodes, num_codes = len(self.names), 2 * len(self.relations)
        _require_room(num_nodes, len(self.relations))
        edges = self._edges_as_numbers(num_nodes, num_codes)
        timestamps, weights = self._column(3, np.int64, UNDATED), self._column(4, np.float32, np.nan)
        self.parts = []
        if timestamps is None and weights is None:
            edges = _distinct(edges)
        else:
            order = np.argsort(edges, kind="stable") if timestamps is None else np.lexsort((timestamps, edges))
            order = order[_firsts(edges[order])]  # of a fact given twice the earliest date stays
            edges = edges[order]
            timestamps, weights = (None if column is None else column[order] for column in (timestamps, weights))
        targets, codes = _taken_off(edges, num_nodes), _taken_off(edges, num_codes)
        offsets = row_offsets(edges, num_nodes)
        del edges  # of all arrays the largest, and others are to come
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
            "offsets": offsets,
            "targets": targets,
            "edge_relations": codes,
            "timestamps": np.full(len(targets), UNDATED) if timestamps is None else timestamps,
            "item_nodes": np.asarray(item_nodes, dtype=np.int32),
            "weights": None if weights is None or np.isnan(weights).all() else weights,
        }

    def _edges_as_numbers(self, num_nodes: int, num_codes: int) -> np.ndarray:
        """All edges, each as one number, which takes little room and sorts fast: source, code, target."""
        sizes = [len(sources) for _, sources, *_ in self.parts]
        edges = np.empty(sum(sizes), dtype=np.int64)
        for (code, sources, targets, *_), end, size in zip(self.parts, np.cumsum(sizes), sizes, strict=True):
            part = edges[end - size : end]
            np.multiply(sources, num_codes, out=part, dtype=np.int64)
            part += code
            part *= num_nodes
            part += targets
        return edges

    def _column(self, place: int, dtype: type, empty: float) -> np.ndarray | None:
        """Dates or weights of all edges; None where no part has any."""
        columns = [(part[place], len(part[1])) for part in self.parts]
        if all(column is empty for column, _ in columns):
            return None
        return np.concatenate([np.broadcast_to(np.asarray(column, dtype), size) for column, size in columns])


def _taken_off(numbers: np.ndarray, size: int) -> np.ndarray:
    """The last part of numbers made of several, one of `size` values, which they lose, shape (len(numbers),)."""
    last = np.remainder(numbers, max(size, 1), out=np.empty(len(numbers), np.int32), casting="unsafe")
    numbers //= max(size, 1)
    return last


def _firsts(values: np.ndarray) -> np.ndarray:
    """Which of sorted values are not equal to the one before, shape (len(values),)."""
    firsts = np.ones(len(values), dtype=bool)
    np.not_equal(values[1:], values[:-1], out=firsts[1:])
    return firsts


def _distinct(values: np.ndarray) -> np.ndarray:
    """The values in order, each once; it is in place that they are sorted."""
    values.sort()
    return values[_firsts(values)]


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


def _require_room(nodes: int, relations: int) -> None:
    if 2 * relations * nodes**2 >= 2**63:  # an edge is one number of 64 bits
        raise LKGError(f"A graph of {nodes:,} nodes and {relations:,} relations is too large. Leave out rare ones.")


def merge_inverses(facts: Mapping[str, np.ndarray], width: int) -> dict[str, np.ndarray]:
    """Join relations that state the same facts in opposite directions, as Freebase does under two names; the name that
    comes first stays. `facts` are the distinct pairs of each relation in order, one number `head * width + tail` each,
    shape (T,), and so is what is returned; of the smaller relation's, the share `OVERLAP` must appear, reversed, in
    the larger.
    """
    place_of = {name: place for place, name in enumerate(sorted(facts))}
    shared = _stated_backwards([facts[name] for name in place_of], width)
    merged: dict[str, np.ndarray] = {}
    larger: set[str] = set()  # than what `shared` counted

    def is_same(relation: str, backwards: np.ndarray, other: str) -> bool:
        one, two = sorted((len(backwards), len(merged[other])))
        if two > 2 * one:
            return False
        if other in larger:
            return np.isin(backwards, merged[other], assume_unique=True).sum() >= OVERLAP * one
        return shared.get((place_of[relation], place_of[other]), 0) >= OVERLAP * one

    for relation in place_of:
        backwards = _backwards(facts[relation], width)
        name = next((name for name in merged if is_same(relation, backwards, name)), relation)
        if name == relation:
            merged[name] = facts[name]
        else:
            merged[name] = _distinct(np.append(merged[name], backwards))
            larger.add(name)
    return merged


def _backwards(pairs: np.ndarray, width: int) -> np.ndarray:
    """The pairs, of one number each, with their ends exchanged."""
    heads, tails = np.divmod(pairs, width)
    tails *= width
    tails += heads
    return tails


def _stated_backwards(relations: Sequence[np.ndarray], width: int) -> dict[tuple[int, int], int]:
    """How many pairs of one relation another one has in the opposite direction."""
    none = np.zeros(0, np.int64)
    either_way = np.concatenate([none, *(np.minimum(pairs, _backwards(pairs, width)) for pairs in relations)])
    either_way.sort()
    twice = either_way[~_firsts(either_way)]
    del either_way
    twice = _distinct(np.append(twice, _backwards(twice, width)))
    # most pairs are stated once, and are done with here
    relations = [pairs[twice.searchsorted(pairs) < twice.searchsorted(pairs, side="right")] for pairs in relations]
    del twice
    count, found = len(relations), {}
    forward = np.concatenate([none, *(pairs * count + place for place, pairs in enumerate(relations))])
    forward.sort()
    for place, pairs in enumerate(relations):
        backward = _backwards(pairs, width) * count
        backward.sort()  # what is looked for in order is found fast
        starts, ends = forward.searchsorted(backward), forward.searchsorted(backward + count)
        counts = np.zeros(count, dtype=np.int64)
        while (some := starts < ends).any():  # as often as the most relations state one pair
            starts, ends = starts[some], ends[some]
            counts += np.bincount(forward[starts] % count, minlength=count)
            starts += 1
        found |= {(place, other): int(counts[other]) for other in counts.nonzero()[0].tolist()}
    return found
