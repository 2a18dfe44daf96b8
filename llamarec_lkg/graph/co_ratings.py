"""Co-ratings: what the ratings of all people together say about pairs of items, without any of the people.

The evidence along RATED for somebody unknown is a sum over people, of whom each ties the items that he or she has
rated. Summed up beforehand it is one weight a pair of items. A graph with these in the place of people gives strangers
the same evidence, and holds no one's ratings.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from tqdm.auto import tqdm

from ..data.schema import RATED
from .evidence import EvidenceIndex
from .knowledge_graph import KnowledgeGraph


MIN_PEOPLE, PER_ITEM = 5, 100


DECIMALS = 3


def has_co_ratings(graph: KnowledgeGraph) -> bool:
    """Whether RATED has edges that stand for many people: those with a weight."""
    if graph.weights is None or RATED not in graph.relations:
        return False
    rated = np.asarray(graph.edge_relations) // 2 == graph.relations.index(RATED)
    return bool((rated & ~np.isnan(graph.weights)).any())


def with_co_ratings(
    graph: KnowledgeGraph,
    user_ids: Sequence[str] = (),
    *,
    min_people: int = MIN_PEOPLE,
    per_item: int = PER_ITEM,
    progress: bool = False,
) -> KnowledgeGraph:
    """The graph without people, in which edges RATED between items say how strongly people tie them.

    Few people make no weight, and no weight is exact; this is aggregation, not differential privacy. Who knows what
    was published before and after one person's ratings came may still learn something of them.

    Args:
        graph: with people; one without any comes back as it is, with the co-ratings it may have.
        user_ids: of the users the graph goes with; see [`KnowledgeGraph.people`].
        min_people: a pair that fewer people rated is left out.
        per_item: how many others each item is tied to, the strongest first; the ties of others to it come on top.
        progress: whether to show a bar over items.
    """
    public = graph.without_people(user_ids)
    if RATED not in graph.relations:
        return public
    index, relation = EvidenceIndex.from_graph(graph), graph.relations.index(RATED)
    rows = index.history_rows
    owners = np.repeat(np.arange(graph.num_items + 1), np.diff(rows.offsets))
    by_people = (index.column_relation == relation) & (graph.item_of_node()[index.column_node] == 0)
    rated = np.flatnonzero(by_people[rows.columns])
    people, columns = np.unique(rows.columns[rated], return_inverse=True)
    items, weights = owners[rated], rows.weights[rated].astype(np.float64)
    order = np.argsort(columns, kind="stable")
    members, shares = items[order], weights[order]
    member_starts = np.searchsorted(columns[order], np.arange(len(people) + 1))
    item_starts = np.searchsorted(items, np.arange(graph.num_items + 2))
    found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for item in tqdm(range(1, graph.num_items + 1), desc="co-ratings", unit="item", disable=not progress):
        own = slice(*item_starts[item : item + 2])
        spans = [slice(*member_starts[column : column + 2]) for column in columns[own]]
        if not spans:
            continue
        others = np.concatenate([members[span] for span in spans])
        ties = np.concatenate([shares[span] * weight for span, weight in zip(spans, weights[own], strict=True)])
        near, places, count = np.unique(others, return_inverse=True, return_counts=True)
        strength = np.bincount(places, ties).round(DECIMALS)
        strength[(count < min_people) | (near == item)] = 0.0
        best = np.argsort(-strength, kind="stable")[:per_item]
        best = best[strength[best] > 0]
        found.append((np.full(len(best), item), near[best], strength[best]))
    if not sum(len(best) for _, best, _ in found):
        return public
    sources, targets, strength = (np.concatenate(part) for part in zip(*found, strict=True))
    pairs = np.sort(np.stack([sources, targets]), axis=0)
    (sources, targets), first = np.unique(pairs, axis=1, return_index=True)
    public = public.without_relations([RATED])  # former co-ratings: the people are here, and say it themselves
    return public.with_weighted_edges(RATED, sources, targets, strength[first])
