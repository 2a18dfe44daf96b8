"""A saved folder that is about people tells git and the Hub's client to leave it alone: a push takes files by name,
but who uploads a folder by other means, as `transformers.Trainer` does, takes all of it."""

from __future__ import annotations

from pathlib import Path

from transformers.utils import logging

from ..utils.hub import RULES_FILE as HOME_FILE
from ..utils.hub import ignored
from .layout import GRAPH_FOLDER, SHIM, USERS_FILE, WEIGHTS_FILE


logger = logging.get_logger(__name__)


HOME_TEXT = """\
# What was saved here is about people: ids of users, weights of single users, or who rated what. This file makes git,
# and uploads of whole folders to the Hub (`upload_folder`, `hf upload`, `transformers.Trainer.push_to_hub`), leave
# all of it alone. `llamarec-lkg push` and every `push_to_hub` of llamarec_lkg publish it without people, or with
# those you ask for. An upload that is to take everything leaves this file out (`ignore_patterns=".gitignore"`).
*
"""


ABOUT_PEOPLE = (USERS_FILE, f"{GRAPH_FOLDER}/graph.safetensors", f"{GRAPH_FOLDER}/nodes.parquet", WEIGHTS_FILE)


WORK = (".git", "*.py", "*.ipynb", "*.sh", "*.toml", "Makefile", "requirements*.txt")
"""By these a folder is somebody's work, and not only what was saved or trained."""


def stays_home(folder: Path) -> bool:
    """Whether `HOME_TEXT` may be written into a folder: not over a file of that name, nor where it would hide
    somebody's work from git. A warning then says, once, that what is about people lies open."""
    if (folder / HOME_FILE).exists():
        rules = (folder / HOME_FILE).read_text(encoding="utf-8", errors="replace")
        taken_back = "\n".join(line[1:] for line in rules.splitlines() if line.startswith("!"))
        kept = {*ignored(rules, ABOUT_PEOPLE)} - {*ignored(taken_back, ABOUT_PEOPLE)}
        found = [name for name in ABOUT_PEOPLE if name not in kept]
        reason = f"the {HOME_FILE} there does not leave out {found}"
    else:
        found = sorted({path.name for name in WORK for path in folder.glob(name)} - {f"{SHIM}.py"})
        reason = f"it lies beside {found[:3]}, which a {HOME_FILE} that leaves out everything would hide"
        if not found:
            return True
    if found:
        logger.warning_once(
            f"What is saved in {folder.resolve()} is about people, and git and uploads of the whole folder may take "
            f"it along: {reason}. Save it in a folder of its own, or have a {HOME_FILE} there leave out `*.parquet` "
            "and `*.safetensors`."
        )
    return False
