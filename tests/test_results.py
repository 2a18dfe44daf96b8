"""Figures in the README and in the guides are those of the committed reports."""

import json
import re
from pathlib import Path

import pytest


ROOT = Path(__file__).resolve().parents[1]
ROW = re.compile(r"^\| \**`([\w-]+)`\**[^|]*\|(.*)\|$", re.MULTILINE)


def shown(row):
    """As the README's table has it: three metrics, and the paired difference with its interval."""
    metrics = [f"{row['metrics'][metric]:.4f}" for metric in ("ndcg@10", "mrr@10", "recall@10")]
    if row["name"] == "retriever":
        return [*metrics, ""]
    low, high = row["difference_ci95"]["ndcg@10"]
    return [*metrics, f"{row['difference_to_retriever']['ndcg@10']:+.4f} ({low:+.4f} to {high:+.4f})"]


def test_the_readme_shows_what_the_quickstart_reported():
    report = json.loads((ROOT / "examples" / "results" / "quickstart.json").read_text())
    rows = {row["name"]: shown(row) for row in report["rows"]}
    section = (ROOT / "README.md").read_text().split("## Results")[1].split("\n## ")[0]
    table = {name: [cell.strip() for cell in cells.split("|")] for name, cells in ROW.findall(section)}
    assert {"retriever", "candidates", "ranker", "ranker-no-lm", "stacker"} <= set(table)
    assert table == {name: rows[name] for name in table}


PLANTED = {"both routes": "both", "evidence alone": "evidence", "path gate alone": "gate", "cut, as released": "cut",
           "both, no graph": "no-graph"}  # fmt: skip


@pytest.mark.parametrize("label", PLANTED)
def test_the_guide_shows_what_the_planted_world_reported(label):
    report = json.loads((ROOT / "examples" / "results" / "planted.json").read_text())["variants"][PLANTED[label]]
    guide = (ROOT / "examples" / "evaluate.md").read_text()
    (line,) = [line for line in guide.splitlines() if line.startswith(f"| {label} |")]
    wanted = [f"{report[name]:.1%}" for name in ("known_top1", "new_top1", "ndcg_to_oracle")]
    wanted += [f"{report[name]:.3f}" for name in ("known_mixture_tv", "new_mixture_tv")]
    assert [cell.strip() for cell in line.strip("|").split("|")[1:]] == wanted
