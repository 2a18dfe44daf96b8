"""The heterogeneous knowledge graph: users, items and attribute entities, typed and dated edges, in plain arrays.

No database: a graph of a few million edges is a few flat arrays, mapped from disk, and every query is an array slice.
"""

from __future__ import annotations

import hashlib
import json
import mmap
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pandas as pd
from safetensors.numpy import save_file

from ..data.schema import RATED, Triples, clean_text
from ..data.sequences import TRAIN, SequenceDataset
from ..data.user_ids import ENTITY, ITEM, PERSON, USER, names_one_of, nodes_like_users, telling
from ..utils.errors import LKGError
from ..utils.files import atomic_files, read_json, write_json
from .inverse_relations import merge_inverses


FORMAT_VERSIONS = (1, 2)  # the second has weights; graphs without any are still written in the first


UNDATED = np.iinfo(np.int64).min


_ARRAYS = {
    "offsets": np.int64,
    "targets": np.int32,
    "edge_relations": np.int16,
    "timestamps": np.int64,
    "node_types": np.int16,
    "item_nodes": np.int32,
}


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
    weights: np.ndarray | None = field(default=None, metadata={"fingerprint": "if given"})

    # -- making one -------------------------------------------------------------------------------------------------

    @classmethod
    def from_dataset(
        cls,
        dataset: SequenceDataset,
        triples: Triples | None = None,
        *,
        include_heldout: bool = False,
        whole_values: Sequence[str] = (),
    ) -> KnowledgeGraph:
        """Users, items and the items' attributes; RATED edges go from user to item and carry their time.

        What is named like a user, also like one whom the filter dropped, stands for a person, and is published no more
        than users are: entities of the triples, and values of attributes, of which numbers of up to nine digits are
        taken for numbers.

        Args:
            dataset: its training interactions become edges.
            triples: further facts. Linked entities are the items themselves. A relation that is another one read
                backwards (Freebase stores both directions) is merged with it.
            include_heldout: add validation and test interactions, as the published graph does. A ranker evaluated
                with such a graph has seen its answers; only the published counts need it.
            whole_values: attribute relations whose values of an item are joined into one entity ("Action|Crime"), as
                the published graph does with genres. For these the dropped items' values become nodes too, as
                published.
        """
        builder = _Builder()
        users = [builder.node(USER, raw, "") for raw in dataset.user_ids]
        items = [
            builder.node(ITEM, raw, title) for raw, title in zip(dataset.items.ids, dataset.items.titles, strict=True)
        ]
        rated = np.ones(len(dataset.labels), dtype=bool) if include_heldout else dataset.labels == TRAIN
        positions = np.flatnonzero(rated)
        builder.edges(
            RATED,
            np.asarray(users)[dataset.user_of(positions) - 1],
            np.asarray(items)[dataset.item_sequence[positions] - 1],
            dataset.timestamps[positions],
            both_ways=False,
        )
        people = {*dataset.user_ids, *dataset.dropped_users}
        known = telling(people)

        def value_node(relation: str, value: str) -> int:
            return builder.node(PERSON if names_one_of(value, known) else relation, value, value)

        for relation, cells in dataset.items.attributes.items():
            whole = relation in whole_values
            pairs = [
                (items[row], value_node(relation, value))
                for row, values in enumerate(cells)
                for value in ([_joined(values)] if whole else values)
            ]
            if whole:
                for values in dataset.dropped_items.attributes.get(relation, ()):
                    value_node(relation, _joined(values))
            builder.edges(relation, [a for a, _ in pairs], [b for _, b in pairs])
        if triples is not None:
            builder.add_triples(triples, dict(zip(dataset.items.ids, items, strict=True)), people)
        return builder.build(item_nodes=[-1, *items])

    @classmethod
    def from_triples(
        cls, triples: Triples, item_ids: Sequence[str], titles: Sequence[str] | None = None
    ) -> KnowledgeGraph:
        """A graph of facts alone. `item_ids` are the raw ids of dense items 1, 2, ...; items without facts stay
        without edges."""
        builder = _Builder()
        titles = titles or item_ids
        items = [builder.node(ITEM, raw, clean_text(title)) for raw, title in zip(item_ids, titles, strict=True)]
        builder.add_triples(triples, dict(zip(item_ids, items, strict=True)))
        return builder.build(item_nodes=[-1, *items])

    @classmethod
    def from_networkx(cls, graph: nx.Graph, item_ids: Sequence[str]) -> KnowledgeGraph:
        """A networkx graph whose edges have `relation` and, optionally, `timestamp` and, between items, `weight`, and
        whose nodes may have `type` and `name`.

        Item nodes are those of type "item" or, where no node has a type, those whose key is in `item_ids`. An
        undirected graph, or an edge with `both_ways=True`, is read in both directions.

        Raises:
            LKGError: an edge lacks its relation, or its weight is not a number from 0 up.
        """
        builder = _Builder()
        for relation in graph.graph.get("relations", ()):  # keeps the order of a vocabulary that `to_networkx` wrote
            builder.relations.setdefault(relation, len(builder.relations))
        typed = any("type" in data for _, data in graph.nodes(data=True))
        wanted = set(item_ids)
        nodes = {}
        for key, data in graph.nodes(data=True):
            raw = str(data.get("key", key))
            kind = data.get("type", ENTITY) if typed else (ITEM if raw in wanted else ENTITY)
            nodes[key] = builder.node(kind, raw, clean_text(data.get("name", "" if kind == USER else raw)))
        grouped: dict[tuple[str, bool], list[tuple[int, int, int, float]]] = {}
        for source, target, data in graph.edges(data=True):
            if "relation" not in data:
                raise LKGError(
                    f"Edge {source!r} -> {target!r} has attributes {sorted(data)} but no 'relation'. Every edge needs "
                    "one: `graph.add_edge(a, b, relation='DIRECTED_BY')`."
                )
            both_ways = bool(data.get("both_ways", not graph.is_directed()))
            stamp = int(data.get("timestamp", UNDATED))
            edge = nodes[source], nodes[target], stamp, _weight(data, source, target)
            grouped.setdefault((data["relation"], both_ways), []).append(edge)
        for (relation, both_ways), edges in grouped.items():
            builder.edges(relation, *zip(*edges, strict=True), both_ways=both_ways)
        return builder.build(item_nodes=[-1, *(builder.index.get((ITEM, raw), -1) for raw in item_ids)])

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
        width = self.num_nodes
        reverse_keys = set(
            ((self.targets[inverse] * np.int64(width) + sources[inverse]) * 4096 + codes[inverse] // 2).tolist()
        )
        for edge in np.flatnonzero(~inverse):
            source, target, relation = int(sources[edge]), int(self.targets[edge]), int(codes[edge]) // 2
            data: dict[str, Any] = {
                "relation": self.relations[relation],
                "both_ways": (source * width + target) * 4096 + relation in reverse_keys,
            }
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
        starts, stops = self.offsets[nodes], self.offsets[np.asarray(nodes) + 1]
        lengths = stops - starts
        which = np.repeat(np.arange(len(nodes)), lengths)
        edges = (
            np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths) + np.repeat(starts, lengths)
        )
        return which, self.edge_relations[edges], self.targets[edges]

    def item_of_node(self) -> np.ndarray:
        """Dense item of every node, 0 where the node is none, shape (N,)."""
        items = np.zeros(self.num_nodes, dtype=np.int64)
        present = np.flatnonzero(np.asarray(self.item_nodes) >= 0)
        items[np.asarray(self.item_nodes)[present]] = present
        return items

    def rated_items(self, user: str) -> np.ndarray:
        """Dense items that the user with this key has rated, oldest first, shape (M,)."""
        if RATED not in self.relations or USER not in self.entity_types:
            return np.zeros(0, dtype=np.int64)
        is_user = np.asarray(self.node_types) == self.entity_types.index(USER)
        nodes = np.flatnonzero(is_user & (np.asarray(self.node_keys).astype(str) == user))
        edges = np.flatnonzero(np.isin(self.edge_sources(), nodes))
        edges = edges[np.asarray(self.edge_relations)[edges] == 2 * self.relations.index(RATED)]
        items = self.item_of_node()[np.asarray(self.targets)[edges]]
        return items[np.lexsort((items, np.asarray(self.timestamps)[edges]))].astype(np.int64)

    @property
    def has_people(self) -> bool:
        """Whether there are nodes of users, or edges that say who rated what."""
        rated = RATED in self.relations and np.any(np.asarray(self.edge_relations) // 2 == self.relations.index(RATED))
        return USER in self.entity_types or bool(rated)

    def describe(self) -> str:
        counts = np.bincount(np.asarray(self.edge_relations) // 2, minlength=len(self.relations))
        weighted = (
            set(np.asarray(self.edge_relations)[~np.isnan(self.weights)] // 2) if self.weights is not None else ()
        )
        parts = ", ".join(
            f"{name} {count:,}{' with weights' if code in weighted else ''}"
            for code, (name, count) in enumerate(zip(self.relations, counts, strict=True))
        )
        return f"{self.num_nodes:,} nodes, {self.num_edges:,} edges ({parts})"

    # -- views ------------------------------------------------------------------------------------------------------

    def before(self, timestamp: int) -> KnowledgeGraph:
        """The graph as it was known just before `timestamp`: dated edges from then on are gone, undated facts stay.
        (Co-ratings have no dates any more, and stay, too.)"""
        return self._keep(np.asarray(self.timestamps) < timestamp)

    def without_relations(self, names: Iterable[str]) -> KnowledgeGraph:
        """The graph without the edges of some relations; the vocabulary stays, so a model still fits."""
        codes = [self.relations.index(name) for name in names if name in self.relations]
        return self._keep(~np.isin(np.asarray(self.edge_relations) // 2, codes))

    def shuffle_items(self, seed: int = 0) -> KnowledgeGraph:
        """The control: every item takes the place of another one. Degrees, relations and entities stay, the truth
        goes."""
        present = np.flatnonzero(np.asarray(self.item_nodes) >= 0)
        order = np.random.default_rng(seed).permutation(present)
        permuted = np.array(self.item_nodes)
        permuted[order] = permuted[np.roll(order, 1)]  # one cycle through all items: none stays where it was
        return replace(self, item_nodes=permuted)

    def people(self, user_ids: Sequence[str] = ()) -> np.ndarray:
        """Which nodes stand for people, shape (N,): those of type "user" or "person", whatever has RATED an item, and
        what is named like a user (its key or its name is an id), as follows. Items never are.

        - An id that is no number, or one of ten digits and more, means a user wherever it stands.
        - A shorter number, which may be a year or a count, means a user where the node has dated edges, as
          interactions do; in a graph without nodes of users, as one of facts alone, on any entity; and never on a
          value of an attribute.
        - A type of other nodes ("customer") of which nine in ten are named like users is one of people, all of it, if
          some of them are users by these rules, or at least half of all users are among them.

        Not found, since nothing says so: a user's number among values of attributes, or on one of many other nodes
        without a date; a user who is not in `user_ids` (but see `from_dataset`); an id within a longer text.

        Args:
            user_ids: of the users the graph goes with.
        """
        kinds = [self.entity_types.index(kind) for kind in (USER, PERSON) if kind in self.entity_types]
        people = np.isin(np.asarray(self.node_types), kinds)
        items = np.asarray(self.item_nodes)
        items = items[items >= 0]
        if len(user_ids):
            types = np.array(self.node_types)
            types[items] = -1
            edges, dated = np.asarray(self.timestamps) != UNDATED, np.zeros(self.num_nodes, dtype=bool)
            dated[self.edge_sources()[edges]] = dated[np.asarray(self.targets)[edges]] = True
            labels = (self.node_keys, self.node_names)
            people |= nodes_like_users(labels, types, self.entity_types, self.relations, dated, user_ids)
        if RATED in self.relations:
            rated = np.asarray(self.edge_relations) // 2 == self.relations.index(RATED)
            people[self.edge_sources()[rated]] = people[np.asarray(self.targets)[rated]] = True
        people[items] = False
        return people

    def with_weighted_edges(
        self, relation: str, sources: np.ndarray, targets: np.ndarray, weights: np.ndarray
    ) -> KnowledgeGraph:
        """The graph with further undated edges from item to item.

        Args:
            relation: one of `relations`.
            sources, targets (`np.ndarray`, shape (M,)): dense items.
            weights (`np.ndarray`, shape (M,)): how much each says.
        """
        count, item_nodes = len(sources), np.asarray(self.item_nodes, dtype=np.int64)
        own = np.full(self.num_edges, np.nan) if self.weights is None else self.weights
        starts = np.concatenate([self.edge_sources(), item_nodes[sources]])
        codes = np.concatenate([self.edge_relations, np.full(count, 2 * self.relations.index(relation))])
        ends = np.concatenate([self.targets, item_nodes[targets]])
        order = np.lexsort((ends, codes, starts))
        return replace(
            self,
            offsets=np.concatenate([[0], np.cumsum(np.bincount(starts, minlength=self.num_nodes))]),
            targets=ends[order].astype(np.int32),
            edge_relations=codes[order].astype(np.int16),
            timestamps=np.concatenate([self.timestamps, np.full(count, UNDATED)])[order],
            weights=np.concatenate([own, weights])[order].astype(np.float32),
        )

    def without_people(self, user_ids: Sequence[str] = ()) -> KnowledgeGraph:
        """The graph without people (see [`people`]) and all their edges, as it may be published; the vocabulary stays,
        so a model still fits. Co-ratings, which are RATED edges from item to item with a weight, stay too."""
        keep, nodes = ~self.people(user_ids), np.asarray(self.item_nodes)
        rated = np.zeros(self.num_edges, dtype=bool)
        if RATED in self.relations:
            rated = np.asarray(self.edge_relations) // 2 == self.relations.index(RATED)
            rated &= True if self.weights is None else np.isnan(self.weights)
        graph = self._keep(~rated & keep[self.edge_sources()] & keep[np.asarray(self.targets)])
        place = np.cumsum(keep) - 1
        return replace(
            graph,
            node_keys=self.node_keys[keep],
            node_names=self.node_names[keep],
            node_types=np.asarray(self.node_types)[keep],
            offsets=np.append(graph.offsets[:-1][keep], graph.num_edges),  # the others have no edges any more
            targets=place[np.asarray(graph.targets)].astype(np.int32),
            item_nodes=np.where(nodes >= 0, place[nodes], -1).astype(np.int32),
        )

    def with_numbered_people(self, user_ids: Sequence[str] = ()) -> KnowledgeGraph:
        """The graph with people (see [`people`]) named "1", "2", ... in an order that has nothing to do with their
        ids. Nodes that are named alike get the same number.

        The order follows a hash of the ids keyed with the graph: to undo it takes the raw data. Who knows part of what
        a person rated, and when, can still find the rest.
        """
        people = np.flatnonzero(self.people(user_ids))
        digest = hashlib.sha256()
        for part in (self.offsets, self.targets, self.timestamps):
            digest.update(np.ascontiguousarray(part).data)
        digest.update("\n".join(map(str, self.node_keys[people])).encode())
        key = digest.digest()
        hashes = [hashlib.sha256(key + str(raw).encode()).digest() for raw in self.node_keys[people]]
        order = np.arange(self.num_nodes)  # old node at each new place
        order[people] = people[sorted(range(len(people)), key=hashes.__getitem__)]
        place = np.argsort(order)
        keys, names = self.node_keys[order].astype(object), self.node_names[order].astype(object)
        numbers: dict[str, int] = {}
        for raw in keys[people]:
            numbers.setdefault(str(raw), len(numbers) + 1)
        keys[people], names[people] = [str(numbers[str(raw)]) for raw in keys[people]], ""
        sources, targets = place[self.edge_sources()], place[np.asarray(self.targets)]
        edges = np.lexsort((np.asarray(self.timestamps), targets, np.asarray(self.edge_relations), sources))
        return replace(
            self,
            node_keys=keys,
            node_names=names,
            node_types=np.asarray(self.node_types)[order],
            offsets=np.concatenate([[0], np.cumsum(np.bincount(sources, minlength=self.num_nodes))]),
            targets=targets[edges],
            edge_relations=np.asarray(self.edge_relations)[edges],
            timestamps=np.asarray(self.timestamps)[edges],
            weights=None if self.weights is None else np.asarray(self.weights)[edges],
        )

    def _keep(self, edges: np.ndarray) -> KnowledgeGraph:
        counts = np.add.reduceat(np.append(edges, False).astype(np.int64), self.offsets[:-1]) if len(edges) else 0
        counts = np.where(np.diff(self.offsets) > 0, counts, 0)
        weights = None if self.weights is None else np.asarray(self.weights)[edges]
        return replace(
            self,
            offsets=np.concatenate([[0], np.cumsum(counts)]),
            targets=np.asarray(self.targets)[edges],
            edge_relations=np.asarray(self.edge_relations)[edges],
            timestamps=np.asarray(self.timestamps)[edges],
            weights=None if weights is None or np.isnan(weights).all() else weights,
        )

    # -- keeping it -------------------------------------------------------------------------------------------------

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `graph.safetensors`, `nodes.parquet` and `graph.json` into `folder`, beside what else is there."""
        description = {
            "format_version": FORMAT_VERSIONS[self.weights is not None],
            "relations": list(self.relations),
            "entity_types": list(self.entity_types),
            "num_nodes": self.num_nodes,
            "num_edges": self.num_edges,
        }
        with atomic_files(folder) as temporary:
            arrays = {name: np.ascontiguousarray(getattr(self, name), dtype) for name, dtype in _ARRAYS.items()}
            if self.weights is not None:
                arrays["weights"] = np.ascontiguousarray(self.weights, np.float32)
            save_file(arrays, temporary / "graph.safetensors")
            nodes = pd.DataFrame({"key": self.node_keys.astype(str), "name": self.node_names.astype(str)})
            nodes.to_parquet(temporary / "nodes.parquet")
            write_json(temporary / "graph.json", description)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> KnowledgeGraph:
        """Map what `save_pretrained` wrote: the arrays stay on disk until they are touched.

        Raises:
            LKGError: a file is absent, damaged, or does not fit the others.
        """
        folder = Path(folder)
        description = read_json(folder / "graph.json")
        if description.get("format_version") not in FORMAT_VERSIONS:
            raise LKGError(
                f"{folder} holds a graph in format {description.get('format_version')}; this version reads "
                f"{FORMAT_VERSIONS}. Build the graph again, or install the version that wrote it."
            )
        try:
            nodes = pd.read_parquet(folder / "nodes.parquet")
            arrays = map_safetensors(folder / "graph.safetensors")
            graph = cls(
                relations=tuple(description["relations"]),
                entity_types=tuple(description["entity_types"]),
                node_keys=nodes["key"].to_numpy(dtype=object),
                node_names=nodes["name"].to_numpy(dtype=object),
                **{name: arrays[name] for name in _ARRAYS},
                weights=arrays["weights"] if description["format_version"] == 2 else None,
            )
            fits = (
                graph.num_nodes == description["num_nodes"] == len(nodes) == len(graph.node_types)
                and graph.num_edges == description["num_edges"] == len(graph.edge_relations) == len(graph.timestamps)
                and int(graph.offsets[-1]) == graph.num_edges
                and (graph.weights is None or len(graph.weights) == graph.num_edges)
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise LKGError(
                f"The knowledge graph in {folder} is damaged ({error}). Save or download it again."
            ) from error
        if not fits:
            raise LKGError(
                f"The files of the knowledge graph in {folder} do not fit each other. Save or download it again."
            )
        return graph


def map_safetensors(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a safetensors file as read-only arrays backed by the file.

    Raises:
        ValueError: the header is not whole or the data is shorter than it says.
    """
    dtypes = {"I64": np.int64, "I32": np.int32, "I16": np.int16, "F32": np.float32}
    with open(path, "rb") as stream:
        buffer = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    start = 8 + int.from_bytes(buffer[:8], "little")
    if start > len(buffer):
        raise ValueError(f"{path.name} ends inside its header")
    header = json.loads(buffer[8:start])
    header.pop("__metadata__", None)
    arrays = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        if start + end > len(buffer):
            raise ValueError(f"{path.name} ends inside {name}")
        dtype = np.dtype(dtypes[entry["dtype"]])
        array = np.frombuffer(buffer, dtype, count=(end - begin) // dtype.itemsize, offset=start + begin)
        arrays[name] = array.reshape(entry["shape"])
    return arrays


def _weight(data: Mapping[str, Any], source: Any, target: Any) -> float:
    weight = data.get("weight", np.nan)
    if isinstance(weight, bool) or not isinstance(weight, int | float | np.number) or weight < 0 or np.isinf(weight):
        raise LKGError(
            f"Edge {source!r} -> {target!r} has the weight {weight!r}. A weight is a number from 0 up: how much an "
            "edge between two items says. Remove the attribute, or name it otherwise if it means something else."
        )
    return float(weight)


def _joined(values: Sequence[str]) -> str:
    return "|".join(values) or "(none listed)"  # the published graph has a node for films without a genre, too


class _Builder:
    """Collects nodes and edges in any order; `build` sorts, removes repeated facts and packs them."""

    def __init__(self) -> None:
        self.index: dict[tuple[str, str], int] = {}
        self.names: list[str] = []
        self.relations: dict[str, int] = {}
        self.parts: list[tuple[np.ndarray, ...]] = []

    def node(self, kind: str, key: str, name: str) -> int:
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
        code = 2 * self.relations.setdefault(relation, len(self.relations))
        sources, targets = np.asarray(sources, dtype=np.int64), np.asarray(targets, dtype=np.int64)
        stamps = np.full(len(sources), UNDATED) if timestamps is None else np.asarray(timestamps, dtype=np.int64)
        weights = np.full(len(sources), np.nan) if weights is None else np.asarray(weights)
        weights = weights.astype(np.float32)
        self.parts.append((sources, np.full(len(sources), code), targets, stamps, weights))
        if both_ways:
            self.parts.append((targets, np.full(len(sources), code + 1), sources, stamps, weights))

    def add_triples(self, triples: Triples, item_node: Mapping[str, int], users: Collection[str] = ()) -> None:
        def node_of(entity: str) -> int:
            item = item_node.get(triples.item_of_entity.get(entity, ""))
            # ids of items are often numbers like those of users: a link says which of the two an entity is, also
            # where its item was dropped
            person = entity in users and entity not in triples.item_of_entity
            return self.node(PERSON if person else ENTITY, entity, "") if item is None else item

        entities = {entity: node_of(entity) for entity in dict.fromkeys([*triples.heads, *triples.tails])}
        heads = np.array([entities[entity] for entity in triples.heads], dtype=np.int64)
        tails = np.array([entities[entity] for entity in triples.tails], dtype=np.int64)
        facts: dict[str, np.ndarray] = {}
        for relation in dict.fromkeys(triples.relations):
            mask = triples.relations == relation
            facts[relation] = np.unique(np.stack([heads[mask], tails[mask]], axis=1), axis=0)
        for relation, pairs in merge_inverses(facts).items():
            self.edges(relation, pairs[:, 0], pairs[:, 1])

    def build(self, item_nodes: Sequence[int]) -> KnowledgeGraph:
        columns = [
            np.concatenate(column) if column else np.zeros(0, np.int64) for column in zip(*self.parts, strict=True)
        ]
        columns = columns or [np.zeros(0, np.int64)] * 5
        sources, codes, targets, stamps, _ = columns
        order = np.lexsort((stamps, targets, codes, sources))
        # of a fact given twice the earliest date stays
        ends = np.stack([sources[order], codes[order], targets[order]])
        order = order[np.append(True, (np.diff(ends) != 0).any(axis=0))[: len(order)]]
        sources, codes, targets, stamps, weights = (column[order] for column in columns)
        kinds = list(dict.fromkeys(kind for kind, _ in self.index))
        return KnowledgeGraph(
            relations=tuple(self.relations),
            entity_types=tuple(kinds),
            node_keys=np.array([key for _, key in self.index], dtype=object),
            node_names=np.array(self.names, dtype=object),
            node_types=np.array([kinds.index(kind) for kind, _ in self.index], dtype=np.int16),
            offsets=np.concatenate([[0], np.cumsum(np.bincount(sources, minlength=len(self.index)))]).astype(np.int64),
            targets=targets.astype(np.int32),
            edge_relations=codes.astype(np.int16),
            timestamps=stamps.astype(np.int64),
            item_nodes=np.asarray(item_nodes, dtype=np.int32),
            weights=None if np.isnan(weights).all() else weights,
        )
