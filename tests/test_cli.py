"""The command line: what it prints, what it refuses, and that it starts at once where no model is needed.

The stages of a run are tested with the workflow (tests/training), what `convert` writes with the formats (tests/data),
and what a push uploads with the Hub (tests/hub).
"""

import json
import runpy
import signal
import socket
import sys
import types
from pathlib import Path

import pandas as pd
import pytest
from test_entry import HEAVY, run_python
from tiny import processor

from llamarec_lkg import LlamaRecLKGForRanking
from llamarec_lkg.cli import COMMANDS, main
from llamarec_lkg.data.engine import reading


LIGHT = {
    "help": ["--help"],
    "help of a command with formats": ["convert", "--help"],
    "an unknown command": ["conver"],
    "a missing argument": ["recommend", "--model", "x"],
    "convert": ["convert", "world", "tables"],
    "export-metrics": ["export-metrics", "metrics"],
}


@pytest.mark.parametrize("arguments", LIGHT.values(), ids=LIGHT.keys())
def test_what_needs_no_model_loads_no_model_library(arguments, tmp_path):
    (tmp_path / "world").mkdir()
    (tmp_path / "world" / "interactions.csv").write_text("user_id,item_id,timestamp\n1,a,1\n1,b,2\n")
    (tmp_path / "world" / "items.csv").write_text("item_id,title\na,A\nb,B\n")
    code = f"""
import os, sys
os.chdir({str(tmp_path)!r})
sys.argv[0] = "llamarec-lkg"
import runpy
try:
    runpy.run_module("llamarec_lkg.cli", run_name="__main__")
except SystemExit as error:
    print(error.code, [name for name in {HEAVY} if name in sys.modules])
"""
    status = 2 if arguments in (["conver"], ["recommend", "--model", "x"]) else 0
    assert run_python(code, *arguments).splitlines()[-1] == f"{status} []"
    if arguments[0] in ("convert", "export-metrics") and "--help" not in arguments:
        assert list((tmp_path / arguments[-1]).iterdir())


