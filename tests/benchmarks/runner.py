"""Figures of time and room, each beside a peer or a bound that was measured, or is to hold, in the same run."""

from __future__ import annotations

import json
import logging
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch


@dataclass(frozen=True)
class Figure:
    """One line of the table.

    Args:
        name (`str`): what was measured, on what.
        ours, theirs (`float`): of this library, and of the peer or the bound.
        unit (`str`): of both; less is better.
        target (`float`): of the ratio.
        peer (`str`): who `theirs` is.
        overhead (`bool`): the ratio is ours to theirs, and to be at most the target; else theirs to ours, how many
            times as good we are, and at least the target.
    """

    name: str
    ours: float
    theirs: float
    unit: str
    target: float
    peer: str
    overhead: bool = False

    @property
    def ratio(self) -> float:
        return self.ours / self.theirs if self.overhead else self.theirs / self.ours

    @property
    def holds(self) -> bool:
        return self.ratio <= self.target if self.overhead else self.ratio >= self.target

    def as_row(self) -> dict[str, Any]:
        own = {
            key: getattr(self, key) for key in ("name", "ours", "theirs", "unit", "ratio", "target", "holds", "peer")
        }
        return {key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in own.items()}


Benchmark = Callable[[], Iterator[Figure]]
BENCHMARKS: dict[str, Benchmark] = {}


def benchmark(function: Benchmark) -> Benchmark:
    """Makes `python -m tests.benchmarks NAME` run a function, which yields figures, under its name."""
    BENCHMARKS[function.__name__] = function
    return function


def machine() -> str:
    """What figures were measured on, but for its GPU."""
    return f"{platform.machine()}, {os.cpu_count()} cores, threads of torch: {torch.get_num_threads()}"


def timed(run: Callable[[], Any], repeats: int = 5) -> float:
    """Median seconds of a call, after one that does not count."""
    run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return median(times)


def in_turns(first: Callable[[], Any], second: Callable[[], Any], repeats: int = 5) -> tuple[float, float]:
    """Median seconds of two calls that are measured in turns, so that what else the machine does meets both."""
    first(), second()
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        for run, kept in zip((first, second), times, strict=True):
            start = time.perf_counter()
            run()
            kept.append(time.perf_counter() - start)
    return median(times[0]), median(times[1])


def alone(function: Callable[..., Any], *args: str, **environment: str) -> dict[str, Any]:
    """What a function of a module gives in a process of its own, with the `seconds` that it took there and the most
    memory that the process held, `gigabytes`."""
    call = f"from tests.benchmarks.runner import measured; measured({function.__module__!r}, {function.__name__!r})"
    done = subprocess.run(
        [sys.executable, "-c", call, *args],
        env={**os.environ, "TQDM_DISABLE": "1", **environment},
        stdout=subprocess.PIPE,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def forget_peak() -> None:
    """The most memory of this process is counted from here on."""
    Path("/proc/self/clear_refs").write_text("5")


def peak() -> float:
    """The most memory that this process has held since then, in GB."""
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024 / 1e9


def measured(module: str, name: str) -> None:
    """Print what `alone` reads."""
    __import__(module)
    logging.getLogger("llamarec_lkg").setLevel(logging.ERROR)
    start = time.perf_counter()
    found = getattr(sys.modules[module], name)(*sys.argv[1:])
    seconds = time.perf_counter() - start
    # `ru_maxrss` would not do: it begins with the peak of the process that started this one
    print(json.dumps({"seconds": seconds, "gigabytes": peak(), "found": found}))
