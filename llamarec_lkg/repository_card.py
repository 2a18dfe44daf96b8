"""The card of a repository that came without one, and what every card says of data about people."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, ModelCardData
from huggingface_hub import ModelCard as HubModelCard

from .backbones import HUB_IDS, is_local
from .hub import ADVICE, HUB_ERRORS, template_text
from .schema import LKGDataError
from .storage import read_json


RETRIEVER_FOLDER = "retriever"
MODEL_TYPE = "llamarec_lkg"
CONFIG_FILE, PROCESSOR_FILE, CARD_FILE = "config.json", "processor_config.json", "README.md"
WITHOUT_PEOPLE = (
    "There is no data about people in this repository: no user ids, no weights of single users and no interactions "
    "(its graph has no edges of users). Every user is the average user, whom the history given tells apart."
)
KINDS = {
    "include_users": "user ids",
    "include_interactions": "who rated what, and when",
    "include_user_embedding": "weights of single users",
}
PART_OF = {"include_users": "processor", "include_interactions": "processor", "include_user_embedding": "model"}
PEOPLE_HEADING = "## Data about people"
WITH_PEOPLE = "This repository holds data about people: {}. Treat it as personal data."


def card_there(repo_id: str, revision: str | None = None, token: str | bool | None = None) -> str | None:
    """The card that a repository has, or None. The branch must be there: of one that is not, none has a card, though
    a branch made of another one begins with that one's.

    Raises:
        LKGDataError: the Hub does not say. (To go on would replace a card that may be there.)
    """
    return _file_there(repo_id, CARD_FILE, "its card", revision, token)


def refuse_foreign_adapter(
    repo_id: str, names: Sequence[str], revision: str | None = None, token: str | bool | None = None
) -> None:
    """Raise `LKGDataError` where a repository has an adapter at its root and no ranker of ours: pushing a ranker
    there would have to delete somebody's work."""
    try:
        found = sorted({*names} & {*HfApi(token=token).list_repo_files(repo_id, revision=revision)})
        text = _file_there(repo_id, CONFIG_FILE, "its files", revision, token) if found else None
        config = json.loads(text or "{}")
    except HUB_ERRORS as error:
        raise LKGDataError(
            f"{repo_id!r} could not be asked for its files ({error}). Nothing was uploaded. {ADVICE}"
        ) from error
    if found and not (isinstance(config, dict) and config.get("model_type") == MODEL_TYPE):
        raise LKGDataError(
            f"{repo_id!r} holds {found} at its root and no ranker: an adapter of its own, which would hide a ranker "
            "and would have to be deleted. Nothing was uploaded. Choose another id, or delete these files first."
        )


def _file_there(
    repo_id: str, name: str, what: str, revision: str | None = None, token: str | bool | None = None
) -> str | None:
    try:
        api = HfApi(token=token)
        if not api.file_exists(repo_id, name, revision=revision):
            return None
        with tempfile.TemporaryDirectory() as folder:
            path = api.hf_hub_download(repo_id, name, revision=revision, local_dir=folder)
            return Path(path).read_text(encoding="utf-8")
    except HUB_ERRORS as error:
        raise LKGDataError(
            f"{repo_id!r} could not be asked for {what} ({error}). Nothing was uploaded. {ADVICE}"
        ) from error


def say_who_is_in_it(
    card: str, shared: Sequence[str], *, parts: Sequence[str] = ("model", "processor"), add: bool = True
) -> str:
    """The card with a true section on data about people.

    Args:
        shared: names in `KINDS` of what a push holds.
        parts: what it replaces. What the card's section says of other parts goes on being true.
        add: whether a card without such a section gets one.
    """
    found = re.search(rf"\n+{re.escape(PEOPLE_HEADING)}\n.*?(?=\n#|\Z)", card, re.DOTALL)
    if not found and not add:
        return card
    said = re.search(re.escape(WITH_PEOPLE).replace(re.escape("{}"), "(.*)"), found.group()) if found else None
    before = said.group(1) if said else ""
    shared = [name for name, text in KINDS.items() if (name in shared if PART_OF[name] in parts else text in before)]
    text = WITH_PEOPLE.format(", ".join(KINDS[name] for name in shared)) if shared else WITHOUT_PEOPLE
    section = f"\n\n{PEOPLE_HEADING}\n\n{text}\n"
    return card[: found.start()] + section + card[found.end() :] if found else card.rstrip() + section


def short_card(folder: Path, repo_id: str, tags: Sequence[str] = ()) -> str:
    """A card of what `folder` holds, where there is none that knows more: how to load it and what its backbone is."""
    has_model = (folder / CONFIG_FILE).exists()
    config: dict[str, Any] = read_json(folder / CONFIG_FILE) if has_model else {}
    base = config.get("backbone_name_or_path")
    hub_id = HUB_IDS.get(base)
    named = hub_id or (base if base and "/" in base and not is_local(base) else None)
    data = ModelCardData(
        library_name="llamarec_lkg",
        pipeline_tag="text-ranking" if has_model else None,
        base_model=named,
        tags=["recommendation", "knowledge-graph", "llamarec-lkg", *tags],
    )
    card = HubModelCard.from_template(
        data,
        template_str=template_text("repository_card.md.j2"),
        repo_id=repo_id,
        has_model=has_model,
        has_processor=(folder / PROCESSOR_FILE).exists(),
        has_retriever=(folder / RETRIEVER_FOLDER).exists(),
        backbone=base if config.get("external_backbone") else None,
        hub_id=hub_id,
    )
    return str(card)
