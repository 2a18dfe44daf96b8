"""What is recommended of items that nobody had taken when the models were trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from ..data.hidden_items import hide_items
from ..data.schema import PADDING_ITEM
from ..evaluation.report import POPULARITY, REFERENCE, Report
from ..evaluation.slices import REPEATS
from ..graph.evidence import EvidenceIndex
from ..graph.knowledge_graph import KnowledgeGraph
from ..retrieval.base import PopularityRetriever, Retriever, retriever_ranks
from ..retrieval.training import RetrieverTrainingArguments
from ..utils.errors import LKGError
from .workflow import Workflow


EVIDENCE = "evidence"
FOLDER = "hidden-items"  # of the report, in that of the benchmark
RANKED = 20  # "found" are targets among so many of the best by the row "retriever"


def hidden_items_report(
    workflow: Workflow, retrievers: Mapping[str, RetrieverTrainingArguments], share: float
) -> Report:
    """A report on targets among items that were hidden from training, ranked in the whole catalogue: popularity, the
    graph's evidence, and retrievers, each trained without these items.

    Args:
        retrievers: row name -> settings; "retriever" is among them.
        share: of all items that are hidden, drawn by the run's seed.

    Raises:
        LKGError: no item is hidden, or none of them is a test target.
    """
    data, section, seed = workflow.prepare(), workflow.config.evaluation, workflow.config.retriever.seed
    dataset, hidden = hide_items(data.dataset, share, seed)
    graph = workflow.graph_of(dataset)
    rows: dict[str, Retriever] = {
        POPULARITY: PopularityRetriever.from_dataset(dataset),
        EVIDENCE: _Evidence(graph),
    }
    for name, args in retrievers.items():
        title = f"{name}, without hidden items"
        rows[name] = workflow.retriever(f"hidden-items-{name}", dataset, title, replace(args, seed=seed))
    positions = dataset.positions("test")
    asked = hidden[dataset.item_sequence[positions]]
    if not asked.any():
        raise LKGError(f"No test target is among the {int(hidden.sum())} hidden items. Hide a larger share.")
    ranks = {name: retriever_ranks(dataset, one, "test")[asked] for name, one in rows.items()}
    protocol = {
        "dataset": data.bundle.name,
        "split": "test",
        "users": dataset.num_users,
        "items": dataset.num_items,
        "targets_are": f"those among {int(hidden.sum()):,} items that training never saw",
        "graph": f"without what training says of hidden items: {graph.describe()}",
        "repeats": REPEATS[dataset.settings.repeats],
        "candidates": RANKED,
        "training_seed": seed,
    }
    return Report.from_ranks(
        ranks,
        ranks[REFERENCE] <= RANKED,
        protocol,
        users=dataset.user_of(positions)[asked],
        comparisons=[(name, POPULARITY) for name in rows if name != POPULARITY]
        + [(name, EVIDENCE) for name in retrievers],
        resamples=section.resamples,
        seed=section.seed,
    )


class _Evidence:
    """A graph's evidence by itself as a retriever, all relations alike."""

    def __init__(self, graph: KnowledgeGraph):
        self.index = EvidenceIndex.from_graph(graph)
        self.num_items = graph.num_items

    def score(self, histories: Sequence[np.ndarray]) -> np.ndarray:
        scores = self.index.catalogue(histories, np.ones((len(histories), self.index.num_relations)))
        scores[:, PADDING_ITEM] = -np.inf
        return scores
