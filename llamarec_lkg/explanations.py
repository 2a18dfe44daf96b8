"""Why an item stands where it stands: the parts of its score, as records, as a sentence and as a drawing.

A score is a sum (see `ScoreFusion`): what the language model reads, what the retriever says, and for each relation
the user's preference times the evidence, which is itself a sum over the paths from the history to the item. Nothing is
estimated after the fact, and nothing is left out: the shares of all reasons add up to the score.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .knowledge_graph import USER
from .processing_llamarec_lkg import LlamaRecLKGProcessor
from .schema import RATED, RankingExample, clean_text
from .storage import atomic_file


SHOWN_REASONS = 4  # in print
FAINT = 0.05  # of the strongest path's share
LANGUAGE_MODEL, RETRIEVER, PATH, OTHER_PATHS = "language model", "retriever", "path", "other paths"


@dataclass(frozen=True)
class Reason:
    """One part of an item's score.

    Args:
        kind (`str`): "path", "other paths" (all that are not named, of one relation), "retriever" or "language model".
        share (`float`): what it adds to the score; the shares of all reasons of an item sum to it.
        relation (`str`, optional): of a path.
        preference (`float`, optional): the user's weight of that relation, of 1 over all relations.
        nodes (`list[str]`): names along a path: item of the history, entity (if there is one), the item.
    """

    kind: str
    share: float
    relation: str | None = None
    preference: float | None = None
    nodes: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """In words, without the share."""
        if self.kind == PATH:
            through = " ".join(name for name in (self.relation, *self.nodes[1:-1]) if name)
            return f"{self.nodes[0]} -> {through} -> {self.nodes[-1]}"
        if self.kind == OTHER_PATHS:
            return (
                "people who rated the same items" if self.relation == RATED else f"other paths along {self.relation}"
            )
        return "the order of the history (retriever)" if self.kind == RETRIEVER else "what the language model reads"

    def __str__(self) -> str:
        weight = "" if self.preference is None else f"  (preference {self.preference:.0%})"
        return f"{self.share:+.3f}  {self.text}{weight}"


@dataclass(frozen=True)
class Recommendation:
    """One ranked item.

    Args:
        rank (`int`): 1 is best.
        item_id, title (`str`).
        score (`float`): the ranker's logit; comparable within one pass, so not across windows of a long list.
        retrieval_score (`float`): the first stage's.
        relations (`dict[str, float]`): part of the score that came through each relation of the graph, largest first.
        paths (`list[str]`): the named paths from the history, in the order of `reasons`; none runs through users.
        reasons (`list[Reason]`): the whole score taken apart, largest share first; their shares sum to `score`.
            Empty where there was nothing to compare with: a list of one is not ranked.
    """

    rank: int
    item_id: str
    title: str
    score: float
    retrieval_score: float
    relations: dict[str, float] = field(default_factory=dict)
    paths: list[str] = field(default_factory=list)
    reasons: list[Reason] = field(default_factory=list)

    def __str__(self) -> str:
        told = [reason for reason in self.reasons if abs(reason.share) >= 0.01 * abs(self.score)][:SHOWN_REASONS]
        lines = [f"{reason.share:+.3f}  {reason.text}" for reason in told]
        if left := len(self.reasons) - len(told):
            lines.append(f"{self.score - sum(reason.share for reason in told):+.3f}  {left} more")
        reasons = "".join(f"\n      {line}" for line in lines)
        return f"{self.rank:>3}. {self.title}  [{self.item_id}]  {self.score:+.3f}{reasons}"

    def sentence(self, count: int = 3) -> str:
        """Why it stands where it stands: the score, the `count` parts that weigh most, each relation with its
        strongest path, and what the others add."""
        if not self.reasons:
            return f"{self.title} is here with a score of {self.score:+.2f}; it was not compared with others."
        groups: dict[tuple[str, str | None], list[Reason]] = {}
        for reason in self.reasons:
            key = (PATH, reason.relation) if reason.relation else (reason.kind, None)
            groups.setdefault(key, []).append(reason)
        shares = {key: sum(reason.share for reason in group) for key, group in groups.items()}
        order = sorted(groups, key=lambda key: -abs(shares[key]))
        parts = [f"{shares[key]:+.2f} {_spoken(groups[key])}" for key in order[:count]]
        if rest := order[count:]:
            number = f"{len(rest)} smaller reason{'s' if len(rest) > 1 else ''}"
            parts.append(f"{sum(shares[key] for key in rest):+.2f} for {number}")
        listed = parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
        return f"{self.title} scores {self.score:+.2f}: {listed}."


def reasons_for(
    processor: LlamaRecLKGProcessor,
    example: RankingExample,
    row: int,
    parts: Mapping[str, float],
    preferences: Mapping[str, float],
    evidence_weight: float,
    count: int,
) -> list[Reason]:
    """Take the score of one candidate apart, largest share first.

    Args:
        row: index of the candidate.
        parts: its score by part: "retriever", "language model" and the names of relations.
        preferences: of the user, by relation.
        evidence_weight: of the fusion; times preference and a path's evidence it is the path's share.
        count: how many paths to name, the strongest through each entity first; the rest is summed up by relation.
    """
    paths = []
    spoke = count > 0 and any(parts.get(relation) for relation in preferences)
    for relation, nodes, weight in evidence_paths(processor, example, row) if spoke else ():
        share = evidence_weight * preferences[relation] * weight
        if share and parts.get(relation):
            paths.append(Reason(PATH, share, relation, preferences[relation], nodes))
    paths = _varied(sorted(paths, key=lambda reason: -abs(reason.share)))[:count]
    named = dict.fromkeys(parts, 0.0)
    for reason in paths:
        named[reason.relation] += reason.share
    rest = [
        Reason(OTHER_PATHS, share - named[name], name, preferences[name])
        if name in preferences
        else Reason(name, share)
        for name, share in parts.items()
    ]
    found = [*paths, *(reason for reason in rest if abs(reason.share) > 1e-6)]
    return sorted(found, key=lambda reason: -reason.share)


def evidence_paths(
    processor: LlamaRecLKGProcessor, example: RankingExample, row: int
) -> list[tuple[str, list[str], float]]:
    """Every path that the evidence of candidate `row` runs through, but for those through users.

    Returns:
        for each path its relation, the names along it (item of the history, entity if there is one, candidate),
        and its part of the candidate's evidence along that relation.
    """
    graph, index, candidate = processor.knowledge_graph, processor.evidence_index, int(example.candidates[row])
    parts: dict[tuple[int, int], float] = {}
    for place, column, weight in zip(*index.contributions(example.history, candidate, example.user), strict=True):
        key = int(example.history[place]), int(column)
        parts[key] = parts.get(key, 0.0) + float(weight)
    records = []
    for (item, column), weight in parts.items():
        node = int(index.column_node[column])
        relation = processor.relations[index.column_relation[column]]
        if relation == RATED or graph.entity_types[graph.node_types[node]] == USER:  # people, or the sum of them
            continue
        direct = node == graph.item_nodes[candidate]
        inner = [] if direct else [clean_text(graph.node_names[node])]
        nodes = [processor.titles[item - 1], *inner, processor.titles[candidate - 1]]
        records.append((relation, nodes, weight))
    return records


def _varied(paths: Sequence[Reason]) -> list[Reason]:
    """The first path through each entity in their order, then the second of each, ...: four films of one year are one
    thing to say. What weighs next to nothing beside the strongest comes last."""
    seen: Counter[tuple[str | None, str]] = Counter()
    turns = []
    for reason in paths:
        faint = abs(reason.share) < FAINT * abs(paths[0].share)
        turns.append((faint, seen[_shared(reason)]))
        seen[_shared(reason)] += 1
    return [paths[place] for place in sorted(range(len(paths)), key=lambda place: (turns[place], place))]


def _shared(reason: Reason) -> tuple[str | None, str]:
    """What a path runs through: relation and entity, which is empty on a direct edge."""
    return reason.relation, reason.nodes[1] if len(reason.nodes) > 2 else ""


def _spoken(group: Sequence[Reason]) -> str:
    """Reasons of one kind or relation in words, after their share."""
    best = max(group, key=lambda reason: (reason.kind == PATH, abs(reason.share)))
    if best.relation is None or best.relation == RATED:
        return f"for {best.text}"
    weight = f"preference {best.preference:.0%}"
    if best.kind != PATH:
        return f"along {best.relation} ({weight})"
    entity = " ".join(name for name in best.nodes[1:-1] if name)
    example = f"{entity}, as in {best.nodes[0]}" if entity else f"from {best.nodes[0]}"
    return f"along {best.relation} ({example}; {weight})"


def draw_reasons(items: Sequence[Recommendation], path: str | Path) -> None:
    """Write a PNG: the history on the left, the items on the right, the named paths between them, as wide as their
    share, and the rest of each score beside its item."""
    from matplotlib.lines import Line2D

    reasons = [(item, reason) for item in items for reason in item.reasons if reason.kind == PATH]
    labels = {}
    for item in items:
        others = [reason for reason in item.reasons if reason.kind != PATH]
        shown = [reason for reason in others if abs(reason.share) >= 0.005]
        lines = [f"{r.share:+.2f} {_short(r.text if r.relation else r.kind, 34)}" for r in shown]
        if drawn := [reason.share for reason in item.reasons if reason.kind == PATH]:
            lines.append(f"{sum(drawn):+.2f} the paths drawn")
        if len(shown) < len(others):
            lines.append(f"{len(others) - len(shown)} below 0.01")
        labels[item.item_id] = "\n".join([f"{_short(item.title)}  {item.score:+.2f}", *lines])
    columns = [
        _heights(dict.fromkeys((reason.nodes[0] for _, reason in reasons), 1)),
        _heights(dict.fromkeys((_shared(reason) for _, reason in reasons), 1)),
        _heights({item: label.count("\n") + 3 for item, label in labels.items()}),
    ]
    relations = list(dict.fromkeys(reason.relation for _, reason in reasons))
    colors = dict(zip(relations, _palette(len(relations)), strict=True))
    rows = sum(label.count("\n") + 3 for label in labels.values())
    figure, axes = _figure(12, 1.5 + max(0.45 * max(map(len, columns)), 0.17 * rows))
    largest = max((abs(reason.share) for _, reason in reasons), default=1.0)
    for item, reason in reasons:
        ends = [
            (0.0, columns[0][reason.nodes[0]]),
            (0.5, columns[1][_shared(reason)]),
            (1.0, columns[2][item.item_id]),
        ]
        style = {"color": colors[reason.relation], "linewidth": 0.8 + 5 * abs(reason.share) / largest, "alpha": 0.65}
        axes.plot(*zip(*ends, strict=True), solid_capstyle="round", zorder=1, **style)
    boxes = {"boxstyle": "round,pad=0.35", "facecolor": "white", "edgecolor": "#888888"}
    for name, height in columns[0].items():
        axes.text(0.0, height, _short(name), ha="right", va="center", bbox=boxes, fontsize=9, parse_math=False)
    for (relation, entity), height in columns[1].items():
        label = _short(f"{relation} {entity}".strip())
        frame = {**boxes, "edgecolor": colors[relation]}
        axes.text(0.5, height, label, ha="center", va="center", bbox=frame, fontsize=8, parse_math=False)
    for item_id, label in labels.items():
        axes.text(1.0, columns[2][item_id], label, ha="left", va="center", bbox=boxes, fontsize=8, parse_math=False)
    weights = {reason.relation: reason.preference for _, reason in reasons}
    handles = [
        Line2D([], [], color=colors[name], linewidth=4, label=f"{name} {weights[name]:.0%}") for name in relations
    ]
    if handles:
        place = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.02), "ncols": 4, "frameon": False}
        legend = axes.legend(handles=handles, title="preference", **place)
        for text in legend.get_texts():
            text.set_parse_math(False)
    for x, text in ((0.0, "history"), (0.5, "shared"), (1.0, "ranked items, share of the score")):
        axes.text(x, 1.06, text, ha="center", fontsize=10, color="#555555")
    axes.set(xlim=(-0.45, 1.55), ylim=(-0.05, 1.12))
    axes.axis("off")
    _save(figure, path)


def draw_preferences(preferences: Mapping[str, float], path: str | Path, title: str = "") -> None:
    """Write a PNG: a bar for each relation, and a line where all would be equal."""
    names = list(preferences)[::-1]
    figure, axes = _figure(8, 1.2 + 0.32 * len(names))
    axes.barh(range(len(names)), [preferences[name] for name in names], color="#1f6feb")
    axes.axvline(1 / len(names), color="#888888", linewidth=1, linestyle="--")
    axes.set_yticks(range(len(names)), names)
    for label in axes.get_yticklabels():
        label.set_parse_math(False)
    axes.set_xlabel("preference (dashed: all relations alike)")
    axes.set_title(title, fontsize=10, parse_math=False)
    axes.spines[["top", "right"]].set_visible(False)
    _save(figure, path)


def _heights(sizes: Mapping[Any, int]) -> dict[Any, float]:
    """Where the middles of boxes stand that fill a column from 1 down to 0, each with the room it needs."""
    total, above, heights = max(1, sum(sizes.values())), 0.0, {}
    for name, size in sizes.items():
        heights[name] = 1 - (above + size / 2) / total
        above += size
    return heights


def _figure(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots()


def _save(figure: Any, path: str | Path) -> None:
    with atomic_file(Path(path)) as temporary:
        figure.savefig(temporary, dpi=130, format="png")


def _palette(count: int) -> list[Any]:
    from matplotlib import colormaps

    return [colormaps["tab10" if count <= 10 else "tab20"](place % 20) for place in range(count)]


def _short(text: str, length: int = 30) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"
