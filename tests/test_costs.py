"""Pictures of costs: how often calls are made, when a peer stops, and what a picture is drawn from."""

import re

import pytest
from benchmarks import curves
from benchmarks.curves import PATIENCE, TURNS, Curves, apart, draw
from test_results import RESULTS


OURS, PEER = ("add", ""), ("add", "by hand")


def test_short_calls_have_all_turns_and_one_that_is_too_long_is_made_once(monkeypatch):
    clock, calls = [0.0], {"short": 0, "long": 0}
    monkeypatch.setattr(curves.time, "perf_counter", lambda: clock[0])

    def run(name, seconds):
        calls[name] += 1
        clock[0] += seconds * (10 if calls[name] == 1 and name == "short" else 1)  # the first has to make tables

    made = Curves("", "")
    made.measure(10, {OURS: lambda: run("short", 0.1), PEER: lambda: run("long", 5.0)})
    assert made.points == {OURS: [(10, 0.1, TURNS)], PEER: [(10, 5.0, 1)]}
    assert calls == {"short": 1 + TURNS, "long": 1}


def test_a_peer_stops_before_a_call_that_would_be_too_long():
    made = Curves("", "")
    assert made.goes_on(PEER, 10)
    made.points[PEER] = [(10, PATIENCE / 10, 1)]
    assert made.goes_on(PEER, 100) and not made.goes_on(PEER, 101)


@pytest.mark.parametrize(
    ("places", "wanted"),
    [
        ([0, 20, 40], [0, 20, 40]),
        ([0, 2, 40], [-4, 6, 40]),
        ([0, 0, 6], [-8, 2, 12]),
        ([], []),
    ],
)
def test_labels_stand_apart_around_their_middle(places, wanted):
    assert apart(places, 10) == wanted


def test_a_picture_is_drawn_from_what_was_written(tmp_path):
    made = Curves("Costs as sums grow", "numbers")
    made.points = {OURS: [(10, 1e-5, 7), (100, 1e-4, 7)], PEER: [(10, 2.0, 1)]}
    made.write(tmp_path / "costs-sum.json", "a machine")
    draw(tmp_path / "costs-sum.json")
    picture = (tmp_path / "costs-sum.png").read_bytes()
    draw(tmp_path / "costs-sum.json")
    assert picture[1:4] == b"PNG" and (tmp_path / "costs-sum.png").read_bytes() == picture


def test_the_page_shows_every_picture_that_was_measured():
    shown = re.findall(r"\]\((costs-\w+)\.png\)", (RESULTS / "costs.md").read_text())
    measured = {path.stem for path in RESULTS.glob("costs-*.json")}
    assert measured <= set(shown) and {path.stem for path in RESULTS.glob("costs-*.png")} == measured
