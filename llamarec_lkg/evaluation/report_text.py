"""A report's rows as Markdown tables and sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .comparison import COMPARED_METRICS, REFERENCE


SHOWN_METRICS = ("mrr@10", "ndcg@5", "ndcg@10", "recall@1", "recall@5", "recall@10")


def table(rows: Sequence[Mapping[str, Any]], metrics: Sequence[str] = SHOWN_METRICS) -> list[str]:
    """Markdown lines: a metric a column, then NDCG@10's interval and paired difference to the row `REFERENCE`."""
    cells = []
    for row in rows:
        low, high = row["ci95"]["ndcg@10"]
        shown = [f"{row['metrics'][metric]:.4f}" for metric in metrics]
        cells.append([row["name"], *shown, f"{low:.4f} to {high:.4f}", _difference(row)])
    return _lines(["row", *metrics, "ndcg@10 95% interval", "ndcg@10 minus retriever"], cells)


def verdict(row: Mapping[str, Any]) -> str:
    """One sentence: better than the row `retriever`, worse, or not to be told apart."""
    low, high = row["difference_ci95"]["ndcg@10"]
    words = "beats" if low > 0 else "is worse than" if high < 0 else "cannot be told from"
    return f"- `{row['name']}` {words} the row `{REFERENCE}` (ndcg@10 {_difference(row)})."


def comparison_table(comparisons: Sequence[Mapping[str, Any]]) -> list[str]:
    """Markdown lines: a pair of rows each, with the difference in every metric and its interval."""
    pairs: dict[tuple[str, str], dict[str, str]] = {}
    for one in comparisons:
        cell = _with_interval(one["difference"], one["ci95"])
        pairs.setdefault((one["row"], one["minus"]), {})[one["metric"]] = cell
    cells = [[*pair, *(found[metric] for metric in COMPARED_METRICS)] for pair, found in pairs.items()]
    return _lines(["row", "minus", *COMPARED_METRICS], cells)


def slice_tables(slices: Sequence[Mapping[str, Any]], names: Sequence[str] | None = None) -> list[str]:
    """Markdown lines: a table for each kind of slice, a row for each of `names`, NDCG@10 of each part a column, with
    its paired difference to the retriever."""
    kinds: dict[str, list[Mapping[str, Any]]] = {}
    for part in slices:
        kinds.setdefault(part["slice"], []).append(part)
    lines = []
    for kind, parts in kinds.items():
        cells: dict[str, list[str]] = {}
        for row in (row for part in parts for row in part["rows"] if names is None or row["name"] in names):
            cell = f"{row['metrics']['ndcg@10']:.4f} {_difference(row)}".strip()
            cells.setdefault(row["name"], [row["name"]]).append(cell)
        header = [f"by {kind}, ndcg@10", *(f"{part['value']} ({part['targets']:,} targets)" for part in parts)]
        lines += ["", *_lines(header, list(cells.values()))]
    return lines[1:]


def recommended_table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Markdown lines: how much of the catalogue each row recommends, and how popular it is. None where no row says."""
    told = [row for row in rows if "coverage@10" in row]
    cells = [[row["name"], f"{row['coverage@10']:.1%}", f"{row['popularity@10']:,.1f}"] for row in told]
    header = ["row", "share of the catalogue in somebody's first ten", "mean training interactions of these items"]
    return _lines(header, cells)


def seed_table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Markdown lines: NDCG@10 of every seed of the rows that have several. None where there is none."""
    told = [row for row in rows if "seeds" in row]
    columns = max((len(row["seeds"]["ndcg@10"]) for row in told), default=0)
    cells = [[row["name"], *(f"{value:.4f}" for value in row["seeds"]["ndcg@10"])] for row in told]
    return _lines(["ndcg@10", *(f"seed {number + 1}" for number in range(columns))], cells)


def _difference(row: Mapping[str, Any]) -> str:
    if row["name"] == REFERENCE:
        return ""
    return _with_interval(row["difference_to_retriever"]["ndcg@10"], row["difference_ci95"]["ndcg@10"])


def _with_interval(value: float, interval: Sequence[float]) -> str:
    return f"{value:+.4f} ({interval[0]:+.4f} to {interval[1]:+.4f})"


def _lines(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    if not rows:
        return []
    lines = (" | ".join(cells) for cells in (header, *rows))
    first, *others = (f"| {line} |" for line in lines)
    return [first, "|" + " --- |" * len(header), *others]
