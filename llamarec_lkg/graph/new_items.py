"""Items that come later: a graph that knows them, too, with the entities that they share with others."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from ..data.schema import ENTITY, ITEM, USER, ItemTable
from ..utils.errors import LKGError
from .builder import joined_value


if TYPE_CHECKING:
    from .knowledge_graph import KnowledgeGraph


logger = logging.getLogger(__name__)


def grown(graph: KnowledgeGraph, items: ItemTable) -> KnowledgeGraph:
    """As `KnowledgeGraph.with_items` says."""
    strange = sorted(set(items.attributes) - set(graph.relations))
    ids = set(graph.node_keys[_of_kind(graph, ITEM)])
    known = [raw for raw in items.ids if raw in ids]
    if strange or known:
        raise LKGError(
            f"The new items bring the relations {strange} that the graph does not have (it has "
            f"{list(graph.relations)}), and the items {known[:3]} that it has. Leave both out."
        )
    new_items = [graph.num_nodes + row for row in range(len(items))]
    nodes = [(ITEM, raw, title) for raw, title in zip(items.ids, items.titles, strict=True)]  # kind, key, name
    links = []
    for relation, cells in items.attributes.items():
        values, code = _values(graph, relation), _code(graph, relation)
        for item, cell in zip(new_items, _joined(graph, relation, cells), strict=True):
            for value in cell:
                node = values.setdefault(value, graph.num_nodes + len(nodes))
                if node == graph.num_nodes + len(nodes):
                    nodes.append((relation, value, value))
                links.append((item, code, node))
    kinds = list(dict.fromkeys([*graph.entity_types, *(kind for kind, _, _ in nodes)]))
    starts, codes, ends = np.array(links, dtype=np.int64).reshape(-1, 3).T
    more = replace(
        graph,
        entity_types=tuple(kinds),
        node_keys=np.concatenate([graph.node_keys, np.array([key for _, key, _ in nodes], dtype=object)]),
        node_names=np.concatenate([graph.node_names, np.array([name for _, _, name in nodes], dtype=object)]),
        node_types=np.concatenate([graph.node_types, [kinds.index(kind) for kind, _, _ in nodes]]).astype(np.int32),
        offsets=np.concatenate([graph.offsets, np.full(len(nodes), graph.offsets[-1])]),
        item_nodes=np.concatenate([graph.item_nodes, new_items]).astype(np.int32),
    )
    uses = Counter(ends.tolist())
    lonely = [nodes[node - graph.num_nodes] for node in uses if node >= graph.num_nodes and uses[node] == 1]
    if lonely:
        named = ", ".join(f"{relation} {value!r}" for relation, value, _ in lonely[:3])
        logger.warning(
            f"{len(lonely)} of the new items' {len(uses)} attribute values are no entities of the graph, so they tie "
            f"their items to no other: {named}{', ...' if len(lonely) > 3 else ''}. Compare how the graph spells them."
        )
    both = np.concatenate([starts, ends]), np.concatenate([codes, codes ^ 1]), np.concatenate([ends, starts])
    return more.with_edges(*both, np.full(2 * len(links), np.nan))


def _values(graph: KnowledgeGraph, relation: str) -> dict[str, int]:
    """The node that each value of a relation means: the relation's own, an entity of that key, or what the relation
    ties; else the one entity that is called so."""
    edges = np.asarray(graph.edge_relations) // 2 == graph.relations.index(relation)
    tied = np.unique(np.asarray(graph.targets)[edges])
    tied = tied[~np.isin(tied, [*_of_kind(graph, ITEM), *_of_kind(graph, USER)])]
    own, entities, names, keys = _of_kind(graph, relation), _of_kind(graph, ENTITY), graph.node_names, graph.node_keys
    ways = ((entities, names), (tied, names), (tied, keys), (entities, keys), (own, keys))  # the last ones first
    found: dict[str, int] = {}
    for nodes, words in ways:
        times = Counter(words[nodes].tolist())
        found |= {word: int(node) for node in nodes if times[word := words[node]] == 1 and word}
    return found


def _code(graph: KnowledgeGraph, relation: str) -> int:
    """Code of the relation's edges as items have them: where facts begin at what items share, against its name."""
    code = 2 * graph.relations.index(relation)
    at_items = graph.item_of_node()[graph.edge_sources()] > 0
    forward, backward = (np.count_nonzero(at_items & (graph.edge_relations == one)) for one in (code, code + 1))
    return code + int(backward > forward)


def _joined(graph: KnowledgeGraph, relation: str, cells: Sequence[Sequence[str]]) -> list[Sequence[str]]:
    """The values of each item, joined where those in the graph are (`whole_values`): no single one holds a bar."""
    keys = set(graph.node_keys[_of_kind(graph, relation)])
    if not any("|" in key for key in keys):
        return list(cells)
    return [[joined_value(cell)] if cell or joined_value(cell) in keys else [] for cell in cells]


def _of_kind(graph: KnowledgeGraph, kind: str) -> np.ndarray:
    """Nodes of a type."""
    code = graph.entity_types.index(kind) if kind in graph.entity_types else -1
    return np.flatnonzero(graph.node_types == code)
