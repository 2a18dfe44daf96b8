"""What the classes that `transformers` loads have in common on the Hub."""

from __future__ import annotations

import tempfile
from typing import Any

from huggingface_hub import CommitInfo

from .push import PushOptions, push_folder


class Registered:
    """A class that importing the package registers with `transformers`."""

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = None) -> None:
        """Nothing: importing the package has registered it, and saving must not copy the package's code."""


class HubMixin(Registered):
    """`push_to_hub` of model and processor; `hub_part` names which part of a repository they are."""

    hub_part: str

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> CommitInfo:
        """Push to the Hub, as one commit. Nothing in it is about people unless `share_users=True`.

        A model with an adapter goes up in its small form, any other with its backbone (`include_backbone=False`
        leaves it out). `kwargs` are fields of [`~push.PushOptions`] and arguments of `save_pretrained`.

        Raises:
            LKGError: the backbone has no name that others can load, or the upload failed.
            TypeError: an argument is none of these.
        """
        options = PushOptions.take(kwargs)
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, **kwargs)
            return push_folder(folder, repo_id, parts=(self.hub_part,), options=options)
