"""Rows of metrics over the same targets: means, intervals over resampled users, and paired differences."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from .metrics import bootstrap_interval, metrics_per_user


REFERENCE = "retriever"
COMPARED_METRICS = ("ndcg@10", "mrr@10", "recall@10")
SLICE_METRICS = ("ndcg@10", "recall@10")

Measures = Mapping[str, Mapping[str, np.ndarray]]  # name of a row -> metric -> values of the targets, shape (N,)


def comparison_rows(
    measures: Measures,
    *,
    reference: str = REFERENCE,
    clusters: np.ndarray | None = None,
    weights: np.ndarray | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Means, bootstrap intervals and paired differences to the row `reference`.

    Args:
        measures: name of a row -> metric -> values of every target, in the same order in all rows, shape (N,).
        clusters, weights (shape (N,), optional): as `metrics.bootstrap_interval` takes them.
    """
    values = {(name, metric): column for name, row in measures.items() for metric, column in row.items()}
    difference = {(name, metric): column - measures[reference][metric] for (name, metric), column in values.items()}
    sampling = {"clusters": clusters, "weights": weights, "resamples": resamples, "seed": seed}
    intervals, difference_intervals = (bootstrap_interval(columns, **sampling) for columns in (values, difference))

    def by_metric(name: str, found: Mapping[tuple[str, str], Any]) -> dict[str, Any]:
        return {metric: found[name, metric] for metric in measures[name]}

    def mean(columns: Mapping[tuple[str, str], np.ndarray]) -> dict[tuple[str, str], float]:
        return {key: float(np.average(column, weights=weights)) for key, column in columns.items()}

    means, mean_differences = mean(values), mean(difference)
    return [
        {
            "name": name,
            "metrics": by_metric(name, means),
            "ci95": by_metric(name, intervals),
            f"difference_to_{reference}": by_metric(name, mean_differences),
            "difference_ci95": by_metric(name, difference_intervals),
        }
        for name in measures
    ]


def rows_of_seeds(
    ranks: Mapping[str, np.ndarray], found: np.ndarray | None = None, *, clusters: np.ndarray, **sampling: Any
) -> list[dict[str, Any]]:
    """`comparison_rows` of the means over seeds, over all targets or those found. A row of fewer seeds than the
    retriever stands beside the retriever of the first seeds, over what these found.

    Args:
        ranks: name of a row -> rank of each target, shape (S, N).
        found (`np.ndarray` of `bool`, shape (S, N), optional): targets in the means. Of several seeds, a target counts
            as often as it was found; rows of seeds that found none are left out.
    """
    rows: dict[str, dict[str, Any]] = {}
    seeds = {name: min(len(values), len(ranks[REFERENCE])) for name, values in ranks.items()}
    for count in dict.fromkeys(seeds.values()):
        names = [name for name, number in seeds.items() if number == count]
        # where all seeds are there, what has one seed (or more than the retriever) stands for them, or for itself
        first = None if count == len(ranks[REFERENCE]) else count
        group = {name: ranks[name][:first] for name in dict.fromkeys([REFERENCE, *names])}
        if found is None:
            compared = comparison_rows({n: per_target(v) for n, v in group.items()}, clusters=clusters, **sampling)
        else:
            weights = found[:first].mean(axis=0)
            chosen = weights > 0
            if not chosen.any():
                continue
            measures = {name: per_target(values[:, chosen], found[:first, chosen]) for name, values in group.items()}
            how = {"clusters": clusters[chosen], "weights": weights[chosen], **sampling}
            compared = comparison_rows(measures, **how)
        rows |= {row["name"]: row for row in compared if row["name"] in names}
    return [rows[name] for name in ranks if name in rows]


