"""The report: every ranker beside the row `retriever`, on the same targets, with intervals: json, tables, picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..utils.errors import LKGError
from ..utils.files import atomic_file, write_json
from .comparison import (
    COMPARED_METRICS,
    REFERENCE,
    compared_pairs,
    recommended_facts,
    rows_of_seeds,
    slice_rows,
)
from .metrics import MISS, mean_metrics
from .report_text import comparison_table, recommended_table, seed_table, slice_tables, table, verdict


RANKER, CEILING, POPULARITY = "ranker", "ceiling", "popularity"
JUDGED = ("candidates", RANKER, "ranker-no-lm", "stacker")  # rows of which a sentence says whether they are better


@dataclass(frozen=True)
class Report:
    """Rows of metrics over the same targets, each with intervals and its paired difference to the retriever.

    Args:
        protocol: what was evaluated and how: data, split, sizes, seeds, command.
        rows: `{"name", "metrics", "ci95", "difference_to_retriever", "difference_ci95"}`, over all targets. Of several
            seeds also `seeds` (metric -> mean of each); where it is known what is recommended also `coverage@10`, the
            share of the catalogue, and `popularity@10`, how often these items were trained on in the mean.
        reranked_rows: the same over the targets found among the candidates.
        slices: `{"slice", "value", "targets", "rows"}`: NDCG@10 and Recall@10 of a part of the targets, of the rows
            that have every seed.
        comparisons: `{"row", "minus", "metric", "difference", "ci95"}`: paired differences of two rows.
    """

    protocol: dict[str, Any]
    rows: list[dict[str, Any]]
    reranked_rows: list[dict[str, Any]]
    slices: list[dict[str, Any]] = field(default_factory=list)
    comparisons: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def from_ranks(
        cls,
        ranks: Mapping[str, np.ndarray],
        found: np.ndarray,
        protocol: Mapping[str, Any],
        *,
        users: np.ndarray | None = None,
        slices: Mapping[str, np.ndarray] | None = None,
        recommended: Mapping[str, np.ndarray] | None = None,
        training_counts: np.ndarray | None = None,
        comparisons: Sequence[tuple[str, str]] = (),
        resamples: int = 2000,
        seed: int = 0,
    ) -> Report:
        """A metric of a target is its mean over seeds. Intervals say how sure the means over these users are; how far
        seeds lie apart is told beside them. A row of fewer seeds than the retriever stands on the first ones, and is
        compared with the retriever of these.

        Args:
            ranks: row name -> rank of each target, shape (N,), `MISS` where it is not ranked; or (S, N), those of S
                seeds. One row is "retriever".
            found (`np.ndarray` of `bool`, shape (N,) or (S, N)): targets among the candidates.
            users (shape (N,), optional): whose each target is; intervals are over users. By default over targets.
            slices (optional): kind of slice -> label of each target, shape (N,) (`slices.target_slices`).
            recommended (optional): row name -> dense items recommended, shape (M, 10) or (S, M, 10), 0 for none.
            training_counts (shape (num_items + 1,), optional): how often each dense item was trained on; needed to say
                what `recommended` is.
            comparisons: pairs (row, minus); those of which a row is absent are left out.

        Raises:
            LKGError: there is no retriever row, or rows differ in length.
        """
        ranks = {name: np.atleast_2d(values) for name, values in ranks.items()}
        found = np.atleast_2d(found)
        targets = found.shape[1]
        lengths = {name: values.shape[1] for name, values in ranks.items()} | {"found": targets}
        lengths |= {name: len(labels) for name, labels in (slices or {}).items()}
        lengths |= {} if users is None else {"users": len(users)}
        if REFERENCE not in ranks or len(set(lengths.values())) > 1:
            raise LKGError(f"A report compares rows on the same targets with a {REFERENCE!r} row; found {lengths}.")
        seeds = {name: len(values) for name, values in {**ranks, "found": found}.items()}
        if len(set(seeds.values()) - {1}) > 1:
            raise LKGError(f"Rows have one seed or all the same number of them; found {seeds}. Leave out the others.")
        if recommended and training_counts is None:
            raise LKGError("What is recommended was given without training_counts, which say how popular it is.")
        found = np.broadcast_to(found, (max(len(found), len(ranks[REFERENCE])), targets))
        ranks[CEILING] = np.where(found, 1, MISS)
        clusters = np.arange(targets) if users is None else np.asarray(users)
        sampling = {"clusters": clusters, "resamples": resamples, "seed": seed}
        rows = rows_of_seeds(ranks, **sampling)
        for row in rows:
            values = ranks[row["name"]]
            if len(values) > 1:
                means = [mean_metrics(one) for one in values]
                row["seeds"] = {metric: [one[metric] for one in means] for metric in COMPARED_METRICS}
            if row["name"] in (recommended or {}):
                row.update(recommended_facts(recommended[row["name"]], training_counts))
        sizes = {
            "targets": targets,
            "retrieved": round(float(found.mean(axis=0).sum())),
            "bootstrap": resamples,
            "resampled": f"{len(np.unique(clusters))} {'targets' if users is None else 'users'}",
            "seed": seed,
        }
        return cls(
            {**protocol, **sizes},
            rows,
            rows_of_seeds(ranks, found, **sampling),
            slice_rows(ranks, slices or {}, **sampling),
            compared_pairs(ranks, comparisons, **sampling),
        )

    def row(self, name: str) -> dict[str, Any]:
        return next(row for row in self.rows if row["name"] == name)

    def to_markdown(self) -> str:
        """Tables of all targets, of those among the candidates, of pairs and of slices, and one sentence a ranker that
        says whether it beats the row `retriever`."""
        title = f"# Ranking on {self.protocol.get('dataset', 'data')}, {self.protocol.get('split', 'test')} split"
        lines = [title, "", *(f"- {key}: {value}" for key, value in self.protocol.items())]
        compared = {one[side] for one in self.comparisons for side in ("row", "minus")} | {REFERENCE}
        sections = {
            "All targets (one that is not among the candidates counts as a miss)": table(self.rows),
            "Re-ranked targets only (found among the candidates)": table(self.reranked_rows),
            "Row minus row, paired, with 95% intervals": comparison_table(self.comparisons),
            "Parts of the targets": slice_tables(self.slices, compared if self.comparisons else None),
            "What is recommended": recommended_table(self.rows),
            "Seeds": seed_table(self.rows),
        }
        for heading, content in sections.items():
            if content:
                lines += ["", f"## {heading}", "", *content]
        verdicts = [verdict(row) for row in self.rows if row["name"] in JUDGED]
        return "\n".join([*lines, "", "## In words", "", *verdicts, ""])

    def save(self, folder: str | Path) -> None:
        """Write `report.json`, `report.md` and `report.png`."""
        folder = Path(folder)
        write_json(folder / "report.json", vars(self))
        with atomic_file(folder / "report.md") as temporary:
            temporary.write_text(self.to_markdown(), encoding="utf-8")
        with atomic_file(folder / "report.png") as temporary:
            draw(self, temporary)


def draw(report: Report, path: str | Path, metric: str = "ndcg@10") -> None:
    """Each row's metric with its interval, and the paired difference to the retriever beside it; the best row on top.
    The bounds, popularity and ceiling, are left to the tables: what decides would be narrow between them."""
    from matplotlib.figure import Figure

    rows = [row for row in report.rows if row["name"] not in (POPULARITY, CEILING)]
    rows.sort(key=lambda row: (row["metrics"][metric], row["name"] == RANKER))
    colors = {REFERENCE: "#888888", RANKER: "#d4380d"}
    figure = Figure(figsize=(10, 1.4 + 0.34 * len(rows)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for height, row in enumerate(rows):
        color = colors.get(row["name"], "#1f6feb")
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
    found = f"{report.protocol['retrieved']:,} of {report.protocol['targets']:,} targets among the candidates"
    figure.suptitle(f"{report.protocol.get('dataset', '')}: {found}", fontsize=10)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="x", alpha=0.3)
        axes.locator_params(axis="x", nbins=5)
    figure.savefig(path, dpi=130, format="png")
