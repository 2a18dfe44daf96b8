"""The heterogeneous knowledge graph: items and the entities they share, typed edges, in plain arrays. A graph of a few
million edges is a few flat arrays, and every query is an array slice."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
from scipy import sparse

from ..data.links import tell_of_people
from ..data.schema import CO_RATED, ENTITY, ITEM, RATED, USER, ItemTable, Triples
from ..data.sequences import TRAIN, SequenceDataset
from ..data.values import clean_text
from ..utils.errors import LKGError
from .builder import UNDATED, GraphBuilder, joined_value, refuse_taken_name, row_offsets
from .co_ratings import CoRatings
from .graph_files import read_graph, write_graph
from .new_items import grown
from .ranges import ranges


@dataclass(frozen=True)
class KnowledgeGraph:
    """Directed typed edges in compressed sparse rows: the edges of node `n` are `offsets[n]:offsets[n + 1]`.

    A relation `r` of `relations` has the edge code `2 * r` in the direction of its name and `2 * r + 1` against it, so
    `code // 2` is the relation and `code ^ 1` the inverse.

    Args:
        relations (`tuple[str, ...]`): names.
        entity_types (`tuple[str, ...]`): names of node types.
        node_keys (`np.ndarray` of `str`, shape (N,)): identifier of each node within its type.
        node_names (`np.ndarray` of `str`, shape (N,)): text of each node; empty where only an identifier is known.
        node_types (`np.ndarray`, shape (N,)): index into `entity_types`.
        offsets (N + 1,), targets (E,), edge_relations (E,), timestamps (E,): the edges, ordered by source, edge code
            and target. `UNDATED` marks facts that hold at any time.
        weights (`np.ndarray` of `float32`, shape (E,), optional): how much an edge between two items says; NaN where
            an edge has no weight of its own, None where none has.
        item_nodes (`np.ndarray`, shape (num_items + 1,)): node of each dense item, -1 where there is none (and for
            padding).
    """

    relations: tuple[str, ...]
    entity_types: tuple[str, ...]
    node_keys: np.ndarray
    node_names: np.ndarray
    node_types: np.ndarray
    offsets: np.ndarray
    targets: np.ndarray
    edge_relations: np.ndarray
    timestamps: np.ndarray
    item_nodes: np.ndarray
    weights: np.ndarray | None = None

    # -- making one -------------------------------------------------------------------------------------------------

    @classmethod
    def from_dataset(
        cls,
        dataset: SequenceDataset,
        triples: Triples | None = None,
        *,
        users: bool = False,
        include_heldout: bool = False,
        whole_values: Sequence[str] = (),
    ) -> KnowledgeGraph:
        """Items, their attributes and further facts. Nobody is in it: what interactions say is added as sums over
        people ([`with_co_ratings`]), for which the relation CO_RATED stands first in the vocabulary.

        Args:
            triples: further facts. Linked entities are the items themselves. A relation that is another one read
                backwards (Freebase stores both directions) is merged with it.
            users: build the published graph instead (arXiv 2506.07449), with a node for every user and, in the place
                of CO_RATED, an edge RATED for every training interaction, with its time. No ranker takes it.
            include_heldout: with `users`, add validation and test interactions, as published.
            whole_values: attribute relations whose values of an item are joined into one entity ("Action|Crime"), as
                published for genres. For these the dropped items' values become nodes, too.

        Raises:
            LKGError: there are triples, and none is about an item of the data set's catalogue.
        """
        builder = GraphBuilder([RATED if users else CO_RATED])
        people = [builder.node(USER, raw, "") for raw in dataset.user_ids] if users else []
        items = [
            builder.node(ITEM, raw, title) for raw, title in zip(dataset.items.ids, dataset.items.titles, strict=True)
        ]
        if users:
            rated = np.ones(len(dataset.labels), dtype=bool) if include_heldout else dataset.labels == TRAIN
            positions = np.flatnonzero(rated)
            builder.edges(
                RATED,
                np.asarray(people)[dataset.user_of(positions) - 1],
                np.asarray(items)[dataset.item_sequence[positions] - 1],
                dataset.timestamps[positions],
                both_ways=False,
            )
        for relation, cells in dataset.items.attributes.items():
            whole = relation in whole_values
            pairs = [
                (items[row], builder.node(relation, value, value))
                for row, values in enumerate(cells)
                for value in ([joined_value(values)] if whole else values)
            ]
            if whole:
                for values in dataset.dropped_items.attributes.get(relation, ()):
                    builder.node(relation, joined_value(values), joined_value(values))
            builder.edges(relation, [a for a, _ in pairs], [b for _, b in pairs])
        if triples is not None:
            tell_of_people(triples, dataset.user_ids)
            builder.add_triples(triples, dataset.dropped_items.ids)
        return cls(**builder.build(item_nodes=[-1, *items]))

    @classmethod
    def from_triples(
        cls, triples: Triples, item_ids: Sequence[str], titles: Sequence[str] | None = None
    ) -> KnowledgeGraph:
        """A graph of facts alone. `item_ids` are the raw ids of dense items 1, 2, ...; items without facts stay
        without edges."""
        builder = GraphBuilder()
        titles = titles or item_ids
        items = [builder.node(ITEM, raw, clean_text(title)) for raw, title in zip(item_ids, titles, strict=True)]
        builder.add_triples(triples)
        return cls(**builder.build(item_nodes=[-1, *items]))

    @classmethod
    def from_networkx(cls, graph: nx.Graph, item_ids: Sequence[str]) -> KnowledgeGraph:
        """A networkx graph whose edges have `relation` and, optionally, `timestamp` and, between items, `weight`, and
        whose nodes may have `type` and `name`.

        Item nodes are those of type "item" or, where no node has a type, those whose key is in `item_ids`. An
        undirected graph, or an edge with `both_ways=True`, is read in both directions.

        Raises:
            LKGError: an edge lacks its relation, or its weight is not a number from 0 up; a timestamp is no whole
                number, or a relation or type no text.
        """
        builder = GraphBuilder(graph.graph.get("relations", ()))  # the order of a vocabulary that `to_networkx` wrote
        typed = any("type" in data for _, data in graph.nodes(data=True))
        wanted = set(item_ids)
        nodes, kinds = {}, {}
        for key, data in graph.nodes(data=True):
            raw = str(data.get("key", key))
            kind = data.get("type", ENTITY) if typed else (ITEM if raw in wanted else ENTITY)
            _require_text("type", kind, f"Node {key!r}")
            kinds[key] = kind
            nodes[key] = builder.node(kind, raw, clean_text(data.get("name", "" if kind == USER else raw)))
        grouped: dict[tuple[str, bool], list[tuple[int, int, int, float]]] = {}
        for source, target, data in graph.edges(data=True):
            if "relation" not in data:
                raise LKGError(
                    f"Edge {source!r} -> {target!r} has attributes {sorted(data)} but no 'relation'. Every edge needs "
                    "one: `graph.add_edge(a, b, relation='DIRECTED_BY')`."
                )
            _require_text("relation", data["relation"], f"Edge {source!r} -> {target!r}")
            refuse_taken_name(data["relation"], kinds[source], kinds[target])
            both_ways = bool(data.get("both_ways", not graph.is_directed()))
            stamp = _stamp(data.get("timestamp", UNDATED), source, target)
            edge = nodes[source], nodes[target], stamp, _weight(data, source, target)
            grouped.setdefault((data["relation"], both_ways), []).append(edge)
        for (relation, both_ways), edges in grouped.items():
            builder.edges(relation, *zip(*edges, strict=True), both_ways=both_ways)
        items = builder.nodes.get(ITEM, {})
        return cls(**builder.build(item_nodes=[-1, *(items.get(raw, -1) for raw in item_ids)]))

    def to_networkx(self) -> nx.MultiDiGraph:
        """Nodes `0..N-1` with `type`, `key` and `name`; one edge a fact, with `relation`, `both_ways` and any
        `timestamp` and `weight`."""
        graph = nx.MultiDiGraph(relations=list(self.relations))
        for node in range(self.num_nodes):
            kind = self.entity_types[self.node_types[node]]
            graph.add_node(node, type=kind, key=str(self.node_keys[node]), name=str(self.node_names[node]))
        sources = self.edge_sources()
        codes = np.asarray(self.edge_relations, dtype=np.int64)
        inverse = codes % 2 == 1
        # one number for each (source, relation, target), of edges read in the direction of their relation
        ends = np.where(inverse, self.targets, sources), np.where(inverse, sources, self.targets)
        _, pair = np.unique(ends[0] * np.int64(self.num_nodes) + ends[1], return_inverse=True)
        fact = pair * np.int64(len(self.relations)) + codes // 2
        both_ways = np.isin(fact, fact[inverse])
        for edge in np.flatnonzero(~inverse):
            source, target, relation = int(sources[edge]), int(self.targets[edge]), int(codes[edge]) // 2
            data: dict[str, Any] = {"relation": self.relations[relation], "both_ways": bool(both_ways[edge])}
            if self.timestamps[edge] != UNDATED:
                data["timestamp"] = int(self.timestamps[edge])
            if self.weights is not None and not np.isnan(self.weights[edge]):
                data["weight"] = float(self.weights[edge])
            graph.add_edge(source, target, **data)
        return graph

    # -- looking at it ----------------------------------------------------------------------------------------------

    @property
    def num_nodes(self) -> int:
        return len(self.offsets) - 1

    @property
    def num_edges(self) -> int:
        return len(self.targets)

    @property
    def num_items(self) -> int:
        return len(self.item_nodes) - 1

    def edge_sources(self) -> np.ndarray:
        """Source node of every edge, shape (E,)."""
        return np.repeat(np.arange(self.num_nodes, dtype=np.int64), np.diff(self.offsets))

    def neighbours(self, nodes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """All edges out of `nodes`: index into `nodes` (which one), edge code, and target, each of shape (M,)."""
        which, edges, targets = self.edges_from(nodes)
        return which, self.edge_relations[edges], targets

    def edges_from(self, nodes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """All edges out of `nodes`: index into `nodes` (which one), place among the graph's edges, and target, each of
        shape (M,). Those of a node are ordered by edge code and target."""
        starts = self.offsets.take(nodes)
        which, edges = ranges(starts, self.offsets.take(nodes + 1) - starts)
        return which, edges, self.targets.take(edges)

    def edges_into(self, nodes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """All edges into `nodes`: index into `nodes` (which one), place among the graph's edges, and source, each of
        shape (M,). Those of a node are ordered by source and edge code."""
        offsets, sources, edges = self._incoming
        starts = offsets.take(nodes)
        which, places = ranges(starts, offsets.take(nodes + 1) - starts)
        return which, edges.take(places), sources.take(places)

    @cached_property
    def _incoming(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The edges by their target: where those of each node begin, their sources and places."""
        shape = (self.num_nodes, self.num_nodes)
        # its conversion counts where a sort would compare
        edges = sparse.csr_array((np.arange(self.num_edges), self.targets, self.offsets), shape=shape).tocsc()
        return edges.indptr.astype(np.int64), edges.indices, edges.data

    def item_of_node(self) -> np.ndarray:
        """Dense item of every node, 0 where the node is none, shape (N,)."""
        items = np.zeros(self.num_nodes, dtype=np.int64)
        present = np.flatnonzero(self.item_nodes >= 0)
        items[self.item_nodes[present]] = present
        return items

    @cached_property
    def ties_items(self) -> bool:
        """Whether an edge leads from one item to another."""
        is_item = self.item_of_node() > 0
        return bool((is_item[self.targets] & np.repeat(is_item, np.diff(self.offsets))).any())

    @property
    def has_people(self) -> bool:
        """Whether there are nodes of users, or edges that say who rated what."""
        rated = RATED in self.relations and np.any(self.edge_relations // 2 == self.relations.index(RATED))
        return USER in self.entity_types or bool(rated)

    def describe(self) -> str:
        counts = np.bincount(self.edge_relations // 2, minlength=len(self.relations))
        weighted = () if self.weights is None else set(self.edge_relations[~np.isnan(self.weights)] // 2)
        parts = ", ".join(
            f"{name} {count:,}{' with weights' if code in weighted else ''}"
            for code, (name, count) in enumerate(zip(self.relations, counts, strict=True))
        )
        return f"{self.num_nodes:,} nodes, {self.num_edges:,} edges ({parts})"

    # -- views ------------------------------------------------------------------------------------------------------

    def before(self, timestamp: int) -> KnowledgeGraph:
        """The graph as it was known just before `timestamp`: dated edges from then on are gone, undated facts stay.
        (Co-ratings have no dates any more, and stay, too.)"""
        return self._keep(self.timestamps < timestamp)

    def without_relations(self, names: Iterable[str]) -> KnowledgeGraph:
        """The graph without the edges of some relations; the vocabulary stays, so a model still fits."""
        codes = [self.relations.index(name) for name in names if name in self.relations]
        return self._keep(~np.isin(self.edge_relations // 2, codes))

    def shuffle_items(self, seed: int = 0) -> KnowledgeGraph:
        """The control: every item takes the place of another one. Degrees, relations and entities stay, the truth
        goes."""
        present = np.flatnonzero(self.item_nodes >= 0)
        order = np.random.default_rng(seed).permutation(present)
        permuted = np.array(self.item_nodes)
        permuted[order] = permuted[np.roll(order, 1)]  # one cycle through all items: none stays where it was
        return replace(self, item_nodes=permuted)

    def with_co_ratings(self, table: CoRatings) -> KnowledgeGraph:
        """The graph with the edges of `table` along CO_RATED, and no others along it.

        Raises:
            LKGError: CO_RATED is not in the vocabulary, or the table is of other items.
        """
        nodes = np.asarray(self.item_nodes, dtype=np.int64)
        ends = np.concatenate([table.items, table.others])
        if CO_RATED not in self.relations or ends.max(initial=0) > self.num_items or (nodes[ends] < 0).any():
            raise LKGError(
                f"The graph has nodes for {int((nodes >= 0).sum())} items and the relations {self.relations}; the "
                f"co-ratings are of items up to {int(ends.max(initial=0))} and need the relation {CO_RATED!r}. Make "
                "both from one data set, the graph with `KnowledgeGraph.from_dataset(dataset)`."
            )
        code = 2 * self.relations.index(CO_RATED)
        return self.without_relations([CO_RATED]).with_edges(
            nodes[table.items], np.full(len(table), code), nodes[table.others], table.weights
        )

    def with_items(self, items: ItemTable) -> KnowledgeGraph:
        """The graph with further items, numbered on from `num_items`, and their attributes. Values that are known, by
        their key or, where only one entity is called so, by their name, are the entities they were; others become new
        ones, which tie nothing yet (a warning tells how many). Values that are joined in the graph are joined.

        Raises:
            LKGError: an item is in the graph, or an attribute is no relation of it.
        """
        return grown(self, items)

    def with_edges(
        self, starts: np.ndarray, codes: np.ndarray, ends: np.ndarray, weights: np.ndarray
    ) -> KnowledgeGraph:
        """The graph with further edges, which have no date."""
        own = np.full(self.num_edges, np.nan) if self.weights is None else self.weights
        weights = np.concatenate([own, weights]).astype(np.float32)
        starts = np.concatenate([self.edge_sources(), starts])
        codes, ends = np.concatenate([self.edge_relations, codes]), np.concatenate([self.targets, ends])
        # one number an edge, which sorts faster than three
        order = np.argsort((starts * (2 * len(self.relations)) + codes) * self.num_nodes + ends, kind="stable")
        return replace(
            self,
            offsets=row_offsets(starts, self.num_nodes),
            targets=ends[order].astype(np.int32),
            edge_relations=codes[order].astype(np.int32),
            timestamps=np.append(self.timestamps, np.full(len(starts) - self.num_edges, UNDATED))[order],
            weights=None if np.isnan(weights).all() else weights[order],
        )

    def _keep(self, edges: np.ndarray) -> KnowledgeGraph:
        weights = None if self.weights is None else self.weights[edges]
        return replace(
            self,
            offsets=row_offsets(self.edge_sources()[edges], self.num_nodes),
            targets=self.targets[edges],
            edge_relations=self.edge_relations[edges],
            timestamps=self.timestamps[edges],
            weights=None if weights is None or np.isnan(weights).all() else weights,
        )

    # -- keeping it -------------------------------------------------------------------------------------------------

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `graph.safetensors`, `nodes.parquet` and `graph.json` into `folder`, beside what else is there."""
        write_graph(folder, {name: getattr(self, name) for name in self.__dataclass_fields__})

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> KnowledgeGraph:
        """Read what `save_pretrained` wrote: the arrays are mapped, and stay on the disk until they are touched.

        Raises:
            LKGError: a file is absent, damaged, or does not fit the others.
        """
        return cls(**read_graph(folder))


def _require_text(name: str, value: Any, where: str) -> None:
    if not isinstance(value, str) or not value:
        raise LKGError(f"{where} has the {name} {repr(value)[:80]}. A {name} is a text, such as 'DIRECTED_BY'.")


def _stamp(value: Any, source: Any, target: Any) -> int:
    try:
        return int(np.int64(operator.index(value)))
    except (TypeError, OverflowError) as error:
        raise LKGError(
            f"Edge {source!r} -> {target!r} has the timestamp {repr(value)[:80]}. A timestamp is a whole number, such "
            "as of seconds. Write it as one, or remove the attribute."
        ) from error


def _weight(data: Mapping[str, Any], source: Any, target: Any) -> float:
    weight = data.get("weight", np.nan)
    if isinstance(weight, bool) or not isinstance(weight, int | float | np.number) or weight < 0 or np.isinf(weight):
        raise LKGError(
            f"Edge {source!r} -> {target!r} has the weight {weight!r}. A weight is a number from 0 up: how much an "
            "edge between two items says. Remove the attribute, or name it otherwise if it means something else."
        )
    return float(weight)
