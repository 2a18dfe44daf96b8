"""Costs that grow: measured in turns, kept as json, and drawn from it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from llamarec_lkg.utils.files import atomic_file, read_json, write_json


TURNS, TURN = 7, 0.02  # of each line at a size, and seconds that a turn of short calls takes
ALLOWANCE = 3.0  # seconds in which a line has its turns; a call that is longer is made once
PATIENCE = 10.0  # a peer's line ends before a call that would take longer
COLORS, MARKS = ("#1f6feb", "#d4380d", "#117733", "#882255"), "osD^"  # one of each a thing: not by colour alone
STYLES = ("-", "--", ":")  # ours, and peers
LABEL = 14.0  # points from one label to the next

Line = tuple[str, str]  # what is measured, and the peer that does it, "" where it is this library


class Curves:
    """Seconds of things that this library and its peers do, at growing sizes.

    Args:
        title, axis (`str`): what the picture says above, and of its sizes.
    """

    def __init__(self, title: str, axis: str):
        self.title, self.axis = title, axis
        self.points: dict[Line, list[tuple[int, float, int]]] = {}  # size, median seconds of a call, turns

    def goes_on(self, line: Line, size: int) -> bool:
        """Whether a peer's call at `size` is likely to end in time, if it takes longer as the size grows."""
        if line not in self.points:
            return True
        last, seconds, _ = self.points[line][-1]
        return seconds * size / last <= PATIENCE

    def measure(self, size: int, runs: Mapping[Line, Callable[[], Any]]) -> None:
        """Calls, measured in turns: what else the machine does meets all. Each line's first call counts only where it
        is too long for another."""
        first = {line: seconds_of(run) for line, run in runs.items()}
        often = {line: max(1, int(TURN / took)) for line, took in first.items()}
        taken: dict[Line, list[float]] = {line: [] for line in runs}
        for _ in range(TURNS):
            for line, run in runs.items():
                ahead = max(taken[line], default=first[line])
                if often[line] * (sum(taken[line]) + ahead) <= ALLOWANCE:
                    taken[line].append(seconds_of(run, often[line]))
        for line, times in taken.items():
            times = times or [first[line]]
            self.points.setdefault(line, []).append((size, float(f"{median(times):.3g}"), len(times)))

    def write(self, path: Path, machine: str) -> None:
        lines = [{"what": what, "peer": peer, "points": points} for (what, peer), points in self.points.items()]
        turns = [point[2] for points in self.points.values() for point in points]
        medians = f"{machine}; medians of {min(turns)} to {max(turns)} turns"
        write_json(path, {"title": self.title, "axis": self.axis, "machine": medians, "lines": lines})


def seconds_of(run: Callable[[], Any], often: int = 1) -> float:
    """Seconds of a call, of several that are made."""
    start = time.perf_counter()
    for _ in range(often):
        run()
    return (time.perf_counter() - start) / often


def draw(path: Path) -> None:
    """Draw what `Curves.write` wrote to `path` into the PNG beside it: both axes logarithmic, each thing in a colour
    and with a mark of its own, peers broken, their names where the lines end."""
    from matplotlib.figure import Figure
    from matplotlib.patheffects import withStroke
    from matplotlib.ticker import EngFormatter, FixedLocator, LogLocator, NullFormatter, NullLocator

    found = read_json(path)
    things = list(dict.fromkeys(line["what"] for line in found["lines"]))
    sizes = sorted({size for line in found["lines"] for size, _, _ in line["points"]})
    figure = Figure(figsize=(10, 5.6), layout="constrained")
    axes = figure.subplots()
    ends, peers = [], dict.fromkeys(things, 0)
    for line in found["lines"]:
        place = things.index(line["what"])
        peers[line["what"]] += bool(line["peer"])
        look = {"color": COLORS[place], "marker": MARKS[place], "linestyle": STYLES[peers[line["what"]] % len(STYLES)]}
        if not line["peer"]:
            look |= {"linestyle": STYLES[0], "linewidth": 2}
        x, y, _ = zip(*line["points"], strict=True)
        axes.plot(x, y, markersize=5, **look)
        ends.append((x[-1], y[-1], line["peer"] or line["what"], COLORS[place], bool(line["peer"])))
    axes.set(xscale="log", yscale="log", xlabel=found["axis"])
    axes.xaxis.set_major_locator(FixedLocator(sizes))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticklabels([f"{size:,}" for size in sizes])
    low, high = np.log10(axes.get_ylim())
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high - low < 2 else (1,)))
    axes.yaxis.set_major_formatter(EngFormatter(unit="s"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3)
    figure.suptitle(found["title"], fontsize=11)
    figure.supxlabel(f"solid: this library; broken: peers; {found['machine']}", fontsize=8, color="#666666")
    figure.draw_without_rendering()  # which settles where the axes lie
    height = axes.get_window_extent().height * 72 / figure.dpi
    for end in {end[0] for end in ends}:
        here = sorted((one for one in ends if one[0] == end), key=lambda one: one[1])
        wanted = [(np.log10(one[1]) - low) / (high - low) * height for one in here]
        for (x, y, name, color, peer), at, free in zip(here, wanted, apart(wanted, LABEL), strict=True):
            style = {"fontsize": 9, "color": color, "fontweight": "normal" if peer else "bold", "va": "center"}
            style["path_effects"] = [withStroke(linewidth=4, foreground="white")]  # other lines may go on below
            axes.annotate(name, (x, y), (9, free - at), textcoords="offset points", parse_math=False, **style)
    with atomic_file(path.with_suffix(".png")) as temporary:
        figure.savefig(temporary, dpi=130, format="png")


def apart(places: Iterable[float], gap: float) -> list[float]:
    """Ascending places moved as little as keeps each at least a gap above the one before: those that would touch
    stand together around their middle."""
    groups: list[list[float]] = []
    for place in places:
        groups.append([place])
        while len(groups) > 1 and bottom(groups[-1], gap) < bottom(groups[-2], gap) + gap * len(groups[-2]):
            last = groups.pop()
            groups[-1] += last
    return [bottom(group, gap) + gap * row for group in groups for row in range(len(group))]


def bottom(group: list[float], gap: float) -> float:
    """Where the lowest of a group stands that is spread around its middle."""
    return sum(group) / len(group) - gap * (len(group) - 1) / 2