def compared_pairs(
    ranks: Mapping[str, np.ndarray],
    pairs: Iterable[tuple[str, str]],
    *,
    clusters: np.ndarray,
    resamples: int,
    seed: int,
) -> list[dict[str, Any]]:
    """Paired differences `{"row", "minus", "metric", "difference", "ci95"}` of two rows in each of
    `COMPARED_METRICS`, over the seeds that both have. Pairs of which a row is absent are left out.

    Args:
        ranks: name of a row -> rank of each target, shape (S, N).
    """
    columns = {}
    for row, minus in dict.fromkeys(pairs):
        if row in ranks and minus in ranks:
            # where the retriever has one seed for all, every row of one seed stands for all
            count = None if len(ranks[REFERENCE]) == 1 else min(len(ranks[row]), len(ranks[minus]))
            one, other = (per_target(ranks[name][:count]) for name in (row, minus))
            columns |= {(row, minus, metric): one[metric] - other[metric] for metric in COMPARED_METRICS}
    if not columns:
        return []
    intervals = bootstrap_interval(columns, clusters=clusters, resamples=resamples, seed=seed)
    return [
        {
            **dict(zip(("row", "minus", "metric"), key, strict=True)),
            "difference": float(column.mean()),
            "ci95": list(intervals[key]),
        }
        for key, column in columns.items()
    ]


def slice_rows(
    ranks: Mapping[str, np.ndarray],
    slices: Mapping[str, np.ndarray],
    *,
    clusters: np.ndarray,
    resamples: int,
    seed: int,
) -> list[dict[str, Any]]:
    """`{"slice", "value", "targets", "rows"}` of the targets of each label of each kind of slice; the rows have
    `SLICE_METRICS` and their paired difference to the retriever. Labels that begin with a number are in its order.
    Rows of fewer seeds than the retriever are left out: the columns of a table are means over the same seeds.

    Args:
        ranks: name of a row -> rank of each target, shape (S, N).
    """
    whole = len(ranks[REFERENCE])
    measures = {name: per_target(values) for name, values in ranks.items() if len(values) >= whole}
    found = []
    for kind, labels in slices.items():
        for value in sorted(set(np.asarray(labels).tolist()), key=_natural):
            chosen = np.asarray(labels) == value
            within = {name: {m: row[m][chosen] for m in SLICE_METRICS} for name, row in measures.items()}
            rows = comparison_rows(within, clusters=clusters[chosen], resamples=resamples, seed=seed)
            rows = [{key: part for key, part in row.items() if key != "ci95"} for row in rows]
            found.append({"slice": kind, "value": value, "targets": int(chosen.sum()), "rows": rows})
    return found


def per_target(ranks: np.ndarray, counted: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Metric -> its mean over seeds for each target, shape (N,).

    Args:
        ranks (shape (S, N)).
        counted (`np.ndarray` of `bool`, shape (S, N) or (1, N), optional): the seeds that a target's mean is over; 0
            where there is none.
    """
    values = metrics_per_user(ranks)
    if counted is None:
        return {metric: column.mean(axis=0) for metric, column in values.items()}
    ranked = np.broadcast_to(counted, np.broadcast_shapes(counted.shape, ranks.shape))
    number = np.maximum(ranked.sum(axis=0), 1)
    return {metric: (column * ranked).sum(axis=0) / number for metric, column in values.items()}


def recommended_facts(recommended: np.ndarray, training_counts: np.ndarray) -> dict[str, float]:
    """What a row recommends: the share of the catalogue that somebody gets, and how often it was trained on in the
    mean. Of several seeds the mean.

    Args:
        recommended (shape (M, 10) or (S, M, 10)): dense items, 0 for none.
        training_counts (shape (num_items + 1,)).
    """
    lists = np.asarray(recommended)
    lists = lists.reshape(-1, *lists.shape[-2:])
    items = [seed[seed > 0] for seed in lists]
    coverage = np.mean([len(np.unique(found)) for found in items]) / (len(training_counts) - 1)
    return {
        "coverage@10": float(coverage),
        "popularity@10": float(np.mean([training_counts[found].mean() for found in items])),
    }


def _natural(label: str) -> tuple[float, str]:
    number = re.match(r"\d+", label)
    return float(number.group()) if number else np.inf, label
