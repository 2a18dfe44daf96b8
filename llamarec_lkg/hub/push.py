"""The one way up: a saved folder becomes one commit of a repository.

Files are taken by name (layout.py), so what else lies in a folder (checkpoints, logs, settings of the machine) stays
there, and so does `private/` unless it is asked for.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo

from ..utils.hub import answers_in_time, is_local, make_repository, matches, push_files, whole_id
from .layout import CARD_FILE, PARTS, PRIVATE_PARTS, ROOT_ADAPTER
from .model_card import MARK, ModelCard
from .repository import Repository
from .saved_folder import SavedFolder


logger = logging.getLogger(__name__)


SAVING_OPTIONS = frozenset(
    """
    include_backbone is_main_process max_shard_size safe_serialization save_function save_original_format
    save_peft_format state_dict variant distributed_checkpoint
    """.split()
)
"""Arguments of the `save_pretrained` of models and processors. Scripts give them to all parts alike."""


@dataclass(frozen=True)
class PushOptions:
    """How to push.

    Args:
        private, revision, create_pr, commit_message, commit_description, token: as for [`~utils.hub.push_files`].
        tags: further tags of the card.
        backbone: the name by which others load the backbone of a model that is saved without it, where the saved one
            is a folder of this machine.
        share_users: take `private/` along: user ids, and the weights of single users.
        remove_retriever: delete the repository's retriever where none is pushed.
        card: text of README.md; by default it is made of what the run wrote down, or a short one.
    """

    private: bool | None = None
    revision: str | None = None
    create_pr: bool = False
    commit_message: str | None = None
    commit_description: str | None = None
    token: str | bool | None = None
    tags: Sequence[str] = ()
    backbone: str | None = None
    share_users: bool = False
    remove_retriever: bool = False
    card: str | None = None

    @classmethod
    def take(cls, kwargs: dict[str, Any], *, strict: bool = True) -> PushOptions:
        """Take the arguments of a push out of `kwargs`, those of a `save_pretrained` or `push_to_hub`.

        Raises:
            TypeError: with `strict`, something remains that is no argument of saving either. (Passed over, a misspelt
                `private` would make a repository public.)
        """
        names = {field.name for field in fields(cls)}
        options = cls(**{name: kwargs.pop(name) for name in names & kwargs.keys()})
        known = names | SAVING_OPTIONS | {"repo_id"}
        for name in sorted(kwargs.keys() - known) if strict else ():
            near = difflib.get_close_matches(name, known, n=1)
            raise TypeError(
                f"{name!r} is no argument of saving or pushing{f'; {near[0]!r} is' if near else ''}. Nothing was "
                f"uploaded. There are {', '.join(sorted(known))}."
            )
        return options


@answers_in_time()
def push_folder(
    folder: str | Path,
    repo_id: str,
    *,
    parts: Sequence[str] = tuple(PARTS),
    options: PushOptions | None = None,
    **kwargs: Any,
) -> CommitInfo:
    """Push ranker, processor and retriever of a saved folder, as one commit, with a card.

    What earlier pushes left of the parts that are pushed, and is no more, is deleted in the same commit (not in the
    history); other parts and files stay.

    Args:
        folder: what the trainer, `llamarec-lkg train` or a `save_pretrained` wrote.
        repo_id (`str`): "owner/name", or a name of one's own; made if it does not exist.
        parts: which parts to push, so far as they are there.
        options: how to push; or give its fields as `kwargs`.

    Raises:
        LKGError: the folder is not whole, its backbone has no name that others can load, or the upload failed.
        TypeError: an argument is no field of [`PushOptions`].
    """
    options = options or PushOptions(**kwargs)
    saved = SavedFolder(folder, parts)
    content = saved.content(share_users=options.share_users, backbone=options.backbone)
    card = saved.card  # where it cannot be read, no repository is made
    repo_id = whole_id(repo_id, options.token)
    place = {"revision": options.revision, "token": options.token}
    make_repository(repo_id, private=options.private, **place)
    there = Repository(repo_id, **place)
    if "model" in saved.parts:
        there.refuse_foreign_adapter()
    if "processor" in saved.parts and "retriever" not in saved.parts and not options.remove_retriever:
        there.refuse_other_retriever(saved.item_ids)
    replaced = {*saved.parts, *(["retriever"] if options.remove_retriever else [])}
    replaces = [pattern for part in replaced for pattern in (*PARTS[part], *PRIVATE_PARTS[part])]
    replaces += ROOT_ADAPTER if "model" in saved.parts else ()
    holds = {*saved.parts, *(there.parts() - replaced)}
    stay = {path for path in there.files if not matches(path, replaces)}
    private_files = [path for each in PRIVATE_PARTS.values() for path in each if path in stay | content.keys()]
    text = _card_text(saved, card, there, options, holds, private_files)
    return push_files(
        repo_id,
        {**content, CARD_FILE: text.encode()},
        replaces=replaces,
        private=options.private,
        create_pr=options.create_pr,
        commit_message=options.commit_message or f"Upload {', '.join(saved.parts)} with llamarec_lkg",
        commit_description=options.commit_description,
        **place,
    )


def _card_text(
    saved: SavedFolder,
    card: ModelCard | None,
    there: Repository,
    options: PushOptions,
    holds: set[str],
    private_files: list[str],
) -> str:
    """The card after the push: the given one, one that somebody wrote there, or one made of what is known."""
    if options.card is not None:
        return options.card
    if there.card is not None and MARK not in there.card:
        logger.warning(
            f"The card of {there.repo_id!r} stays: somebody wrote it, or removed the line by which a push renews it. "
            "See that what it says is still true"
            f"{', and that it says that there are data about people' if private_files else ''}."
        )
        return there.card
    config = saved.config or there.config
    if card is None:
        card = ModelCard.from_config(there.repo_id, config)
    elif card.data_license and not options.private:
        logger.warning(f"Titles and facts of the data go along. Their terms: {card.data_license}.")
    base = options.backbone or card.base_model
    named = base and (base == options.backbone or not is_local(base))
    card = replace(
        card,
        model_id=there.repo_id,
        base_model=base if named else None,
        backbone_by_name=bool(config.get("external_backbone")),
        tags=list(dict.fromkeys([*card.tags, *options.tags])),
        private_files=private_files,
        **{f"has_{part}": part in holds for part in PARTS},
    )
    return str(card.to_hub_card(there.card))
