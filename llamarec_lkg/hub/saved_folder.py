"""Opening a saved folder, and checking that its files belong together."""

from __future__ import annotations

from collections.abc import Sequence

from ..graph.knowledge_graph import KnowledgeGraph
from ..utils.errors import LKGError
from .layout import PROCESSOR_FILE


def check_graph(name: str, relations: Sequence[str], graph: KnowledgeGraph, item_ids: Sequence[str]) -> None:
    """Raise `LKGError` where the graph in `name` is not the one that relations and items were saved with."""
    if list(graph.relations) != list(relations):
        raise LKGError(
            f"The graph in {name} has the relations {list(graph.relations)}, its {PROCESSOR_FILE} {list(relations)}. "
            "The files are from two places; save the processor again."
        )
    keys = [str(graph.node_keys[node]) if node >= 0 else None for node in graph.item_nodes[1:]]
    other = [(key, raw) for key, raw in zip(keys, item_ids, strict=False) if key not in (None, raw)]
    if other or len(keys) != len(item_ids):
        first = f", and {other[0][0]!r} stands where {other[0][1]!r} should" if other else ""
        raise LKGError(
            f"The graph in {name} was made for other items: it has {len(keys):,}, items.parquet {len(item_ids):,}"
            f"{first}. Build the graph from the same data set as the titles, and save the processor again."
        )
