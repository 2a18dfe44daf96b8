"""What an installed copy carries."""

import configparser
import email
import re
import zipfile
from pathlib import Path

import pytest

import llamarec_lkg
from llamarec_lkg import LKGError
from llamarec_lkg.utils.hub import template_text


ROOT = Path(__file__).resolve().parents[1]


def cards():
    folder = ROOT / "hub_cards"
    return {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}


def test_every_card_template_is_found_and_packed():
    templates = {name: path for name, path in cards().items() if name.endswith(".j2")}
    assert {"model_card.md.j2", "space/app.py.j2"} <= templates.keys()
    for name, path in templates.items():
        assert template_text(name) == path.read_text(encoding="utf-8")


def test_the_wheel_holds_the_package_and_its_templates_and_nothing_else(wheel):
    """No tests, no data, no examples; what is in it is what is in the checkout."""
    wanted = {path.relative_to(ROOT).as_posix(): path for path in (ROOT / "llamarec_lkg").rglob("*.py")}
    wanted |= {f"llamarec_lkg/hub_cards/{name}": path for name, path in cards().items()}
    with zipfile.ZipFile(wheel) as file:
        content = {name: file.read(name) for name in file.namelist()}
    about = {name.split("/", 1)[1]: data for name, data in content.items() if ".dist-info/" in name}
    assert {name for name in content if ".dist-info/" not in name} == set(wanted)
    assert all(content[name] == path.read_bytes() for name, path in wanted.items())
    assert about["licenses/LICENSE"] == (ROOT / "LICENSE").read_bytes()
    entry_points = configparser.ConfigParser()
    entry_points.read_string(about["entry_points.txt"].decode())
    assert dict(entry_points["console_scripts"]) == {"llamarec-lkg": "llamarec_lkg.cli:main"}
    metadata = email.message_from_bytes(about["METADATA"])
    assert (metadata["Name"], metadata["Version"]) == ("llamarec-lkg", llamarec_lkg.__version__)
    needed = [line for line in metadata.get_all("Requires-Dist") if "extra ==" not in line]
    assert "huggingface_hub>=1.26" in needed, "the first with `HfApi.resolve_revision`"
    assert {"transformers", "peft", "huggingface_hub"} <= {re.match(r"[\w-]+", line)[0] for line in needed}


def test_a_missing_template_says_what_to_do():
    with pytest.raises(LKGError, match="Install the package again"):
        template_text("absent.j2")


def test_the_readme_has_no_placeholder_and_its_picture_exists():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "RESULTS_TABLE" not in text
    assert (ROOT / "examples" / "results" / "quickstart.png").exists()
