"""A saved folder as a repository: which of its files belong there, what of them may be public, and how they go up.

Every push of this package comes through here. Files are taken by name, so that what else lies in a folder
(checkpoints, logs, settings of the machine) stays at home. Who uploads a folder by other means, as
`transformers.Trainer` does, takes all of it: see home_file.py.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import pandas as pd
from huggingface_hub import CommitInfo
from safetensors import safe_open
from safetensors.torch import save_file

from ..data.schema import ITEM_ID, USER_ID
from ..data.user_ids import refuse_people
from ..graph.co_ratings import has_co_ratings, with_co_ratings
from ..graph.knowledge_graph import KnowledgeGraph
from ..utils.errors import LKGError
from ..utils.files import read_json, write_json
from ..utils.hub import RULES_FILE as HOME_FILE
from ..utils.hub import answers_in_time, is_local, make_repository, matches, push_files, template_text, whole_id
from .home_file import HOME_TEXT, stays_home
from .layout import (
    ADAPTER_FILES,
    ADAPTER_FOLDER,
    CARD_FILE,
    CONFIG_FILE,
    GRAPH_FILES,
    GRAPH_FOLDER,
    ITEMS_FILE,
    MODEL_MAP,
    PARTS,
    PROCESSOR_FILE,
    PROCESSOR_MAP,
    ROOT_ADAPTER,
    SHIM,
    USER_WEIGHTS,
    USERS_FILE,
    WEIGHTS_FILE,
    WEIGHTS_INDEX,
)
from .repository import Repository, renewed_card


def write_shim(folder: Path, about_people: bool = False) -> None:
    """Write the file that `MODEL_MAP` and `PROCESSOR_MAP` name; and first `HOME_TEXT`, where what is saved next is
    about people and [`stays_home`] allows it."""
    if about_people and stays_home(folder):
        (folder / HOME_FILE).write_text(HOME_TEXT, encoding="utf-8")
    (folder / f"{SHIM}.py").write_text(template_text(f"{SHIM}.py.j2"), encoding="utf-8")


def refuse_root_adapter(folder: str | Path) -> None:
    """Raise `LKGError` where a folder has an adapter at its root, which would hide the ranker."""
    found = [name for name in ROOT_ADAPTER if (Path(folder) / name).exists()]
    if found:
        raise LKGError(
            f"{folder} holds {found} at its root. There `AutoModel` would take it for a bare adapter and load the "
            f"backbone without preferences; a ranker's adapter is in {ADAPTER_FOLDER}/. Use a new folder, or remove "
            "these files, which `PeftModel.save_pretrained` wrote."
        )


def public_backbone(saved: str | None, given: str | None = None) -> str:
    """The name under which others load the backbone of a small form: the given one, or the saved one.

    Raises:
        LKGError: none was given, and the saved one is none or a folder of this machine.
    """
    if given is None and (not saved or is_local(saved)):
        raise LKGError(
            f"What was trained is pushed without its backbone, and that is {saved!r}: no name that others can load. "
            "Give `backbone='owner/name'` (`hub_backbone` of the training arguments), the id of the same model on the "
            "Hub, or push it with its backbone: `model.merge_adapter()`, then push."
        )
    return given or saved


@answers_in_time()
def push_saved(
    folder: str | Path,
    repo_id: str,
    *,
    parts: Sequence[str] = tuple(PARTS),
    card: str | Callable[[str, Collection[str], KnowledgeGraph | None], str] | None = None,
    remove_retriever: bool = False,
    include_users: bool = False,
    include_interactions: bool = False,
    include_co_ratings: bool = False,
    include_user_embedding: bool | None = None,
    backbone: str | None = None,
    tags: Sequence[str] = (),
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str | None = None,
    commit_description: str | None = None,
    token: str | bool | None = None,
) -> CommitInfo:
    """Push the public copy of a folder that `save_pretrained` wrote, as one commit.

    What earlier pushes left of the parts that are pushed, and is no more, is deleted in the same commit; other parts
    and files stay. (As in every repository they stay in its history: data about people pushed once are gone only with
    the repository.)

    Args:
        folder: with a model, a processor, or both, and perhaps a retriever.
        repo_id (`str`): "owner/name", or a name of one's own; made if it does not exist.
        parts: which of "model", "processor" and "retriever" to push, so far as they are there.
        card: text of README.md, or what makes it of the whole id, the parts that the repository then holds, and the
            graph that is pushed. What is made gives way to a card that somebody wrote; by default a short one is made.
        remove_retriever: delete the repository's retriever where none is pushed.
        include_users, include_interactions, include_co_ratings, include_user_embedding, backbone: see
            [`public_copy`].
        tags: further tags of a short card.
        private, revision, create_pr, commit_message, commit_description, token: see [`~hub.push_files`].

    Raises:
        LKGError: the folder is not whole, its backbone has no public name, or the upload failed.
    """
    with staging(folder) as temporary:
        target = Path(temporary)
        sharing = {"include_users": include_users, "include_interactions": include_interactions}
        sharing["include_co_ratings"] = include_co_ratings
        sharing["include_user_embedding"] = include_users if include_user_embedding is None else include_user_embedding
        graph = public_copy(folder, target, parts=parts, backbone=backbone, **sharing)
        sharing["include_co_ratings"] = graph is not None and has_co_ratings(graph)  # those it came with, too
        repo_id = whole_id(repo_id, token)
        files = {path: target / path for path in _paths(target)}
        held = [name for name in parts if any(matches(path, PARTS[name]) for path in files)]
        gone = ["retriever"] if remove_retriever else []
        place = {"revision": revision, "token": token}
        make_repository(repo_id, private=private, create_pr=create_pr, **place)  # a new branch begins with a card
        there = Repository(repo_id, **place)
        if "model" in held:
            there.refuse_foreign_adapter(ROOT_ADAPTER)
        if "processor" in held and "retriever" not in [*held, *gone]:
            there.refuse_other_retriever(pd.read_parquet(target / ITEMS_FILE)[ITEM_ID])
        holds = [*held, *(part for part in there.parts() if part not in [*held, *gone])]
        shared = [name for name, value in sharing.items() if value]
        made, state = callable(card), {"holds": holds, "pushed": held, "shared": shared}
        card = card(repo_id, holds, graph) if made else card
        card = renewed_card(there, target, card=card, made=made, tags=tags, **state)
        (target / CARD_FILE).write_text(card, encoding="utf-8")
        return push_files(
            repo_id,
            {**files, CARD_FILE: target / CARD_FILE},
            what=f"The {' and '.join(held)}",
            replaces=[pattern for name in [*held, *gone] for pattern in PARTS[name]]
            + (list(ROOT_ADAPTER) if "model" in held else []),
            private=private,
            create_pr=create_pr,
            commit_message=commit_message or f"Upload {', '.join(held)} with llamarec_lkg",
            commit_description=commit_description,
            **place,
        )


def public_copy(
    source: str | Path,
    target: str | Path,
    *,
    parts: Sequence[str] = tuple(PARTS),
    include_users: bool = False,
    include_interactions: bool = False,
    include_co_ratings: bool = False,
    include_user_embedding: bool | None = None,
    backbone: str | None = None,
) -> KnowledgeGraph | None:
    """Copy what of a saved folder may be public.

    Args:
        source: with a model, a processor, or both, and perhaps a retriever.
        target: an existing empty folder. Files that need no change are linked to, not copied, where the disk can.
        include_users: True copies raw user ids. Without them users are unknown, or numbers where there are
            interactions.
        include_interactions: True copies the edges of people, RATED above all, with their times.
        include_co_ratings: True puts in their place what they say of pairs of items, summed over people
            ([`~co_ratings.with_co_ratings`]): strangers are then ranked with almost the evidence that there is at
            home. Of no effect beside `include_interactions`.
        include_user_embedding: True copies the weights that single users have in the preference module; by default
            they go along with the user ids, without which they are of no use.
        backbone: name to write for the backbone of a model that is saved without it, where the saved one is a folder
            of this machine.

    Returns:
        the graph of the copy, where there is a processor.

    Raises:
        LKGError: the folder is not whole, or its backbone is a folder of this machine and no other name is given.
    """
    source, target = Path(source), Path(target)
    if not source.is_dir():
        raise LKGError(f"There is no folder {str(source)!r} in {Path.cwd()}. Give the one that a run was saved in.")
    refuse_root_adapter(source)
    chosen = link_parts(source, target, parts)
    has_model, has_processor = ("model" in parts and CONFIG_FILE in chosen), PROCESSOR_FILE in chosen
    if not has_model and not has_processor:
        raise LKGError(
            f"{source} holds neither a model ({CONFIG_FILE}) nor a processor ({PROCESSOR_FILE}). Give the folder that "
            "`save_pretrained`, the trainer or `llamarec-lkg train` wrote."
        )
    if has_model:
        share_weights = include_users if include_user_embedding is None else include_user_embedding
        _publish_model(source, target, chosen, share_weights, backbone)
    graph = None
    if has_processor:
        kind = "whole" if include_interactions else "co-ratings" if include_co_ratings else "without people"
        graph = _publish_processor(source, target, chosen, include_users, kind)
    write_shim(target)
    return graph


def link_parts(source: Path, target: Path, parts: Sequence[str] = tuple(PARTS)) -> list[str]:
    """Give the files of some parts a second name below `target`, or copy them where the disk cannot; returns their
    paths."""
    chosen = [path for path in _paths(source) if any(matches(path, PARTS[name]) for name in parts)]
    for path in chosen:
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        _link(source / path, target / path)
    return chosen


def _publish_model(source: Path, target: Path, chosen: list[str], user_weights: bool, backbone: str | None) -> None:
    config = read_json(source / CONFIG_FILE)
    external, adapters = bool(config.get("external_backbone")), []
    whole = not external and config.get("use_language_model", True)
    weights = _weights_in_use(source, chosen, whole)
    if config.get("has_adapter"):
        adapters = [path for path in chosen if path.startswith(f"{ADAPTER_FOLDER}/")]
    lacking = [path for path in weights if path not in chosen]
    names: set[str] = set()
    for path in weights:
        if path in chosen:
            with safe_open(source / path, framework="pt") as file:
                names.update(file.keys())
    lacking += [name for name in ("preference.bias", "fusion.evidence_weight") if name not in names]
    of_backbone = [name for name in names if name.startswith("language_model.")]
    if whole and not of_backbone:
        lacking.append("language_model.*")
    if config.get("has_adapter") and not all(any(p.endswith(f"/{name}") for p in adapters) for name in ADAPTER_FILES):
        lacking.append(f"{ADAPTER_FOLDER}/")
    if lacking:
        raise LKGError(f"The model in {source} is not whole: {lacking} is missing. Save it again and push that.")
    if of_backbone and not whole:
        raise LKGError(
            f"{CONFIG_FILE} in {source} says that the backbone is not in this folder, but {weights} hold "
            f"{len(of_backbone)} weights of one: the files are of two models. Save the model again and push that."
        )
    _leave_out(target, chosen, {*weights, *adapters} | ({WEIGHTS_INDEX} if weights != [WEIGHTS_FILE] else set()))
    name = config.get("backbone_name_or_path")
    if external:
        if backbone not in (None, name):
            config["backbone_revision"] = None  # a commit of the one that was trained around
        name = public_backbone(name, backbone)
    config["backbone_name_or_path"] = None if not name or is_local(name) and not external else name
    config["auto_map"] = MODEL_MAP
    (config.get("text_config") or {}).pop("_name_or_path", None)
    if not user_weights:
        config["num_users"], config["users"] = 0, None
        _drop_user_weights(source, target, weights)
    write_json(target / CONFIG_FILE, config)
    for path in adapters:
        if path.endswith("adapter_config.json"):
            settings = {**read_json(source / path), "base_model_name_or_path": config["backbone_name_or_path"]}
            write_json(target / path, settings)


def _weights_in_use(source: Path, chosen: Sequence[str], whole: bool) -> list[str]:
    """The weight files that a loader takes, whatever else an earlier model left beside them."""
    if whole and WEIGHTS_FILE not in chosen and WEIGHTS_INDEX in chosen:
        return sorted(set(read_json(source / WEIGHTS_INDEX)["weight_map"].values()))
    return [WEIGHTS_FILE]


def _leave_out(target: Path, chosen: Sequence[str], used: set[str]) -> None:
    """Remove what is of a model's weights and adapters, but not of this model: it is not what was asked to go up, and
    may be somebody else's."""
    for path in chosen:
        of_model = path == WEIGHTS_INDEX or path.endswith(".safetensors") and "/" not in path
        if (of_model or path.startswith(f"{ADAPTER_FOLDER}/")) and path not in used:
            (target / path).unlink()


