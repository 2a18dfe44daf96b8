"""The report: every ranker beside its own retriever, on the same users, with intervals, as json, table and picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..utils.errors import LKGError
from ..utils.files import atomic_file, write_json
from .metrics import MISS, bootstrap_interval, metrics_per_user


REFERENCE, RANKER, CEILING = "retriever", "ranker", "ceiling"

SHOWN_METRICS = ("mrr@10", "ndcg@5", "ndcg@10", "recall@1", "recall@5", "recall@10")


@dataclass(frozen=True)
class Report:
    """Rows of metrics over the same targets, each with intervals and its paired difference to the retriever.

    Args:
        protocol: what was evaluated and how: data, split, sizes, seeds, command.
        rows: `{"name", "metrics", "ci95", "difference_to_retriever", "difference_ci95"}`, over all targets.
        reranked_rows: the same over the targets that the retriever found.
    """

    protocol: dict[str, Any]
    rows: list[dict[str, Any]]
    reranked_rows: list[dict[str, Any]]

    @classmethod
    def from_ranks(
        cls,
        ranks: Mapping[str, np.ndarray],
        found: np.ndarray,
        protocol: Mapping[str, Any],
        *,
        resamples: int = 2000,
        seed: int = 0,
    ) -> Report:
        """
        Args:
            ranks: row name -> rank of each target, shape (N,), `MISS` where it is not ranked. One row is "retriever".
            found (`np.ndarray` of `bool`, shape (N,)): targets among the retriever's candidates.

        Raises:
            LKGError: there is no retriever row, or rows differ in length.
        """
        lengths = {name: len(values) for name, values in ranks.items()} | {"found": len(found)}
        if REFERENCE not in ranks or len(set(lengths.values())) > 1:
            raise LKGError(f"A report compares rows on the same targets with a {REFERENCE!r} row; found {lengths}.")
        ranks = {**ranks, CEILING: np.where(found, 1, MISS)}

        def rows(chosen: np.ndarray) -> list[dict[str, Any]]:
            measures = {name: metrics_per_user(values[chosen]) for name, values in ranks.items()}
            return comparison_rows(measures, resamples=resamples, seed=seed)

        sizes = {"targets": len(found), "retrieved": int(found.sum()), "bootstrap": resamples, "seed": seed}
        everyone = np.ones(len(found), dtype=bool)
        return cls({**protocol, **sizes}, rows(everyone), rows(found) if found.any() else [])

    def row(self, name: str) -> dict[str, Any]:
        return next(row for row in self.rows if row["name"] == name)

    def to_markdown(self) -> str:
        """Two tables, and one sentence a ranker that says whether it beats its retriever."""
        title = f"# Ranking on {self.protocol.get('dataset', 'data')}, {self.protocol.get('split', 'test')} split"
        lines = [title, "", *(f"- {key}: {value}" for key, value in self.protocol.items())]
        lines += ["", "## All targets (one that was not retrieved counts as a miss)", "", *table(self.rows)]
        lines += ["", "## Re-ranked targets only (the retriever found them)", "", *table(self.reranked_rows)]
        verdicts = [verdict(row) for row in self.rows if row["name"] not in (REFERENCE, CEILING, "popularity")]
        return "\n".join([*lines, "", "## In words", "", *verdicts, ""])

    def save(self, folder: str | Path) -> None:
        """Write `report.json`, `report.md` and `report.png`."""
        folder = Path(folder)
        write_json(folder / "report.json", vars(self))
        with atomic_file(folder / "report.md") as temporary:
            temporary.write_text(self.to_markdown(), encoding="utf-8")
        with atomic_file(folder / "report.png") as temporary:
            draw(self, temporary)


def comparison_rows(
    measures: Mapping[str, Mapping[str, np.ndarray]],
    *,
    reference: str = REFERENCE,
    resamples: int = 2000,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Means, bootstrap intervals and paired differences to the row `reference`.

    Args:
        measures: name of a row -> metric -> values of every target, in the same order in all rows, shape (N,).
    """
    rows = []
    for name, metrics in measures.items():
        difference = {metric: values - measures[reference][metric] for metric, values in metrics.items()}
        rows.append(
            {
                "name": name,
                "metrics": {metric: float(values.mean()) for metric, values in metrics.items()},
                "ci95": bootstrap_interval(metrics, resamples=resamples, seed=seed),
                f"difference_to_{reference}": {metric: float(d.mean()) for metric, d in difference.items()},
                "difference_ci95": bootstrap_interval(difference, resamples=resamples, seed=seed),
            }
        )
    return rows


def table(rows: Sequence[Mapping[str, Any]], metrics: Sequence[str] = SHOWN_METRICS) -> list[str]:
    """Markdown lines: a metric a column, then NDCG@10's interval and paired difference to the row `REFERENCE`."""
    header = ["row", *metrics, "ndcg@10 95% interval", "ndcg@10 minus retriever"]
    lines = [f"| {' | '.join(header)} |", "|" + " --- |" * len(header)]
    for row in rows:
        low, high = row["ci95"]["ndcg@10"]
        cells = [row["name"], *(f"{row['metrics'][m]:.4f}" for m in metrics), f"{low:.4f} to {high:.4f}"]
        lines.append(f"| {' | '.join([*cells, _difference(row)])} |")
    return lines


def _difference(row: Mapping[str, Any]) -> str:
    low, high = row["difference_ci95"]["ndcg@10"]
    if row["name"] == REFERENCE:
        return ""
    return f"{row['difference_to_retriever']['ndcg@10']:+.4f} ({low:+.4f} to {high:+.4f})"


def verdict(row: Mapping[str, Any]) -> str:
    """One sentence: better than the retriever, worse, or not to be told apart."""
    low, high = row["difference_ci95"]["ndcg@10"]
    words = "beats" if low > 0 else "is worse than" if high < 0 else "cannot be told from"
    return f"- `{row['name']}` {words} its retriever (ndcg@10 {_difference(row)})."


def draw(report: Report, path: str | Path, metric: str = "ndcg@10") -> None:
    """Each row's metric with its interval, and the paired difference to the retriever beside it."""
    from matplotlib.figure import Figure

    rows = [row for row in report.rows if row["name"] != CEILING][::-1]
    figure = Figure(figsize=(10, 1.4 + 0.42 * len(rows)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for height, row in enumerate(rows):
        color = "#888888" if row["name"] in (REFERENCE, "popularity") else "#1f6feb"
        low, high = row["ci95"][metric]
        left.plot([low, high], [height, height], color=color, linewidth=2)
        left.plot(row["metrics"][metric], height, "o", color=color)
        if row["name"] != REFERENCE:
            low, high = row["difference_ci95"][metric]
            right.plot([low, high], [height, height], color=color, linewidth=2)
            right.plot(row["difference_to_retriever"][metric], height, "o", color=color)
    left.set_yticks(range(len(rows)), [row["name"] for row in rows])
    left.set_xlabel(f"{metric.upper()}, 95% interval")
    right.axvline(0.0, color="#888888", linewidth=1, linestyle="--")
    right.set_xlabel("minus retriever, paired, 95% interval")
    retrieved = f"{report.protocol['retrieved']:,} of {report.protocol['targets']:,} targets retrieved"
    figure.suptitle(f"{report.protocol.get('dataset', '')}: {retrieved}", fontsize=10)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=130, format="png")
