"""The page about your own data does what it says: every block runs as it is written, and prints what stands below."""

import contextlib
import io
import re
import shlex
import sys
from pathlib import Path

import evaluate  # noqa: F401 (so that the stand-in's caches are its own, too)
import pytest
from hub_card_checks import validate

from llamarec_lkg.cli import main


pytestmark = pytest.mark.hub
ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "examples" / "your_data.md"
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def run(kind, code, names):
    """What a block prints."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        if kind == "python":
            exec(compile(code, PAGE.name, "exec"), names)
        else:
            for line in code.splitlines():
                command, *arguments = shlex.split(line)
                assert command == "llamarec-lkg" and main(arguments) == 0, line
    return out.getvalue()


def test_every_block_of_the_page_runs_and_prints_what_it_says(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for module in [name for name in sys.modules if name.split(".")[0] == "evaluate_modules"]:
        monkeypatch.delitem(sys.modules, module)  # of another test, from a folder that is gone
    names, printed = {"__name__": "your_data"}, ""
    for kind, code in ((kind, code.replace("you/", "tester/")) for kind, code in BLOCKS):
        if kind == "text":
            assert printed == code
        else:
            printed = run(kind, code, names)
    for repo in ("tester/films", "tester/films-small"):
        assert hub.repository(repo, "dataset").private
        files = hub.files(repo, repo_type="dataset")
        assert "interactions.parquet" in files and b"example.org" not in b"".join(files.values())
        assert validate(files["README.md"].decode(), "dataset") == ([], [])


def test_the_page_has_a_block_for_each_thing_a_newcomer_looks_for():
    code = "".join(code for kind, code in BLOCKS if kind != "text")
    wanted = ["interactions.csv", "llamarec-lkg convert", "push_dataset(", "llamarec-lkg push-dataset", "nx.Graph()"]
    wanted += ["with_triples(", "stream_interactions(", "llamarec-lkg export-metrics", "evaluate.load("]
    assert not [text for text in wanted if text not in code]
    assert "(examples/your_data.md)" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_page_names_every_option_and_every_format():
    from llamarec_lkg.converters import FORMATS

    text = PAGE.read_text(encoding="utf-8")
    with contextlib.redirect_stdout(io.StringIO()) as out, pytest.raises(SystemExit):
        main(["push-dataset", "--help"])
    options = set(re.findall(r"^  (--[a-z-]+)", out.getvalue(), re.MULTILINE))
    assert {option for option in options if option not in text} == {"--verbose", "--include-interactions"}
    assert not [name for name in FORMATS if f"| `{name}` |" not in text]
