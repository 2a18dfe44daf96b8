"""MRR, NDCG and Recall as `evaluate.Metric`s. Import this module by name: the package itself does not need `evaluate`,
which takes seconds to import. `metric_spaces.py` copies the source of what stands here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate
import numpy as np

from ..utils.errors import LKGError
from .metrics import MISS, metrics_per_user, require_finite, target_ranks


def ranks_from_scores(predictions: Sequence[Sequence[float]], references: Sequence[int | None]) -> np.ndarray:
    """Ranks of the targets in lists of scores, shape (N,); a score of -inf is no candidate."""
    lengths = np.array([len(scores) for scores in predictions], dtype=np.int64)
    labels = np.array([-1 if label is None else label for label in references], dtype=np.int64)
    beyond = np.flatnonzero(labels >= lengths)
    if len(beyond):
        raise LKGError(
            f"List {beyond[0]} has {lengths[beyond[0]]} scores, but its reference is {labels[beyond[0]]}. A reference "
            "is the index of the target in its list, from 0; or -1 or None where the list does not hold it."
        )
    table = np.full((len(lengths), max(1, lengths.max(initial=1))), -np.inf)
    for row, scores in enumerate(predictions):
        table[row, : lengths[row]] = scores
    real = ~np.isneginf(table)
    require_finite(table[real])
    return target_ranks(table, labels, real)


def ranks_from_items(predictions: Sequence[Sequence[str]], references: Sequence[str | None]) -> np.ndarray:
    """Ranks of the targets in lists of item ids, best first, shape (N,)."""
    ranks = np.full(len(predictions), MISS)
    for row, (items, target) in enumerate(zip(predictions, references, strict=True)):
        if len(set(items)) < len(items):
            twice = next(item for item in items if items.count(item) > 1)
            raise LKGError(f"List {row} names item {twice!r} more than once. Rank each item once.")
        if target is not None and target in items:
            ranks[row] = items.index(target) + 1
    return ranks


class RankingMetric:
    """What the three metrics share. One target a list: the leave-one-out protocol of sequential recommendation."""

    metric = ""
    text = ""
    citation_text = ""
    usage = """
Args:
    predictions: scores of each list's candidates, higher is better, lists of any length. Ties are broken by position,
        as a stable sort would; a score of -inf is no candidate. With the configuration "items": item ids, best first.
    references: index of the target in its list; -1 or None where the list does not hold it, which scores 0. With the
        configuration "items": id of the target.
    k: where to cut the lists, a number or several; None looks at the whole list. Default 10.
Returns:
    the mean over all lists for each k, under names such as "ndcg@10" (without "@" for k=None).
"""

    def _info(self) -> evaluate.MetricInfo:
        if self.config_name not in ("default", "scores", "items"):
            raise LKGError(
                f"There is no configuration {self.config_name!r}. It is 'scores' (the default: predictions are "
                "scores, references indices) or 'items' (predictions are ranked item ids, references ids)."
            )
        kinds = ("string", "string") if self.config_name == "items" else ("float64", "int64")
        return evaluate.MetricInfo(
            description=self.text,
            citation=self.citation_text,
            inputs_description=self.usage,
            features=datasets.Features(
                {"predictions": datasets.List(datasets.Value(kinds[0])), "references": datasets.Value(kinds[1])}
            ),
        )

    def add_batch(self, *, predictions: Sequence | None = None, references: Sequence | None = None, **kwargs: Any):
        """Take lists and their references, to be computed later."""
        if predictions is None or references is None or len(predictions) != len(references):
            raise LKGError("Each list of predictions needs a reference, and each reference its list.")
        references = references if isinstance(references, list | tuple) else np.asarray(references).tolist()
        ids = self.config_name == "items"
        for row, (items, target) in enumerate(zip(predictions, references, strict=True)):
            numbers = np.asarray(items).dtype.kind in "biuf" and isinstance(target, int | np.integer | None)
            if np.ndim(items) != 1 or not (ids or numbers):
                raise LKGError(
                    f"List {row} is {items!r} with the reference {target!r}. Needed are a list of scores and an index "
                    "or, with the configuration 'items', a list of item ids, best first, and an id."
                )
        if ids:  # 7 and "7" are one id
            predictions = [[str(item) for item in np.asarray(items).tolist()] for items in predictions]
            references = [None if target is None else str(target) for target in references]
        super().add_batch(predictions=predictions, references=references, **kwargs)

    def add(self, *, prediction: Sequence | None = None, reference: Any = None, **kwargs: Any):
        """Take one list and its reference; `evaluate.combine` names them in the plural."""
        prediction, reference = kwargs.get("predictions", prediction), kwargs.get("references", reference)
        self.add_batch(predictions=[prediction], references=[reference])

    def _compute(
        self, predictions: Sequence, references: Sequence, k: int | Sequence[int] | None = 10
    ) -> dict[str, float]:
        ks = [k] if k is None or isinstance(k, int | np.integer) else list(k)
        if not ks or not all(cut is None or (isinstance(cut, int | np.integer) and cut >= 1) for cut in ks):
            raise LKGError(f"k is {k!r}; it is a whole number, 1 or more, several of them, or None.")
        ranks = (ranks_from_items if self.config_name == "items" else ranks_from_scores)(predictions, references)
        if not len(ranks):
            raise LKGError("There are no lists. Give at least one list of predictions with its reference.")
        cuts = [2**62 if cut is None else int(cut) for cut in ks]  # 2**62 is beyond every hit and before a miss
        values = metrics_per_user(ranks, cuts)
        names = [self.metric if cut is None else f"{self.metric}@{cut}" for cut in ks]
        return {name: float(values[f"{self.metric}@{cut}"].mean()) for name, cut in zip(names, cuts, strict=True)}


class MRR(RankingMetric, evaluate.Metric):
    metric = "mrr"
    text = (
        "Mean reciprocal rank (MRR@k) for recommendation: the mean over all lists of 1 / rank of the target item, 0 "
        "where it is not among the first k."
    )
    citation_text = """@inproceedings{voorhees1999trec8,
  title     = {The {TREC}-8 Question Answering Track Report},
  author    = {Voorhees, Ellen M.},
  booktitle = {Proceedings of the Eighth Text REtrieval Conference},
  year      = {1999}
}"""


class NDCG(RankingMetric, evaluate.Metric):
    metric = "ndcg"
    text = (
        "Normalised discounted cumulative gain (NDCG@k) for recommendation with one target item a list: the mean over "
        "all lists of 1 / log2(rank + 1), 0 where the target is not among the first k. The ideal gain is 1."
    )
    citation_text = """@article{jarvelin2002cumulated,
  title   = {Cumulated Gain-Based Evaluation of {IR} Techniques},
  author  = {J{\\"a}rvelin, Kalervo and Kek{\\"a}l{\\"a}inen, Jaana},
  journal = {ACM Transactions on Information Systems},
  volume  = {20},
  number  = {4},
  year    = {2002}
}"""


class Recall(RankingMetric, evaluate.Metric):
    metric = "recall"
    text = (
        "Recall@k for recommendation with one target item a list: the share of lists whose target is among the first "
        "k. With one target this is also known as the hit rate (HR@k)."
    )


METRICS: tuple[type[RankingMetric], ...] = (MRR, NDCG, Recall)
