"""The report: every ranker beside its own retriever, on the same users, with intervals, as json, table and picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from tqdm.auto import tqdm

from .co_ratings import has_co_ratings, with_co_ratings
from .knowledge_graph import KnowledgeGraph
from .metrics import DEFAULT_KS, MISS, bootstrap_interval, metrics_per_user, require_finite, target_ranks
from .modeling_llamarec_lkg import LlamaRecLKGForRanking
from .processing_llamarec_lkg import LlamaRecLKGProcessor
from .schema import UNKNOWN_USER, LKGDataError, RankingExample
from .storage import atomic_file, write_json


REFERENCE = "retriever"
RANKER, CEILING = "ranker", "ceiling"
AS_PUBLISHED, WITH_CO_RATINGS = "ranker-as-published", "ranker-as-published-with-co-ratings"
SHOWN_METRICS = ("mrr@10", "ndcg@5", "ndcg@10", "recall@1", "recall@5", "recall@10")


def ranker_scores(
    model: LlamaRecLKGForRanking,
    processor: LlamaRecLKGProcessor,
    examples: Sequence[RankingExample],
    *,
    batch_size: int = 16,
    description: str = "rank",
    progress: bool = True,
    preferences_of: Sequence[RankingExample] | None = None,
) -> np.ndarray:
    """Scores of the candidates of all examples, shape (N, num_candidates), -inf where there is no candidate.

    Lists without their target among the candidates are misses whatever the order: they are not run, and their scores
    are NaN. `preferences_of` names, for each example, the one whose user and history its preferences are taken from.
    Under `accelerate launch` every process scores its share, and each gets the whole.
    """
    processor.check_model(model.config)  # another adapter may have come into use since the two were paired
    with_prompt = model.config.use_language_model
    rows = [row for row, example in enumerate(examples) if example.label >= 0]
    scores = np.full((len(examples), processor.num_candidates), np.nan, dtype=np.float32)
    state = PartialState()
    own = rows[state.process_index :: state.num_processes]
    found: list[tuple[int, np.ndarray]] = []
    with tqdm(total=len(own), desc=description, unit="list", disable=not (progress and state.is_main_process)) as bar:
        for start in range(0, len(own), batch_size):
            part = own[start : start + batch_size]
            batch = processor([examples[row] for row in part], with_prompt=with_prompt)
            if preferences_of is not None:
                others = [preferences_of[row] for row in part]
                batch["user_ids"] = torch.tensor([other.user for other in others])
                batch["history_relations"] = torch.from_numpy(np.stack([*map(processor.history_features, others)]))
            logits = model.score(batch)
            for row, values in zip(part, logits.float().cpu().numpy(), strict=True):
                values = values[: len(examples[row].candidates)]
                require_finite(values)
                found.append((row, np.pad(values, (0, scores.shape[1] - len(values)), constant_values=-np.inf)))
            bar.update(len(part))
    for row, values in gather_object(found) if state.num_processes > 1 else found:
        scores[row] = values
    return scores


def reranked(scores: np.ndarray, examples: Sequence[RankingExample]) -> np.ndarray:
    """Rank of every target by `scores` (from `ranker_scores`), `MISS` where it was not among the candidates, shape
    (N,)."""
    return target_ranks(scores, np.array([example.label for example in examples]))


CONTROLS = ("no-kg", "shuffled-kg", "uniform-preferences", "other-user-preferences")


def control_scores(
    name: str,
    model: LlamaRecLKGForRanking,
    processor: LlamaRecLKGProcessor,
    examples: Sequence[RankingExample],
    *,
    seed: int = 0,
    **options: Any,
) -> np.ndarray:
    """`ranker_scores` with one thing taken away from a trained ranker.

    Args:
        name: "no-kg" (a graph without edges), "shuffled-kg" (every item in the place of another; degrees stay),
            "uniform-preferences", or "other-user-preferences" (those of another user, drawn by `seed`).
        options: for `ranker_scores`.

    Raises:
        LKGDataError: the name is not known.
    """
    graph = processor.knowledge_graph
    if name not in CONTROLS:
        raise LKGDataError(f"There is no control {name!r}; the controls are {CONTROLS}.")
    if name == "other-user-preferences":
        return ranker_scores(model, processor, examples, preferences_of=other_users(examples, seed), **options)
    if name == "uniform-preferences":
        hook = model.preference.register_forward_hook(lambda module, inputs, logits: torch.zeros_like(logits))
        try:
            return ranker_scores(model, processor, examples, **options)
        finally:
            hook.remove()
    changed = graph.shuffle_items(seed) if name == "shuffled-kg" else graph.without_relations(graph.relations)
    return _scores_with_graph(changed, model, processor, examples, **options)


def published_graphs(processor: LlamaRecLKGProcessor) -> dict[str, KnowledgeGraph]:
    """The graphs that a push publishes, by default and with co-ratings where there are any, under the names of their
    rows in a report."""
    graph = processor.knowledge_graph
    graphs = {
        AS_PUBLISHED: graph.without_people(processor.user_ids),
        WITH_CO_RATINGS: with_co_ratings(graph, processor.user_ids),
    }
    return {name: found for name, found in graphs.items() if has_co_ratings(found) == (name == WITH_CO_RATINGS)}


def published_scores(
    graph: KnowledgeGraph,
    model: LlamaRecLKGForRanking,
    processor: LlamaRecLKGProcessor,
    examples: Sequence[RankingExample],
    **options: Any,
) -> np.ndarray:
    """`ranker_scores` of what a push publishes: nobody has weights of their own, and the graph is one of
    `published_graphs`."""
    strangers = [replace(example, user=UNKNOWN_USER) for example in examples]
    return _scores_with_graph(graph, model, processor, strangers, **options)


def _scores_with_graph(
    graph: KnowledgeGraph,
    model: LlamaRecLKGForRanking,
    processor: LlamaRecLKGProcessor,
    examples: Sequence[RankingExample],
    **options: Any,
) -> np.ndarray:
    own = processor.knowledge_graph
    processor.use_knowledge_graph(graph)
    try:
        return ranker_scores(model, processor, examples, **options)
    finally:
        processor.use_knowledge_graph(own)


def other_users(examples: Sequence[RankingExample], seed: int = 0) -> list[RankingExample]:
    """For each example one of another user (its own where there is only one user), by a seeded cyclic shift of
    users."""
    generator = np.random.default_rng(seed)
    users = np.array([example.user for example in examples])
    order = np.argsort(users + generator.random(len(users)) * 0.5, kind="stable")  # same users stand together
    largest = int(np.unique(users, return_counts=True)[1].max(initial=0))
    shift = int(generator.integers(largest, max(largest + 1, len(users) - largest + 1)))
    partner = np.empty(len(users), dtype=np.int64)
    partner[order] = np.roll(order, shift)
    return [examples[row] for row in partner]


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
        ks: Sequence[int] = DEFAULT_KS,
        resamples: int = 2000,
        seed: int = 0,
    ) -> Report:
        """
        Args:
            ranks: row name -> rank of each target, shape (N,), `MISS` where it is not ranked. One row is "retriever".
            found (`np.ndarray` of `bool`, shape (N,)): targets among the retriever's candidates.

        Raises:
            LKGDataError: there is no retriever row, or rows differ in length: they would not be about the same users.
        """
        lengths = {name: len(values) for name, values in ranks.items()} | {"found": len(found)}
        if REFERENCE not in ranks or len(set(lengths.values())) > 1:
            raise LKGDataError(
                f"A report compares rows on the same targets with a {REFERENCE!r} row; found {lengths}."
            )
        ranks = {**ranks, CEILING: np.where(found, 1, MISS)}
        interval = {"ks": ks, "resamples": resamples, "seed": seed}
        return cls(
            protocol={
                **protocol,
                "targets": len(found),
                "retrieved": int(found.sum()),
                "bootstrap": resamples,
                "seed": seed,
            },
            rows=_rows(ranks, **interval),
            reranked_rows=_rows({name: values[found] for name, values in ranks.items()}, **interval)
            if found.any()
            else [],
        )

    def row(self, name: str) -> dict[str, Any]:
        return next(row for row in self.rows if row["name"] == name)

    def has_row(self, name: str) -> bool:
        return any(row["name"] == name for row in self.rows)

    def to_json(self) -> dict[str, Any]:
        return {"protocol": self.protocol, "rows": self.rows, "reranked_rows": self.reranked_rows}

    def to_markdown(self) -> str:
        """Two tables, and one sentence a ranker that says whether it beats its retriever."""
        lines = [
            f"# Ranking on {self.protocol.get('dataset', 'data')}, {self.protocol.get('split', 'test')} split",
            "",
        ]
        lines += [f"- {key}: {value}" for key, value in self.protocol.items()]
        lines += ["", "## All targets (one that was not retrieved counts as a miss)", "", *table(self.rows)]
        lines += ["", "## Re-ranked targets only (the retriever found them)", "", *table(self.reranked_rows)]
        verdicts = [verdict(row) for row in self.rows if row["name"] not in (REFERENCE, CEILING, "popularity")]
        return "\n".join([*lines, "", "## In words", "", *verdicts, ""])

    def save(self, folder: str | Path) -> None:
        """Write `report.json`, `report.md` and `report.png`."""
        folder = Path(folder)
        write_json(folder / "report.json", self.to_json())
        with atomic_file(folder / "report.md") as temporary:
            temporary.write_text(self.to_markdown(), encoding="utf-8")
        with atomic_file(folder / "report.png") as temporary:
            draw(self, temporary)


def _rows(ranks: Mapping[str, np.ndarray], ks: Sequence[int], resamples: int, seed: int) -> list[dict[str, Any]]:
    measures = {name: metrics_per_user(values, ks) for name, values in ranks.items()}
    return comparison_rows(measures, resamples=resamples, seed=seed)


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
        cells = [row["name"], *(f"{row['metrics'][metric]:.4f}" for metric in metrics), f"{low:.4f} to {high:.4f}"]
        lines.append(f"| {' | '.join([*cells, _difference(row)])} |")
    return lines


def _difference(row: Mapping[str, Any], metric: str = "ndcg@10") -> str:
    low, high = row["difference_ci95"][metric]
    if row["name"] == REFERENCE:
        return ""
    return f"{row['difference_to_retriever'][metric]:+.4f} ({low:+.4f} to {high:+.4f})"


def verdict(row: Mapping[str, Any], metric: str = "ndcg@10") -> str:
    """One sentence: better than the retriever, worse, or not to be told apart."""
    low, high = row["difference_ci95"][metric]
    words = (
        "beats its retriever"
        if low > 0
        else "is worse than its retriever"
        if high < 0
        else ("cannot be told from its retriever")
    )
    return f"- `{row['name']}` {words} ({metric} {_difference(row, metric)})."


def draw(report: Report, path: str | Path, metric: str = "ndcg@10") -> None:
    """Each row's metric with its interval, and the paired difference to the retriever beside it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = [row for row in report.rows if row["name"] != CEILING][::-1]
    figure = Figure(figsize=(10, 1.4 + 0.42 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
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