def _drop_user_weights(source: Path, target: Path, weights: Sequence[str]) -> None:
    for path in weights:
        with safe_open(source / path, framework="pt") as file:
            if not any(name.startswith(USER_WEIGHTS) for name in file.keys()):  # noqa: SIM118 (no mapping)
                continue
            kept = {name: file.get_tensor(name) for name in file.keys() if not name.startswith(USER_WEIGHTS)}
            metadata = file.metadata()
        (target / path).unlink()
        save_file(kept, target / path, metadata=metadata)
    if (target / WEIGHTS_INDEX).exists():
        index = read_json(source / WEIGHTS_INDEX)
        index["weight_map"] = {k: v for k, v in index["weight_map"].items() if not k.startswith(USER_WEIGHTS)}
        write_json(target / WEIGHTS_INDEX, index)


def _publish_processor(source: Path, target: Path, chosen: list[str], users: bool, kind: str) -> KnowledgeGraph:
    needed = [ITEMS_FILE, USERS_FILE, *(f"{GRAPH_FOLDER}/{name}" for name in GRAPH_FILES)]
    lacking = [path for path in needed if path not in chosen]
    if lacking:
        raise LKGError(f"The processor in {source} is not whole: {lacking} is missing. Save it again.")
    write_json(target / PROCESSOR_FILE, {**read_json(source / PROCESSOR_FILE), "auto_map": PROCESSOR_MAP})
    if not users:
        (target / USERS_FILE).unlink()
        pd.DataFrame({USER_ID: pd.Series([], dtype=str)}).to_parquet(target / USERS_FILE)
    known = pd.read_parquet(source / USERS_FILE)[USER_ID].astype(str).tolist()
    graph = KnowledgeGraph.from_pretrained(source / GRAPH_FOLDER)
    if not (users and kind == "whole"):
        if kind == "whole":
            graph = graph.with_numbered_people(known)
        else:
            graph = with_co_ratings(graph, known) if kind == "co-ratings" else graph.without_people(known)
        shutil.rmtree(target / GRAPH_FOLDER)
        graph.save_pretrained(target / GRAPH_FOLDER)
    if not users:
        refuse_people(target, known, "; or publish user ids, too: `include_users=True`")
    return graph


def staging(source: str | Path) -> tempfile.TemporaryDirectory:
    """A folder for a public copy, on the disk of its source where that can be written to, so that links suffice."""
    parent = Path(source).resolve().parent
    return tempfile.TemporaryDirectory(prefix=".push.", dir=parent if os.access(parent, os.W_OK) else None)


def _paths(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _link(source: Path, target: Path) -> None:
    """A second name for a file, which stays when the first one goes; where the disk cannot, a link or a copy."""
    for make in (os.link, os.symlink, shutil.copyfile):
        try:
            make(source.resolve(), target)
            return
        except OSError:
            if make is shutil.copyfile:
                raise
