"""The page about your own data does what it says: every block runs as it is written, and prints what stands below."""

import contextlib
import io
import json
import re
from pathlib import Path

import pytest
from hub_stand_in.card_checks import validate
from hub_stand_in.client import run_python
from hub_stand_in.world import readable

from llamarec_lkg.cli import main


pytestmark = pytest.mark.hub
ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "examples" / "your_data.md"
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


# in a process of its own, as a reader has it: `evaluate` keeps one folder of modules for each
RUN = """
import contextlib, io, json, shlex, sys
from llamarec_lkg.cli import main

names, said = {"__name__": "__main__"}, []
for kind, code in json.loads(blocks):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        if kind == "python":
            exec(compile(code, "the page", "exec"), names)
        elif kind == "bash":
            for line in code.splitlines():
                command, *arguments = shlex.split(line)
                assert command == "llamarec-lkg" and main(arguments) == 0, line
    said.append(out.getvalue())
print(json.dumps(said))
"""


def test_every_block_of_the_page_runs_and_prints_what_it_says(hub_server, tmp_path):
    blocks = [(kind, code.replace("you/", "tester/")) for kind, code in BLOCKS]
    done = run_python(hub_server, f"blocks = {json.dumps(blocks)!r}\n{RUN}", tmp_path / "home")
    said = json.loads(done.stdout.splitlines()[-1])
    texts = [place for place, (kind, _) in enumerate(blocks) if kind == "text"]
    assert len(texts) > 5
    for place in texts:
        assert said[place - 1] == blocks[place][1]
    for repo in ("tester/films", "tester/films-small"):
        assert hub_server.repository(repo, "dataset").private
        files = hub_server.files(repo, repo_type="dataset")
        assert "interactions.parquet" in files and b"example.org" not in readable(files)
        assert validate(files["README.md"].decode(), "dataset") == ([], [])


def test_the_page_has_a_block_for_each_thing_a_newcomer_looks_for():
    code = "".join(code for kind, code in BLOCKS if kind != "text")
    wanted = ["interactions.csv", "llamarec-lkg convert", "push_dataset(", "llamarec-lkg push-dataset", "nx.Graph()"]
    wanted += ["with_triples(", "stream_interactions(", "llamarec-lkg export-metrics", "evaluate.load("]
    assert not [text for text in wanted if text not in code]
    assert "(examples/your_data.md)" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_page_names_every_option_and_every_format():
    from llamarec_lkg.data.convert import FORMATS

    text = PAGE.read_text(encoding="utf-8")
    with contextlib.redirect_stdout(io.StringIO()) as out, pytest.raises(SystemExit):
        main(["push-dataset", "--help"])
    options = set(re.findall(r"^  (--[a-z-]+)", out.getvalue(), re.MULTILINE))
    assert {option for option in options if option not in text} == {"--verbose"}
    assert not [name for name in FORMATS if f"| `{name}` |" not in text]
