"""Every part of the campaign: a little of it in every run, all of it with `make campaign`, which leaves a table."""

import json
from pathlib import Path

import pytest

from campaign.parts import PARTS


REPORT = Path(__file__).resolve().parents[2] / "outputs" / "campaign" / "report.json"


@pytest.mark.parametrize("name", [name for name, part in PARTS.items() if part.small])
def test_a_little(name, tmp_path):
    outcomes = list(PARTS[name].run(PARTS[name].small, tmp_path))
    assert outcomes and not any(outcomes), next(filter(None, outcomes))


@pytest.fixture(scope="module")
def table():
    """Rows of parts; written after each, printed at the end."""
    rows = []
    yield rows
    print(f"\n\n{'':<24}{'tried':>8}{'survived':>10}{'lost':>6}")
    for row in rows:
        print(f"{row['name']:<24}{row['tried']:>8,}{row['survived']:>10,}{row['lost']:>6,}")
    print(f"written to {REPORT}")


@pytest.mark.slow
@pytest.mark.parametrize("name", PARTS)
def test_all_of_it(name, table, tmp_path):
    outcomes = list(PARTS[name].run(PARTS[name].large, tmp_path))
    lost = [outcome for outcome in outcomes if outcome]
    row = {"name": name, "tried": len(outcomes), "survived": len(outcomes) - len(lost), "lost": len(lost)}
    table.append(row)
    REPORT.parent.mkdir(parents=True, exist_ok=True)
    REPORT.write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")
    assert outcomes and not lost, "\n".join(lost[:20])
