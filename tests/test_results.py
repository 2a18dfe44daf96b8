"""Figures in the README and in the guides are those of the committed reports."""

import json
import re
from pathlib import Path

import pytest


ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "examples" / "results"
PAGES = ("README.md", "examples/evaluate.md")
ROW = re.compile(r"^\| \**`([\w-]+)`\**(?! minus )[^|]*\|(.*)\|$", re.MULTILINE)
PAIR = re.compile(r"^\| `([\w-]+)` minus `([\w-]+)`[^|]*\|(.*)\|$", re.MULTILINE)


def report(name):
    return json.loads((RESULTS / f"{name}.json").read_text())


def interval(difference, ci95):
    return f"{difference:+.4f} ({ci95[0]:+.4f} to {ci95[1]:+.4f})"


def shown(row):
    """As the tables have it: three metrics, and the paired difference with its interval."""
    metrics = [f"{row['metrics'][metric]:.4f}" for metric in ("ndcg@10", "mrr@10", "recall@10")]
    difference = row["difference_to_retriever"]["ndcg@10"], row["difference_ci95"]["ndcg@10"]
    return [*metrics, "" if row["name"] == "retriever" else interval(*difference)]


def sections():
    """Sections of pages that show a report, by the report's name: they link to the whole of it."""
    for page in PAGES:
        for section in (ROOT / page).read_text().split("\n## "):
            for name in re.findall(r"\]\((?:examples/)?results/((?!costs)[\w-]+)\.md\)", section):
                yield page, name, section


def cells(line):
    return [cell.strip() for cell in line.split("|")]


@pytest.mark.parametrize(
    ("page", "name", "section"), [pytest.param(*one, id=f"{one[0]}-{one[1]}") for one in sections()]
)
def test_a_page_shows_what_was_reported(page, name, section):
    found = report(name)
    rows = {row["name"]: shown(row) for row in found["rows"]}
    table = {row: cells(line) for row, line in ROW.findall(section)}
    of_rankers = any(row["name"] == "ranker" for row in found["rows"])
    assert {"retriever", *(("candidates", "ranker", "ranker-no-lm", "stacker") if of_rankers else ())} <= set(table)
    assert table == {row: rows[row] for row in table}
    pairs = {
        (one["row"], one["minus"]): [interval(one["difference"], one["ci95"])]
        for one in found["comparisons"]
        if one["metric"] == "ndcg@10"
    }
    shown_pairs = PAIR.findall(section) if of_rankers else []
    assert not of_rankers or ("ranker", "ranker-no-lm") in {(row, minus) for row, minus, _ in shown_pairs}
    for row, minus, line in shown_pairs:
        assert cells(line) == pairs[row, minus], (row, minus)


def test_every_report_is_shown():
    reports = {path.stem for path in RESULTS.glob("*.json") if not path.stem.startswith("costs-")} - {"planted"}
    assert {name for _, name, _ in sections()} == reports


PLANTED = {"both routes": "both", "evidence alone": "evidence", "path gate alone": "gate", "cut, as released": "cut",
           "both, no graph": "no-graph"}  # fmt: skip


@pytest.mark.parametrize("label", PLANTED)
def test_the_guide_shows_what_the_planted_world_reported(label):
    variant = report("planted")["variants"][PLANTED[label]]
    guide = (ROOT / "examples" / "evaluate.md").read_text()
    (line,) = [line for line in guide.splitlines() if line.startswith(f"| {label} |")]
    wanted = [f"{variant[name]:.1%}" for name in ("known_top1", "new_top1", "ndcg_to_oracle")]
    wanted += [f"{variant[name]:.3f}" for name in ("known_mixture_tv", "new_mixture_tv")]
    assert cells(line.strip("|"))[1:] == wanted
