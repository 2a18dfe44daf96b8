"""What the classes that `transformers` loads have in common on the Hub: the arguments of a push, and one way to it."""

from __future__ import annotations

import difflib
import inspect
import tempfile
from collections.abc import Callable
from typing import Any

from huggingface_hub import CommitInfo

from .public_copy import push_saved


PUSH_OPTIONS = {*inspect.signature(push_saved).parameters} - {"folder", "repo_id", "parts"}


SAVING = {"is_main_process", "max_shard_size", "safe_serialization", "save_function", "state_dict", "variant"}
"""Common arguments of `save_pretrained` that harm nobody where they mean nothing: scripts give them to all parts, and
some are of earlier versions."""


class Registered:
    """A class that importing the package registers with `transformers`."""

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = None) -> None:
        """Nothing: importing the package has registered it, and saving must not copy the package's code."""


class HubCitizen(Registered):
    """What model and processor have in common on the Hub; `hub_part` names what of a repository they are.

    All `push_to_hub` of this package publish a copy without people. `transformers.Trainer` has another, which uploads
    its whole folder: of one that is about people it uploads nothing, since `save_pretrained` leaves a `.gitignore`
    there (`home_file.HOME_TEXT`). With `hub_strategy="checkpoint"` or `"all_checkpoints"`, or without that file,
    it publishes everything. Use [`LlamaRecLKGTrainer`], or push model and processor themselves.
    """

    hub_part: str

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> CommitInfo:
        """Push to the Hub, as one commit. What is about people stays at home unless it is asked for.

        A model with an adapter goes up in its small form, any other with its backbone (`include_backbone=False`
        leaves it out), and without the weights of single users. A processor goes up without user ids and interactions:
        the graph keeps the relation RATED but none of its edges, so that the model fits as before and reads one kind
        of evidence less; `include_co_ratings=True` gives most of it back, as sums over people.

        Args:
            repo_id (`str`): "owner/name", or a name of one's own; made if it does not exist.
            kwargs: of [`push_saved`] (`include_users`, `include_interactions`, `include_co_ratings`,
                `include_user_embedding`, `backbone`, `private`, `revision`, `create_pr`, `commit_message`, `token`,
                `tags`); others are those of `save_pretrained`, as a model's `include_backbone`.

        Raises:
            LKGError: the backbone has no name that others can load, or the upload failed.
            TypeError: an argument is none of these.
        """
        push = take_push_options(kwargs, *saving(type(self)))
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, **kwargs)
            return push_saved(folder, repo_id, parts=(self.hub_part,), **push)


def saving(part: type) -> list[Callable[..., Any]]:
    """The `save_pretrained` of a class and of those it is made of, each with some of its arguments."""
    return [vars(each)["save_pretrained"] for each in part.__mro__ if "save_pretrained" in vars(each)]


def take_push_options(kwargs: dict[str, Any], *others: Callable[..., Any], pushing: bool = True) -> dict[str, Any]:
    """Take the arguments of [`~hub_repository.push_saved`] out of those of a `save_pretrained`.

    Args:
        others: functions that take what remains. Without them it goes to a `save_pretrained` that says which.
        pushing: False passes over names that nobody knows, as `transformers` does where it only saves.

    Raises:
        TypeError: something remains that none of `others` takes, nor any other `save_pretrained` of `transformers`.
            (Swallowed, a misspelt `private` would make a repository public.)
    """
    known = {*PUSH_OPTIONS, "repo_id", "push_to_hub"}.union(*(inspect.signature(f).parameters for f in others))
    known -= {"self", "kwargs", "save_directory"}
    for name in [name for name in kwargs if name not in SAVING] if others and pushing else ():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise TypeError(
                f"{name!r} is no argument of saving or pushing{f'; {near[0]!r} is' if near else ''}. Nothing was "
                f"uploaded. There are {', '.join(sorted(known))}."
            )
    return {name: kwargs.pop(name) for name in PUSH_OPTIONS if name in kwargs}