def test_every_command_has_options_and_a_function(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    assert "{" + ",".join(COMMANDS) + "}" in "".join(capsys.readouterr().out.split())


def save(folder, dataset, **config):
    proc = processor(dataset)
    ranker = LlamaRecLKGForRanking(proc.model_config(use_language_model=False, **config))
    ranker.save_pretrained(folder)
    proc.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(film_dataset, tmp_path_factory):
    """A ranker without language model, without weights of single users and without a retriever."""
    return save(tmp_path_factory.mktemp("ranker"), film_dataset)


def test_recommend_prints_titles_and_json(folder, capsys):
    command = ["recommend", "--model", str(folder), "--history", "1", "2", "--candidates", "3", "4", "5"]
    assert main([*command, "-k", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    ranked = [line for line in lines if not line.startswith("      ")]
    assert [line[:5] for line in ranked] == ["  1. ", "  2. "] and "Alien (1979)" in lines[0]
    assert main([*command, "--user", "7", "--json"]) == 0
    said = capsys.readouterr()
    assert [record["rank"] for record in json.loads(said.out)] == [1, 2, 3]
    assert "no weights for user '7': the history alone decides" in said.err


def test_recommend_says_why_and_draws_it(folder, tmp_path, capsys):
    command = ["recommend", "--model", str(folder), "--history", "1", "--candidates", "2", "3"]
    assert main([*command, "--sentences", "--draw", str(tmp_path / "why.png")]) == 0
    said = capsys.readouterr()
    assert said.out.startswith("  1. ") and " scores " in said.out and "why.png" in said.err
    assert (tmp_path / "why.png").read_bytes().startswith(b"\x89PNG")


def test_preferences_are_printed_and_drawn(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = ["preferences", "--model", str(folder), "--history", "1", "2"]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "an unknown user follows, from a history of 2 items" in said
    assert "DIRECTED_BY" in said and "All alike would be" in said
    (tmp_path / "preferences.png").rename(tmp_path / "seen.png")
    assert main([*command, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert sum(record["preferences"].values()) == pytest.approx(1.0, abs=1e-5) and not record["known"]
    assert record["preferences"] == record["history_alone"], "nobody's id adds nothing"
    assert not (tmp_path / "preferences.png").exists()


def test_a_user_with_weights_of_their_own_is_known(film_dataset, tmp_path, capsys):
    folder = save(tmp_path, film_dataset, use_user_embedding=True)
    command = ["preferences", "--model", str(folder), "--history", "1", "--json", "--user"]
    assert main([*command, "2"]) == 0 and json.loads(capsys.readouterr().out)["known"]
    assert main([*command, "99"]) == 0 and not json.loads(capsys.readouterr().out)["known"]


@pytest.mark.parametrize("command", ["recommend", "preferences"])
def test_a_history_is_needed(command, capsys):
    with pytest.raises(SystemExit, match="2"):
        main([command, "--model", "anywhere", "--user", "3"])
    assert "the following arguments are required: --history" in capsys.readouterr().err


DASHED = ["-SxV944iB48", "--WwShcgXz0", "-h", "--json", "--history", "-k5", "-5", "a=b", "a b", "é"]


@pytest.fixture(scope="module")
def dashed_folder(make_dataset, tmp_path_factory):
    """A ranker of items, and of users, whose ids are any text."""
    items = pd.DataFrame({"item_id": DASHED, "title": [f"Title {raw}" for raw in DASHED], "kind": "x"})
    rows = [(raw, DASHED[(user + step) % 10], step) for user, raw in enumerate(DASHED) for step in range(5)]
    return save(tmp_path_factory.mktemp("dashed"), make_dataset(rows, items), use_user_embedding=True)


FORMS = {
    "repeated": [f"--history={raw}" for raw in DASHED],
    "after dashes": ["--history", "--", *DASHED],
    "some after dashes": ["--history=-SxV944iB48", "--history", "--", *DASHED[1:]],
    "options between": [*(f"--history={raw}" for raw in DASHED[:3]), "--verbose", "--", *DASHED[3:]],
}


@pytest.mark.parametrize("given", FORMS.values(), ids=FORMS.keys())
def test_ids_are_any_text_in_their_order(dashed_folder, given, capsys):
    user = ["--user=-SxV944iB48", "--json"]
    assert main(["preferences", "--model", str(dashed_folder), *user, *given]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["history"] == DASHED and record["user"] == "-SxV944iB48" and record["known"]
    candidates = ["--candidates=-h", "--candidates", "a=b", "é", "--candidates=--json"]
    assert main(["recommend", "--model", str(dashed_folder), *user, *candidates, *given]) == 0
    assert {record["item_id"] for record in json.loads(capsys.readouterr().out)} == {"-h", "a=b", "é", "--json"}


def test_an_empty_history_stays_one_and_what_is_after_dashes_belongs_to_the_last_list(dashed_folder, capsys):
    command = ["recommend", "--model", str(dashed_folder), "--json", "--history"]
    for given in (["--candidates", "--", "-h", "--json"], ["--candidates=-h", "--candidates=--json", "--"]):
        assert main([*command, *given]) == 0
        assert {record["item_id"] for record in json.loads(capsys.readouterr().out)} == {"-h", "--json"}


@pytest.mark.parametrize("command", ["recommend", "preferences"])
@pytest.mark.parametrize(
    "wrong, right",
    [
        (["--history", "-SxV944iB48"], ["--history=-SxV944iB48"]),
        (["--history", "a=b", "--WwShcgXz0"], ["--history", "a=b", "--", "--WwShcgXz0"]),
        (["--history=-SxV944iB48", "--WwShcgXz0"], ["--history=-SxV944iB48", "--history=--WwShcgXz0"]),
        (["--history", "é", "--user", "-SxV944iB48"], ["--history", "é", "--user=-SxV944iB48"]),
    ],
)
def test_an_id_that_looks_like_an_option_is_refused_with_both_ways_on(dashed_folder, command, wrong, right, capsys):
    start = [command, "--model", str(dashed_folder), "--json"] + ["--candidates=-h"] * (command == "recommend")
    with pytest.raises(SystemExit, match="2"):
        main([*start, *wrong])
    said = capsys.readouterr().err
    assert f"llamarec-lkg {command}: error: " in said and "--history=ID --history=ID" in said and "-- ID ID" in said
    assert main([*start, *right]) == 0


def test_dashes_elsewhere_are_as_everywhere(tmp_path, capsys):
    assert main(["prepare", "--", "data.dataset=no-such-data"]) == 1
    assert "No data set 'no-such-data'" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["export-metrics", str(tmp_path), "--histery"])
    said = capsys.readouterr().err
    assert "unrecognized arguments: --histery" in said and "dash" not in said


def test_expected_failures_are_one_clear_line(folder, tmp_path, capsys):
    assert main(["recommend", "--model", str(folder), "--history", "404"]) == 1
    assert "llamarec-lkg recommend: " in (said := capsys.readouterr().err) and "'404'" in said
    assert main(["preferences", "--model", str(tmp_path), "--history", "1"]) == 1
    assert "holds no trained model (no config.json)" in capsys.readouterr().err
    assert main(["prepare", "data.dataset=no-such-data"]) == 1
    assert "No data set 'no-such-data'" in capsys.readouterr().err
    assert main(["prepare", "--config", str(tmp_path / "absent.yaml")]) == 1
    assert "cannot be read" in capsys.readouterr().err


def test_ctrl_c_ends_in_one_line_and_the_status_of_an_interrupt(tmp_path, monkeypatch, capsys):
    def interrupted(*given):
        raise KeyboardInterrupt

    def met_by_an_import(*given):
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise ImportError("initialization failed") from None

    monkeypatch.setitem(COMMANDS, "prepare", interrupted)
    assert main(["prepare"]) == 130
    assert capsys.readouterr().err == "llamarec-lkg prepare: interrupted\n"
    monkeypatch.setitem(COMMANDS, "prepare", met_by_an_import)
    assert main(["prepare"]) == 130
    assert capsys.readouterr().err == "llamarec-lkg prepare: interrupted\n"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    monkeypatch.setattr("llamarec_lkg.serving.server.run.load_app", lambda *args, **how: interrupted())
    monkeypatch.setattr("os._exit", sys.exit)  # which would end the tests
    with pytest.raises(SystemExit, match="130"):
        main(["serve", "--model", "owner/name"])
    assert capsys.readouterr().err.endswith("llamarec-lkg serve: interrupted\n")
    examples = Path(__file__).parents[1] / "examples"
    monkeypatch.setattr("llamarec_lkg.training.workflow.Workflow.run", interrupted)
    config = ["--config", str(examples / "configs/quickstart.yaml"), f"output_dir={tmp_path}"]
    monkeypatch.setattr("sys.argv", ["quickstart.py", *config])
    with pytest.raises(SystemExit, match="130"):
        runpy.run_path(str(examples / "quickstart.py"), run_name="__main__")
    assert capsys.readouterr().err.startswith("interrupted; the same command goes on")
    with pytest.raises(KeyboardInterrupt), reading("a table"):
        raise RuntimeError("Query interrupted")  # as DuckDB has it


def test_a_benchmark_is_of_all_files_and_overrides_and_prints_its_table(tmp_path, monkeypatch, capsys):
    files = {
        "run": "{training: {seed: 1, learning_rate: 2}, benchmark: {variants: {a: {training.seed: 3}}}}",
        "gpu": "{training: {seed: 5}, benchmark: {variants: {b: {training.seed: 4}}}}",
    }
    for name, text in files.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    seen = []
    report = types.SimpleNamespace(to_markdown=lambda: "# The table")
    monkeypatch.setattr("llamarec_lkg.training.benchmark.run_benchmark", lambda config: seen.append(config) or report)
    files = [option for name in ("run", "gpu") for option in ("--config", str(tmp_path / f"{name}.yaml"))]
    assert main(["benchmark", *files, "output_dir=there", "benchmark.seeds=[1, 2]"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "# The table"
    (config,) = seen
    assert config.training == {"seed": 5, "learning_rate": 2} and config.benchmark.seeds == [1, 2]
    assert config.output_dir == "there" and set(config.benchmark.variants) == {"a", "b"}


def test_push_hands_its_options_on(monkeypatch, capsys):
    calls = []

    def push_folder(folder, repo_id, **options):
        calls.append((folder, repo_id, options))
        return types.SimpleNamespace(pr_url=None, commit_url="https://hub/commit")

    monkeypatch.setattr("llamarec_lkg.hub.push.push_folder", push_folder)
    assert main(["push", "run", "you/name"]) == 0
    assert main(["push", "run", "you/name", "--share-users", "--private", "--backbone", "org/base"]) == 0
    assert capsys.readouterr().out == "https://hub/commit\n" * 2
    plain = {"private": None, "revision": None, "create_pr": False, "commit_message": None, "share_users": False}
    plain |= {"remove_retriever": False, "backbone": None}
    assert calls[0] == ("run", "you/name", plain)
    assert calls[1][2] == plain | {"share_users": True, "private": True, "backbone": "org/base"}


def test_a_server_finds_out_before_it_loads_that_it_cannot_listen(monkeypatch, capsys):
    monkeypatch.setattr("llamarec_lkg.serving.server.run.load_app", None)
    with socket.create_server(("127.0.0.1", 0)) as other:
        for port in (other.getsockname()[1], 99999):
            assert main(["serve", "--model", "owner/name", "--port", str(port)]) == 1
            assert f"Nothing can listen at 127.0.0.1:{port} (" in capsys.readouterr().err
