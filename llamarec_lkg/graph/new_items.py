"""Items that come later: a graph that knows them, too, with the entities that they share with others."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from ..data.schema import ItemTable
from ..utils.errors import LKGError
from .builder import ITEM


if TYPE_CHECKING:
    from .knowledge_graph import KnowledgeGraph


def grown(graph: KnowledgeGraph, items: ItemTable) -> KnowledgeGraph:
    """As `KnowledgeGraph.with_items` says."""
    strange = sorted(set(items.attributes) - set(graph.relations))
    index = {
        (graph.entity_types[kind], str(key)): node
        for node, (kind, key) in enumerate(zip(graph.node_types, graph.node_keys, strict=True))
    }
    known = [raw for raw in items.ids if (ITEM, raw) in index]
    if strange or known:
        raise LKGError(
            f"The new items bring the relations {strange} that the graph does not have (it has "
            f"{list(graph.relations)}), and the items {known[:3]} that it has. Leave both out."
        )
    names, links = [], []
    new_items = []
    for row, (raw, title) in enumerate(zip(items.ids, items.titles, strict=True)):
        new_items.append(index.setdefault((ITEM, raw), len(index)))
        names.append(title)
        for relation, cells in items.attributes.items():
            for value in cells[row]:
                node = index.setdefault((relation, value), len(index))
                if node == graph.num_nodes + len(names):
                    names.append(value)
                links.append((new_items[-1], 2 * graph.relations.index(relation), node))
    kinds = list(dict.fromkeys([*graph.entity_types, *(kind for kind, _ in index)]))
    starts, codes, ends = np.array(links, dtype=np.int64).reshape(-1, 3).T
    added = list(index)[graph.num_nodes :]
    more = replace(
        graph,
        entity_types=tuple(kinds),
        node_keys=np.concatenate([graph.node_keys, np.array([key for _, key in added], dtype=object)]),
        node_names=np.concatenate([graph.node_names, np.array(names, dtype=object)]),
        node_types=np.concatenate([graph.node_types, [kinds.index(kind) for kind, _ in added]]).astype(np.int32),
        offsets=np.concatenate([graph.offsets, np.full(len(added), graph.offsets[-1])]),
        item_nodes=np.concatenate([graph.item_nodes, new_items]).astype(np.int32),
    )
    both = np.concatenate([starts, ends]), np.concatenate([codes, codes + 1]), np.concatenate([ends, starts])
    return more.with_edges(*both, np.full(2 * len(links), np.nan))
