"""The demo without a browser: other preferences, the list as HTML, and the events of the app."""

import re
import socket
from types import SimpleNamespace

import pytest
import torch
from tiny import examples, processor

from llamarec_lkg import LKGError, LlamaRecLKGForRanking, Recommender
from llamarec_lkg.cli import main
from llamarec_lkg.retrieval.modeling_lrurec import LRURecConfig, LRURecForRetrieval, LRURecRetriever
from llamarec_lkg.serving.demo import build_demo, launch_demo
from llamarec_lkg.serving.demo_view import DemoView, in_words
from llamarec_lkg.serving.preferences import with_weights


def test_weights_that_are_given_stay_and_the_others_share_the_rest():
    own = {"A": 0.5, "B": 0.3, "C": 0.2, "D": 0.0}
    assert with_weights(own, {}) == own
    assert with_weights(own, {"A": 0.0}) == pytest.approx({"A": 0.0, "B": 0.6, "C": 0.4, "D": 0.0})
    assert with_weights(own, {"B": 0.5, "D": 0.15}) == pytest.approx({"A": 0.25, "B": 0.5, "C": 0.1, "D": 0.15})
    assert with_weights({"A": 1.0, "B": 0.0, "C": 0.0}, {"A": 0.4}) == pytest.approx({"A": 0.4, "B": 0.3, "C": 0.3})
    assert with_weights(own, own) == own


@pytest.mark.parametrize(
    "given", [{"A": 1.2}, {"A": -0.1}, {"A": float("nan")}, {"A": 0.6, "B": 0.6}, {"A": 0.1, "B": 0.2}, {"A": "much"}]
)
def test_weights_that_are_no_shares_are_refused(given):
    with pytest.raises(LKGError, match="no shares of 1. Give numbers from 0 that sum to at most 1"):
        with_weights({"A": 0.5, "B": 0.5}, given)
    with pytest.raises(LKGError, match=r"no relations \['X'\]. Give weights of some of \['A', 'B'\]"):
        with_weights({"A": 0.5, "B": 0.5}, {**given, "X": 0.1})


@pytest.fixture(scope="module")
def recommender(film_dataset):
    """Without a language model: what relations add is their preference times a number that stays."""
    proc = processor(film_dataset).fit(examples(film_dataset))
    torch.manual_seed(0)
    ranker = LlamaRecLKGForRanking(proc.model_config(use_language_model=False, evidence_weight=2.0))
    retriever = LRURecRetriever(LRURecForRetrieval(LRURecConfig(num_items=6, hidden_size=8)).eval())
    return Recommender(ranker, proc, retriever)


def test_a_list_is_ranked_by_the_preferences_that_are_given(recommender):
    ask = {"history": ["1"], "candidates": ["2", "3", "5"]}
    before = {item.item_id: item for item in recommender.recommend(**ask)}
    own = recommender.preferences(["1"])
    given = with_weights(own, {"DIRECTED_BY": 0.9})
    after = {item.item_id: item for item in recommender.recommend(**ask, preferences={"DIRECTED_BY": 0.9})}
    for raw, item in after.items():
        assert item.retrieval_score == before[raw].retrieval_score
        for name, share in item.relations.items():
            assert share == pytest.approx(before[raw].relations[name] * given[name] / own[name], rel=1e-5)
        assert all(
            reason.preference == pytest.approx(given[reason.relation]) for reason in item.reasons if reason.relation
        )
    assert any(item.relations for item in after.values())
    assert recommender.recommend(**ask, preferences=own) == list(before.values())
    with pytest.raises(LKGError, match=r"no relations \['STARRED'\]"):
        recommender.recommend(**ask, preferences={"STARRED": 0.5})


def test_each_list_of_a_batch_is_ranked_by_its_own_preferences(recommender):
    """A list of one, which is not scored, must not shift those behind it."""
    asked = [recommender.request(["1"], candidates=raw) for raw in (["2", "3"], ["4"], ["2", "3"])]
    lists = recommender.retrieve(asked)
    given = [with_weights(recommender.preferences(["1"]), {"GENRE_IS": weight}) for weight in (0.0, 0.5, 1.0)]
    first, alone, last = recommender.rank(lists, preferences=given)
    names = recommender.processor.relations
    assert alone.preferences is None
    for ranking, wanted in ((first, given[0]), (last, given[2])):
        assert dict(zip(names, ranking.preferences.tolist(), strict=True)) == pytest.approx(wanted)


def test_a_language_model_reads_the_paths_of_the_preferences_that_are_given(film_dataset):
    from tiny import model

    proc = processor(film_dataset).fit(examples(film_dataset))
    both = Recommender(model(proc, lm_scale=1.0), proc)
    items = both.recommend(["1"], candidates=["2", "3"], preferences={"GENRE_IS": 1.0})
    assert {reason.preference for item in items for reason in item.reasons if reason.relation} <= {0.0, 1.0}


@pytest.fixture(scope="module")
def view(recommender):
    return DemoView(recommender)


def test_choices_are_titles_and_those_that_are_not_alone_have_their_id(recommender, monkeypatch):
    titles = ("Heat", "Heat", "Toy Story", "Antz", "Alien", "Up")
    renamed = Recommender(recommender.model, recommender.processor.with_titles(titles), recommender.retriever)
    choices = DemoView(renamed).choices()
    assert [title for title, _ in choices] == ["Alien", "Antz", "Heat [1]", "Heat [2]", "Toy Story", "Up"]
    assert sorted(raw for _, raw in choices) == ["1", "2", "3", "4", "5", "6"]
    monkeypatch.setattr("llamarec_lkg.serving.demo_view.MOST_CHOICES", 3)
    counts = dict(zip(renamed.item_ids, renamed.processor.log_counts[1:].tolist(), strict=True))
    kept = {raw for _, raw in DemoView(renamed).choices()}
    rare = min(counts, key=counts.get)
    assert rare not in kept and rare in {raw for _, raw in DemoView(renamed).choices([rare])}
    assert len(kept) == 3 and min(counts[raw] for raw in kept) >= max(counts[raw] for raw in counts.keys() - kept)


