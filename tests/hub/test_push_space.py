"""The demo as a Space: what is pushed, that it runs by itself, and what is refused."""

import ast
import re
from pathlib import Path

import pytest
from hub_stand_in.card_checks import metadata, validate
from hub_stand_in.client import run_python
from hub_stand_in.world import RANKER, named_dataset, push_backbone, recommender, uploaded

from llamarec_lkg import LKGError, Recommender
from llamarec_lkg.cli import main
from llamarec_lkg.hub.push_space import push_space


pytestmark = pytest.mark.hub
ROOT = Path(__file__).resolve().parents[2]
SPACE = "tester/demo"


@pytest.fixture
def whole(hub, make_dataset, film_items) -> Recommender:
    push_backbone()
    return recommender(named_dataset(make_dataset, film_items))


def space(hub) -> dict[str, bytes]:
    return uploaded(hub, SPACE, repo_type="space")


# the Space as the Hub runs it: its folder alone, and the app's own call but for the server
RUN = """
import sys, types
import gradio
gradio.Blocks.launch = lambda blocks, **options: print("serves", len(blocks.fns), sorted(options))
import runpy
sys.path.insert(0, ".")
runpy.run_path("app.py", run_name="__main__")
print(sys.modules["llamarec_lkg"].__file__)
"""


def test_a_space_is_one_commit_that_runs_by_itself(hub, whole, tmp_path, capsys):
    whole.push_to_hub(RANKER)
    assert main(["push-space", SPACE, "--model", RANKER, "--history", "1", "2", "--private"]) == 0
    assert "commit" in capsys.readouterr().out
    files, repository = space(hub), hub.repository(SPACE, repo_type="space")
    assert repository.private and repository.sdk == "gradio"
    assert len(hub.commits(SPACE, repo_type="space")) == 2
    card = files["README.md"].decode()
    assert validate(card, "space") == ([], [])
    about = metadata(card)
    assert about["models"] == [RANKER] and about["title"] == "demo" and len(about["short_description"]) <= 60
    assert f"gradio>={about['sdk_version'].rpartition('.')[0]}" in files["requirements.txt"].decode().split()
    assert not [name for name in files if name.endswith(".pyc")]
    folder = tmp_path / "space"
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    said = run_python(hub, RUN, folder, variables={"PYTHONPATH": None}).stdout.splitlines()
    assert re.fullmatch(r"serves \d+ \['css', 'footer_links', 'theme'\]", said[-2])
    assert said[-1] == str(folder / "llamarec_lkg" / "__init__.py"), "not the one that is installed here"


def test_a_space_installs_what_the_package_and_its_demo_need():
    tree = ast.parse((ROOT / "setup.py").read_text(encoding="utf-8"))
    demo = next(ast.literal_eval(node.value) for node in tree.body
                if isinstance(node, ast.Assign) and node.targets[0].id == "DEMO")  # fmt: skip
    call = next(node.value for node in tree.body if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call))
    needed = next(ast.literal_eval(each.value) for each in call.keywords if each.arg == "install_requires")
    lines = (ROOT / "hub_cards/space/requirements.txt").read_text(encoding="utf-8").splitlines()
    assert lines[1:] == sorted([*needed, *demo])


def test_a_space_without_its_model_is_refused(hub, whole, tmp_path):
    for name in (str(tmp_path), "outputs"):
        with pytest.raises(LKGError, match=r"no id there \('owner/name'\). Push it first \(`llamarec-lkg push`\)"):
            push_space(SPACE, name)
    Recommender(whole.model, whole.processor).push_to_hub(RANKER)
    with pytest.raises(LKGError, match="'tester/ranker' lacks its retriever, .*Nothing was uploaded"):
        push_space(SPACE, RANKER)
    with pytest.raises(LKGError, match="'tester/absent' could not be asked for its files"):
        push_space(SPACE, "tester/absent")


def test_what_an_older_version_left_goes_and_what_is_not_ours_stays(hub, whole):
    from huggingface_hub import HfApi

    whole.push_to_hub(RANKER)
    push_space(SPACE, RANKER)
    for path in ("llamarec_lkg/serving/gone.py", "LICENSE"):
        HfApi().upload_file(path_or_fileobj=b"x = 1", path_in_repo=path, repo_id=SPACE, repo_type="space")
    push_space(SPACE, RANKER)
    assert "LICENSE" in space(hub) and "llamarec_lkg/serving/gone.py" not in space(hub)
