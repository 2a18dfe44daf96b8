"""What a repository holds before a push, and its card after it: a short one where nobody wrote another, and what every
card says of data about people."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, ModelCardData, RepoCard
from huggingface_hub import ModelCard as HubModelCard
from transformers.utils import logging

from ..utils.errors import LKGError
from ..utils.files import read_json
from ..utils.fingerprints import catalogue_fingerprint
from ..utils.hub import ADVICE, HUB_ERRORS, HUB_IDS, is_local, template_text
from .layout import CARD_FILE, CONFIG_FILE, ITEMS_FILE, MODEL_TYPE, PROCESSOR_FILE, RETRIEVER_FOLDER


logger = logging.get_logger(__name__)


MARK = "<!-- llamarec_lkg: every push writes this card anew; remove this line to keep your own text -->"


WITHOUT_PEOPLE = (
    "There is no data about people in this repository: no user ids, no weights of single users and no interactions "
    "(its graph has no edges of users). Every user is the average user, whom the history given tells apart."
)


KINDS = {
    "include_users": "user ids",
    "include_interactions": "who rated what, and when",
    "include_co_ratings": "which items the same people rate, as sums over at least five people",
    "include_user_embedding": "weights of single users",
}


PART_OF = {**dict.fromkeys(KINDS, "processor"), "include_user_embedding": "model"}


PEOPLE_HEADING = "## Data about people"


PEOPLE_SECTION = re.compile(rf"\n+{re.escape(PEOPLE_HEADING)}\n.*?(?=\n#|\Z)", re.DOTALL)


WITH_PEOPLE = "This repository holds data about people: {}. Treat it as personal data."


NOT_KNOWN = (
    "Whether earlier pushes left data about people here is not known, since no card says it. Until all parts of this "
    "repository are pushed again, treat it as personal data."
)


class Repository:
    """What a repository on the Hub holds before a push; asked for once, when it is needed.

    Args:
        repo_id (`str`): "owner/name". It and its branch must be there: of a branch that is not, nothing is known,
            though one made of another begins with that one's files.
        revision, token: as for `huggingface_hub`.

    Raises:
        LKGError: of all it does, where the Hub does not say. (To go on might replace what is there.)
    """

    def __init__(self, repo_id: str, revision: str | None = None, token: str | bool | None = None):
        self.repo_id, self.revision, self.api = repo_id, revision, HfApi(token=token)

    @cached_property
    def files(self) -> set[str]:
        with self._asking("its files"):
            return set(self.api.list_repo_files(self.repo_id, revision=self.revision))

    @cached_property
    def card(self) -> str | None:
        """The text of its card, or None."""
        return self._text(CARD_FILE, "its card")

    @cached_property
    def config(self) -> dict[str, Any]:
        """The configuration of the ranker that it holds; empty where it holds none."""
        config = self._json(CONFIG_FILE)
        return config if config.get("model_type") == MODEL_TYPE else {}

    def parts(self) -> list[str]:
        """Those of "model", "processor" and "retriever" that it holds."""
        there = {
            "model": bool(self.config),
            "processor": {PROCESSOR_FILE, ITEMS_FILE} <= self.files,
            "retriever": f"{RETRIEVER_FOLDER}/{CONFIG_FILE}" in self.files,
        }
        return [name for name, found in there.items() if found]

    def refuse_foreign_adapter(self, names: Sequence[str]) -> None:
        """Raise `LKGError` where it has an adapter at its root and no ranker of ours: pushing a ranker there would
        have to delete somebody's work."""
        found = sorted({*names} & self.files)
        if found and not self.config:
            raise LKGError(
                f"{self.repo_id!r} holds {found} at its root and no ranker: an adapter of its own, which would hide a "
                "ranker and would have to be deleted. Nothing was uploaded. Choose another id, or delete these files "
                "first."
            )

    def refuse_other_retriever(self, item_ids: Sequence[str]) -> None:
        """Raise `LKGError` where it has a retriever that finds other items than a processor that is pushed without
        one knows: together they could not be loaded."""
        known = self._json(f"{RETRIEVER_FOLDER}/{CONFIG_FILE}").get("catalogue")
        if known is not None and known != catalogue_fingerprint(item_ids):
            raise LKGError(
                f"The retriever in {self.repo_id!r} was trained to find other items than the {len(item_ids):,} that "
                "are pushed without one. Nothing was uploaded. Push the retriever as well (the trainer's "
                "`retriever=`, `Recommender.push_to_hub`), remove the old one with `remove_retriever=True` "
                "(--remove-retriever), or choose another id."
            )

    def _json(self, name: str) -> dict[str, Any]:
        with self._asking("its files"):
            content = json.loads(self._text(name, "its files") or "{}")
        return content if isinstance(content, dict) else {}

    def _text(self, name: str, what: str) -> str | None:
        with self._asking(what):
            if not self.api.file_exists(self.repo_id, name, revision=self.revision):
                return None
            with tempfile.TemporaryDirectory() as folder:
                path = self.api.hf_hub_download(self.repo_id, name, revision=self.revision, local_dir=folder)
                return Path(path).read_text(encoding="utf-8")

    @contextmanager
    def _asking(self, what: str) -> Iterator[None]:
        try:
            yield
        except LKGError:
            raise
        except HUB_ERRORS as error:
            raise LKGError(
                f"{self.repo_id!r} could not be asked for {what} ({error}). Nothing was uploaded. {ADVICE}"
            ) from error


