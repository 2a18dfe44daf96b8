"""What an installed copy carries."""

from pathlib import Path

import pytest

from llamarec_lkg import LKGDataError
from llamarec_lkg.model_card import template_text


ROOT = Path(__file__).resolve().parents[1]


def test_every_card_template_is_found_and_packed():
    templates = sorted(path.name for path in (ROOT / "hub_cards").glob("*.j2"))
    assert "model_card.md.j2" in templates
    for name in templates:
        assert template_text(name) == (ROOT / "hub_cards" / name).read_text(encoding="utf-8")
    assert '"llamarec_lkg.hub_cards": ["*.j2"]' in (ROOT / "setup.py").read_text(encoding="utf-8")


def test_a_missing_template_says_what_to_do():
    with pytest.raises(LKGDataError, match="Install the package again"):
        template_text("absent.j2")


def test_the_readme_has_no_placeholder_and_its_picture_exists():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "RESULTS_TABLE" not in text
    assert (ROOT / "examples" / "results" / "quickstart.png").exists()
