"""The demo of a ranker as a Space, which needs nothing but what is pushed with it and what pip finds everywhere."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import jinja2
from huggingface_hub import CommitInfo

from ..utils.errors import LKGError
from ..utils.hub import answers_in_time, card_folder, is_hub_id, push_files, template_text, whole_id
from .layout import CARD_FILE, PARTS
from .repository import Repository


PACKAGE = Path(__file__).parents[1]
SOURCES = ["llamarec_lkg/*.py", "llamarec_lkg/*/*.py", "llamarec_lkg/*/*/*.py", "llamarec_lkg/hub_cards/*",
           "llamarec_lkg/hub_cards/*/*"]  # fmt: skip


@answers_in_time()
def push_space(
    repo_id: str,
    model: str,
    *,
    history: Sequence[str] | None = None,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str | None = None,
    token: str | bool | None = None,
) -> CommitInfo:
    """Push the demo of a ranker as a Space: the app, its requirements, a README.md with the Space's settings, and the
    source of this package, so that the Space runs the very version that pushed it.

    What of these is there already is replaced, edited or not; other files stay. A private model is read with the
    Space's secret `HF_TOKEN`, which its owner sets in the Space's settings.

    Args:
        repo_id (`str`): "owner/name" of the Space, or a name of one's own; made if it does not exist.
        model: Hub id of a ranker with its processor and retriever.
        history: raw item ids to begin with; by default what most people chose.
        private, revision, create_pr, commit_message, token: as for [`~utils.hub.push_files`].

    Raises:
        LKGError: `model` is not on the Hub, or lacks a part, or the upload failed.
    """
    if not is_hub_id(model):
        raise LKGError(
            f"A Space loads its model from the Hub, and {model!r} is no id there ('owner/name'). Push it first "
            "(`llamarec-lkg push`), and give its id."
        )
    lacking = sorted(PARTS.keys() - Repository(model, token=token).parts())
    if lacking:
        raise LKGError(
            f"{model!r} lacks its {', '.join(lacking)}, and the demo needs all of {', '.join(PARTS)}. Nothing was "
            "uploaded. Push a run that holds them (`llamarec-lkg push`)."
        )
    repo_id = whole_id(repo_id, token)
    return push_files(
        repo_id,
        space_files(repo_id, model, history),
        replaces=[
            "llamarec_lkg/*.py",
            "llamarec_lkg/*/*.py",
            "llamarec_lkg/hub_cards/*",
            "llamarec_lkg/hub_cards/*/*",
        ],
        repo_type="space",
        private=private,
        revision=revision,
        create_pr=create_pr,
        commit_message=commit_message or f"Upload the demo of {model} with llamarec_lkg",
        token=token,
    )


def space_files(repo_id: str, model: str, history: Sequence[str] | None = None) -> dict[str, bytes | Path]:
    """Path in the Space -> content."""
    values = {"name": repo_id.split("/")[-1], "model": model, "history": None if history is None else list(history)}
    files: dict[str, bytes | Path] = {"requirements.txt": template_text("space/requirements.txt").encode()}
    for name, template in {"app.py": "app.py.j2", CARD_FILE: "README.md.j2"}.items():
        template = jinja2.Template(template_text(f"space/{template}"), keep_trailing_newline=True)
        files[name] = template.render(values).encode()
    cards = card_folder()
    sources = [(PACKAGE, PACKAGE.rglob("*.py"), ""), (cards, cards.rglob("*"), "hub_cards/")]
    for folder, paths, place in sources:
        files |= {f"llamarec_lkg/{place}{path.relative_to(folder).as_posix()}": path
                  for path in sorted(paths) if path.is_file() and "__pycache__" not in path.parts}  # fmt: skip
    return files
