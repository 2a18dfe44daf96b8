"""`python -m tests.benchmarks [NAME ...]`: runs the benchmarks, prints one table, writes `report.json`."""

from __future__ import annotations

import argparse
import importlib
import logging
import pkgutil
from pathlib import Path

import torch

from llamarec_lkg.utils.files import read_json, write_json

from . import __path__ as folder
from .runner import BENCHMARKS, Figure, machine


def main() -> None:
    for module in pkgutil.iter_modules(folder):
        if module.name != "__main__":
            importlib.import_module(f"{__package__}.{module.name}")
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"some of {', '.join(BENCHMARKS)}; all by default")
    parser.add_argument("--output", type=Path, default=Path("outputs/benchmarks"))
    given = parser.parse_args()
    if unknown := sorted(set(given.names) - set(BENCHMARKS)):
        parser.error(f"no benchmark {unknown}; there are {', '.join(BENCHMARKS)}")
    logging.getLogger("llamarec_lkg").setLevel(logging.ERROR)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    print(f"{machine()}, GPU: {device}")
    print(HEADER, "-" * len(HEADER), sep="\n")
    given.output.mkdir(parents=True, exist_ok=True)
    path = given.output / "report.json"
    rows = {row["name"]: row for row in read_json(path)} if given.names and path.exists() else {}
    for name in given.names or BENCHMARKS:
        for figure in BENCHMARKS[name]():
            print(line(figure), flush=True)
            rows[figure.name] = figure.as_row()
            write_json(path, list(rows.values()))


HEADER = f"{'what':<62} {'ours':>10} {'theirs':>10} {'unit':<5} {'ratio':>8} {'target':>8}  {'holds':<5} against"


def line(figure: Figure) -> str:
    target = f"{'<=' if figure.overhead else '>='} {figure.target:g}"
    numbers = f"{figure.ours:>10.4g} {figure.theirs:>10.4g} {figure.unit:<5} {figure.ratio:>8.3g} {target:>8}"
    return f"{figure.name:<62} {numbers}  {'yes' if figure.holds else 'NO':<5} {figure.peer}"


if __name__ == "__main__":
    main()