def renewed_card(
    there: Repository,
    folder: Path,
    *,
    card: str | None,
    holds: Collection[str],
    pushed: Collection[str],
    shared: Collection[str],
    tags: Sequence[str] = (),
    made: bool = False,
) -> str:
    """The card of a repository after a push: the given one; else its own, unless a push wrote that one (`MARK`); else
    a short one. It says whose data are there.

    Args:
        there: the repository before the push.
        folder: what is pushed.
        card: the given one.
        holds, pushed: parts that the repository then holds, and those that are pushed.
        shared: names in `KINDS` of what the push includes, where there is any of it.
        tags: further tags of a short card.
        made: whether the given card was made by the push as well, and gives way to one that somebody wrote.
    """
    foreign = (card is None or made) and there.card is not None and MARK not in there.card
    if foreign and made:
        logger.warning(
            f"The card of {there.repo_id!r} stays: somebody wrote it, or removed the line by which a push renews it. "
            "See that its figures are still true."
        )
        card = None
    config = read_json(folder / CONFIG_FILE) if "model" in pushed else there.config
    if card is None:
        card = there.card if foreign else short_card(there.repo_id, config, holds, tags, there.card)
    shared = [name for name in shared if name != "include_user_embedding" or config.get("num_users")]
    others = {*holds} - {*pushed, "retriever"}
    return say_who_is_in_it(card, shared, parts=pushed, others=others, before=there.card, add=not foreign)


def say_who_is_in_it(
    card: str,
    shared: Collection[str],
    *,
    parts: Collection[str] = ("model", "processor"),
    others: Collection[str] = (),
    before: str | None = None,
    add: bool = True,
) -> str:
    """The card with a true section on data about people.

    Args:
        shared: names in `KINDS` of what a push holds.
        parts: what it replaces. What `before` says of other parts goes on being true.
        others: parts that the repository holds besides. Where `before` says nothing of them, nothing is known.
        before: the card that this one takes the place of; by default itself.
        add: whether a card without such a section gets one that says that there are none; it then is one of ours, and
            the section is missed where it has none. That there are some is said in any case.
    """
    found = PEOPLE_SECTION.search(card)
    old = PEOPLE_SECTION.search(card if before is None else before)
    said = re.search(re.escape(WITH_PEOPLE).replace(re.escape("{}"), "(.*)"), old.group()) if old else None
    known = said.group(1) if said else ""
    shared = [name for name, text in KINDS.items() if (name in shared if PART_OF[name] in parts else text in known)]
    if not (found or shared or add):
        return card
    text = WITH_PEOPLE.format(", ".join(KINDS[name] for name in shared)) if shared else WITHOUT_PEOPLE
    if others and (NOT_KNOWN in old.group() if old else add):
        text = f"{text} {NOT_KNOWN}" if shared else NOT_KNOWN
    section = f"\n\n{PEOPLE_HEADING}\n\n{text}\n"
    return card[: found.start()] + section + card[found.end() :] if found else card.rstrip() + section


def short_card(
    repo_id: str,
    config: Mapping[str, Any],
    holds: Collection[str],
    tags: Sequence[str] = (),
    before: str | None = None,
) -> str:
    """A card where there is none that knows more: how to load what a repository holds, and what its backbone is.

    Args:
        config: of the ranker; empty where there is none.
        holds: of "model", "processor" and "retriever".
        before: an earlier short card, whose tags, and metadata that are none of this function's, stay.
    """
    has_model, base = "model" in holds, config.get("backbone_name_or_path")
    hub_id = HUB_IDS.get(base)
    named = hub_id or (base if base and "/" in base and not is_local(base) else None)
    kept = RepoCard(before, ignore_metadata_errors=True).data.to_dict() if before else {}
    own = ["recommendation", "knowledge-graph", "llamarec-lkg"]
    data = ModelCardData(
        **{
            **kept,
            "library_name": "llamarec_lkg",
            "pipeline_tag": "text-ranking" if has_model else None,
            "base_model": named,
            "tags": list(dict.fromkeys([*own, *(kept.get("tags") or []), *tags])),
        }
    )
    card = HubModelCard.from_template(
        data,
        template_str=template_text("repository_card.md.j2"),
        repo_id=repo_id,
        mark=MARK,
        has_model=has_model,
        has_processor="processor" in holds,
        has_retriever="retriever" in holds,
        backbone=base if config.get("external_backbone") else None,
        hub_id=hub_id,
    )
    return str(card)
