"""README and guides do what they say: the blocks of each page run as they are written, and print what stands below.

```python and ```bash blocks run in their order, one page after another, in one folder and one process: a reader who
goes through all of it. A ```text block is what the block above it prints. ```sh blocks take an installation, a GPU or
hours; of these only files, targets and options are checked. Blocks without a name are excerpts.

The reader's Hub is the stand-in. Its `HuggingFaceTB/SmolLM2-135M-Instruct` has a few thousand weights, and
`path/to/folder` holds a world of forty users.
"""

import contextlib
import io
import json
import re
import shlex
from pathlib import Path

import pandas as pd
import pytest
import yaml
from hub_stand_in.card_checks import validate
from hub_stand_in.client import run_python, use_hub
from hub_stand_in.server import HubServer
from hub_stand_in.world import readable
from test_architecture import ROOMS
from tiny import backbone, tokenizer
from tiny_run import settings, write_world

from llamarec_lkg.cli import main
from llamarec_lkg.data.convert import FORMATS


pytestmark = pytest.mark.hub
ROOT = Path(__file__).resolve().parents[1]
# in the order in which they run: `train` leaves the ranker that the others load
PAGES = ["examples/your_data.md", "examples/train.md", "README.md", "examples/evaluate.md", "examples/share.md",
         "examples/rank.md", "examples/remote.md", "examples/serve.md", "examples/demo.md",
         "examples/how_it_works.md"]  # fmt: skip
DOCUMENTS = [*PAGES, "examples/results/costs.md", "CONTRIBUTING.md", "CHANGELOG.md"]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"
FILM_IDS = {11: 50, 12: 181, 13: 172, 14: 174, 15: 100}  # those that the pages name

# -> for each page what its blocks print, and the traceback of the one that failed
READER = """
import contextlib, io, json, pathlib, shlex, sys, traceback
from llamarec_lkg.cli import main

said = {}
for page, blocks in json.loads(pathlib.Path("blocks.json").read_text()).items():
    names, printed, error = {"__name__": "__main__"}, [], None
    for kind, code in blocks:
        try:
            with contextlib.redirect_stdout(io.StringIO()) as out:
                if kind == "python":
                    exec(compile(code, page, "exec"), names)
                elif kind == "bash":
                    for line in code.splitlines():
                        command, *arguments = shlex.split(line)
                        assert command == "llamarec-lkg" and main(arguments) == 0, line
        except BaseException:
            error = code + traceback.format_exc()
            break
        printed.append(out.getvalue())
    said[page] = [printed, error]
pathlib.Path("said.json").write_text(json.dumps(said))
"""


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks_of(page: str) -> list[tuple[str, str]]:
    """(kind, code) of each block; `you` is the account that the stand-in knows."""
    return [(kind, code.replace("you/", "tester/")) for kind, code in BLOCK.findall(text_of(page))]


def make_world(folder: Path) -> None:
    write_world(folder)
    for name, columns in (("items.csv", ["item_id"]), ("triples.csv", ["head", "tail"])):
        table = pd.read_csv(folder / name)
        table[columns] = table[columns].replace(FILM_IDS)
        table.to_csv(folder / name, index=False)
    interactions = pd.read_parquet(folder / "interactions.parquet")
    interactions["item_id"] = interactions["item_id"].replace(FILM_IDS)
    interactions["user_id"] = [f"user-{user}@example.org" for user in interactions["user_id"]]
    interactions.to_parquet(folder / "interactions.parquet")


def small_quickstart(folder: Path) -> dict:
    """The quickstart's configuration, for the small world and backbone."""
    run = settings(folder)
    run |= {"output_dir": "outputs/quickstart", "data": {"dataset": "path/to/folder"}}
    run["preprocessing"], run["prompt"] = {}, {"history_length": 3, "num_paths": 2, "max_title_tokens": 8}
    run["backbone"] |= {"model_name_or_path": SMOLLM2, "dtype": "auto"}
    return run


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    """What the pages print, {page: [outputs, error]}; and the Hub as it is afterwards."""
    home = tmp_path_factory.mktemp("reader")
    for parent in ("path/to", "examples/configs"):
        (home / parent).mkdir(parents=True)
    make_world(home / "path/to/folder")
    (home / "examples/configs/quickstart.yaml").write_text(yaml.safe_dump(small_quickstart(home)))
    (home / "blocks.json").write_text(json.dumps({page: blocks_of(page) for page in PAGES}))
    with HubServer() as server:
        with use_hub(server, home / "publisher", server.add_account("HuggingFaceTB")):
            backbone().push_to_hub(SMOLLM2)
            tokenizer().push_to_hub(SMOLLM2)
        run_python(server, READER, home, variables={"LLAMAREC_LKG_CACHE": str(home / "cache")}, timeout=600)
        yield json.loads((home / "said.json").read_text()), server


@pytest.mark.parametrize("page", PAGES)
def test_every_block_runs_and_prints_what_it_says(page, reader):
    printed, error = reader[0][page]
    assert error is None, error
    blocks = blocks_of(page)
    assert any(kind in ("python", "bash") for kind, _ in blocks)
    assert {kind for kind, _ in blocks} <= {"python", "bash", "text", "sh", "mermaid", ""}
    for place, (kind, code) in enumerate(blocks):
        if kind == "text":
            assert printed[place - 1] == code


