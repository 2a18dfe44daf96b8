"""Pictures: the paths that spoke for each item, and the preferences of a user."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..utils.files import atomic_file
from .reasons import PATH, Recommendation


def draw_reasons(items: Sequence[Recommendation], path: str | Path) -> None:
    """Write a PNG: the history on the left, the items on the right, the named paths between them, as wide as their
    share, and the rest of each score beside its item."""
    from matplotlib import colormaps
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
        _heights(dict.fromkeys((reason.through for _, reason in reasons), 1)),
        _heights({item: label.count("\n") + 3 for item, label in labels.items()}),
    ]
    relations = list(dict.fromkeys(reason.relation for _, reason in reasons))
    palette = colormaps["tab10" if len(relations) <= 10 else "tab20"]
    colors = {relation: palette(place % 20) for place, relation in enumerate(relations)}
    rows = sum(label.count("\n") + 3 for label in labels.values())
    figure, axes = _figure(12, 1.5 + max(0.45 * max(map(len, columns)), 0.17 * rows))
    largest = max((abs(reason.share) for _, reason in reasons), default=1.0)
    for item, reason in reasons:
        heights = [columns[0][reason.nodes[0]], columns[1][reason.through], columns[2][item.item_id]]
        style = {"color": colors[reason.relation], "linewidth": 0.8 + 5 * abs(reason.share) / largest, "alpha": 0.65}
        axes.plot([0.0, 0.5, 1.0], heights, solid_capstyle="round", zorder=1, **style)
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
    if relations:
        handles = [Line2D([], [], color=colors[n], linewidth=4, label=f"{n} {weights[n]:.0%}") for n in relations]
        place = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.02), "ncols": 4, "frameon": False}
        for text in axes.legend(handles=handles, title="preference", **place).get_texts():
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
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def _save(figure: Any, path: str | Path) -> None:
    with atomic_file(Path(path)) as temporary:
        figure.savefig(temporary, dpi=130, format="png")


def _short(text: str, length: int = 30) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"