def test_the_list_shows_scores_paths_and_what_moved(view):
    answer = view.answer(["1"])
    html = view.ranked(answer, answer.ranks, answer.ranks)
    for item in answer.items:
        assert item.title in html and f"{item.score:+.2f}" in html
    assert re.search(r"<small>directed by</small>Mann", html) and "▲" not in html and "▼" not in html
    own_ranks = {item.item_id: len(answer.items) + 1 - item.rank for item in answer.items}
    moved = view.ranked(answer, own_ranks, own_ranks)
    assert "▲ 4" in moved and "▼ 4" in moved and "--offset: 4" in moved


def test_pieces_of_a_bar_lie_one_behind_the_other_on_their_side_of_zero(view):
    pieces = view._bar({"retriever": 1.0, "DIRECTED_BY": 0.5, "popularity": -0.25, "window": -0.25}, -0.5, 1.5)
    assert [(piece["left"], piece["width"]) for piece in pieces] == [(25, 50), (75, 25), (12.5, 12.5), (0, 12.5)]
    assert view._bar({}, 0.0, 0.0) == []


def test_titles_are_text_whatever_is_in_them(recommender):
    titles = ("<script>alert(1)</script>", "B & B", "C", "D", "E", "F")
    shown = DemoView(Recommender(recommender.model, recommender.processor.with_titles(titles), recommender.retriever))
    answer = shown.answer(["3"])
    html = shown.ranked(answer, answer.ranks, answer.ranks) + shown.compared(answer)
    assert "&lt;script&gt;" in html and "<script" not in html and "B &amp; B" in html


def test_both_orders_stand_side_by_side(view):
    answer = view.answer(["1"])
    html = view.compared(answer)
    left, right = (re.findall(r'<span title="(.+?)">', half) for half in html.split("<svg", 1))
    assert right == [item.title for item in answer.items]
    assert left == [item.title for item in sorted(answer.items, key=lambda item: -item.retrieval_score)]
    assert html.count("<path") == len(answer.items)


def test_relations_are_words():
    names = ["CO_RATED", "RELEASED_YEAR_IS", "DIRECTED_BY", "language model"]
    assert [*map(in_words, names)] == ["rated by the same people", "released year", "directed by", "language model"]


def test_the_app_answers_its_events(recommender):
    blocks = build_demo(recommender, ["1"])
    events = list(blocks.fns.values())
    choose, reset, *moves = [event.fn for event in events]
    names = DemoView(recommender).relations
    assert len(moves) == len(names)
    answer, own_ranks, ranked, compared, *sliders = choose(["1", "2"])
    assert [update["value"] for update in sliders] == [round(100 * answer.own[name]) for name in names]
    assert "Heat (1995)" in ranked and "Retriever" in compared
    moved, kept, _, _, *sliders = moves[0](["1", "2"], answer, own_ranks, 90)
    assert kept == own_ranks and moved.preferences[names[0]] == pytest.approx(0.9)
    assert "value" not in sliders[0] and "(history: " in sliders[0]["label"]
    assert sum(moved.preferences.values()) == pytest.approx(1) and moved.own == answer.own
    moved, *_ = moves[0](["1", "2"], moved, own_ranks, 100)
    moved, *_ = moves[0](["1", "2"], moved, own_ranks, 40)
    assert moved.preferences[names[0]] == pytest.approx(0.4), "also after nothing was left for the others"
    own = [answer.own[name] for name in names[1:]]
    assert [moved.preferences[name] / 0.6 for name in names[1:]] == pytest.approx([one / sum(own) for one in own])
    again, *_ = reset(["1", "2"], moved)
    assert again.preferences == again.own and again.items == answer.items
    assert choose([])[0].items, "an empty history is ranked, too"


def test_the_command_hands_its_options_on(monkeypatch, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    calls = []
    monkeypatch.setattr("llamarec_lkg.serving.demo.launch_demo", lambda model, **options: calls.append(options))
    assert main(["demo", "--model", str(tmp_path)]) == 0
    given = ["--history", "50", "181", "--host", "0.0.0.0", "--port", "80", "--no-browser"]
    assert main(["demo", "--model", str(tmp_path), *given]) == 0
    monkeypatch.setenv("GRADIO_SERVER_NAME", "0.0.0.0")  # Gradio's own way to say it, as in containers
    assert main(["demo", "--model", str(tmp_path)]) == 0 and calls[2] == calls[0] | {"server_name": "0.0.0.0"}
    assert calls[0] == {"history": None, "server_name": "127.0.0.1", "server_port": None, "inbrowser": True}
    assert calls[1] == {"history": ["50", "181"], "server_name": "0.0.0.0", "server_port": 80, "inbrowser": False}


def test_a_port_in_use_is_said_with_a_way_on(recommender, monkeypatch, tmp_path, capsys):
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setattr("llamarec_lkg.serving.demo.Recommender.from_pretrained", lambda model: recommender)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert main(["demo", "--model", str(tmp_path), "--port", str(port), "--no-browser"]) == 1
    said = capsys.readouterr().err
    assert f"llamarec-lkg demo: The demo cannot listen at 127.0.0.1:{port}" in said and "another port (--port)" in said


def test_without_gradio_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr("llamarec_lkg.serving.demo.importlib.util", SimpleNamespace(find_spec=lambda name: None))
    with pytest.raises(LKGError, match=r'pip install "llamarec-lkg\[demo\]"'):
        launch_demo("anywhere")