def test_what_the_pages_push_names_nobody_and_its_cards_are_valid(reader):
    _, hub = reader
    repositories = [("tester/films", "dataset"), ("tester/films-small", "dataset"), ("tester/films", "model")]
    for repo_id, kind in repositories:
        assert hub.repository(repo_id, kind).private
        files = hub.files(repo_id, repo_type=kind)
        assert "items.parquet" in files and b"example.org" not in readable(files)
        assert validate(files["README.md"].decode(), kind) == ([], [])


@pytest.mark.parametrize(
    ("page", "wanted"),
    {
        "README.md": ["Recommender.from_pretrained("],
        "examples/your_data.md": [
            *["interactions.csv", "llamarec-lkg convert", "push_dataset(", "llamarec-lkg push-dataset", "nx.Graph()"],
            *["with_triples(", "stream_interactions(", "llamarec-lkg export-metrics", "evaluate.load("],
        ],
        "examples/train.md": [
            *["llamarec-lkg train ", "LlamaRecLKGTrainer(", "LoraConfig(", "folds_of_users(", "load_adapter("],
            "trainer.save_model()",
        ],
        "examples/evaluate.md": ["evaluation.controls=", "difference_ci95", "bootstrap_interval("],
        "examples/share.md": [
            *["llamarec-lkg push ", "recommender.push_to_hub(", "AutoModel.from_pretrained(", "pipeline("],
            "load_in_4bit=True",
        ],
        "examples/rank.md": ["llamarec-lkg rank ", "rank_file("],
        "examples/remote.md": ["llamarec-lkg export ", "llamarec-lkg prompts "],
        "examples/serve.md": ["make_app("],
        "examples/how_it_works.md": ["with_co_ratings("],
    }.items(),
)
def test_a_page_shows_in_running_blocks_what_it_is_for(page, wanted):
    code = "".join(code for kind, code in BLOCK.findall(text_of(page)) if kind in ("python", "bash"))
    assert not [text for text in wanted if text not in code]


def help_of(*command: str) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as out, pytest.raises(SystemExit):
        main([*command, "--help"])
    return out.getvalue()


def test_the_page_on_data_names_every_option_and_every_format():
    text = text_of("examples/your_data.md")
    options = set(re.findall(r"^  (--[a-z-]+)", help_of("push-dataset"), re.MULTILINE))
    assert {option for option in options if option not in text} == {"--verbose"}
    assert not [name for name in FORMATS if f"| `{name}` |" not in text]


def test_the_page_on_ranking_names_every_option():
    text = text_of("examples/rank.md")
    options = set(re.findall(r"^  (?:-k K, )?(--[a-z-]+)", help_of("rank"), re.MULTILINE))
    assert {option for option in options if option not in text} == {"--verbose", "--no-progress", "--repeats"}


def test_the_page_on_serving_names_every_option():
    options = set(re.findall(r"^  (--[a-z-]+)", help_of("serve"), re.MULTILINE))
    assert {option for option in options if option not in text_of("examples/serve.md")} == {"--verbose"}


def test_commands_that_are_not_run_name_files_targets_and_options_that_there_are():
    makefile = text_of("Makefile")
    lines = [line for page in DOCUMENTS for kind, code in BLOCK.findall(text_of(page)) if kind == "sh"
             for line in code.splitlines()]  # fmt: skip
    assert len(lines) > 15
    for line in lines:
        words = shlex.split(line, comments=True)
        scripts = [word for word in words if re.fullmatch(r"examples/\w+\.py", word)]
        assert not [word for word in words if word.startswith(("examples/", "tests/")) and not (ROOT / word).exists()]
        if scripts:
            known = text_of(scripts[0])
            options = words[words.index(scripts[0]) :]
        elif words[0] == "llamarec-lkg":
            known, options = help_of(words[1]), words
        else:
            known, options = "", []
        options = {word.partition("=")[0] for word in options if word.startswith("--")}
        assert not [word for word in options if not re.search(rf"(?<![\w-]){word}(?![\w-])", known)], line
        if words[0] == "make":
            assert re.search(rf"^([\w-]+ )*{words[1]}( [\w-]+)*:", makefile, re.MULTILINE), line


@pytest.mark.parametrize("page", DOCUMENTS)
def test_links_and_the_files_that_are_named_are_there(page):
    text = BLOCK.sub("", text_of(page))
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        found = ((ROOT / page).parent / path) if path else ROOT / page
        assert found.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.+)$", BLOCK.sub("", found.read_text(encoding="utf-8")), re.MULTILINE)
            assert anchor in [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles], target
    for name in re.findall(r"`((?:[a-z_]+/)+\w+\.(?:py|yaml|md|json|png))`", text):
        if name.startswith("outputs/"):  # what a run writes
            continue
        assert page == "CHANGELOG.md" or (ROOT / name).exists() or (ROOT / "llamarec_lkg" / name).exists(), name


def test_the_readme_leads_to_every_guide_and_contributing_names_every_room():
    guides = {f"examples/{path.name}" for path in (ROOT / "examples").glob("*.md")}
    assert guides | {"README.md"} == set(PAGES)
    assert not [page for page in guides | {"CONTRIBUTING.md"} if f"]({page})" not in text_of("README.md")]
    rooms = re.findall(r"^\| `([a-z_]+)(?:\.py|/)` \|", text_of("CONTRIBUTING.md"), re.MULTILINE)
    assert rooms == ROOMS
