"""What a repository on the Hub holds before a push."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi

from ..utils.errors import LKGError
from ..utils.fingerprints import catalogue_fingerprint
from ..utils.hub import ADVICE, HUB_ERRORS
from .layout import CARD_FILE, CONFIG_FILE, MODEL_TYPE, PART_MARKS, RETRIEVER_FOLDER, ROOT_ADAPTER


class Repository:
    """What a repository holds before a push; asked for once, when it is needed.

    Args:
        repo_id (`str`): "owner/name". It and its branch must be there.

    Raises:
        LKGError: in all it does, where the Hub does not answer. (To go on might replace what is there.)
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
        return self._text(CARD_FILE)

    @cached_property
    def config(self) -> dict[str, Any]:
        """The configuration of the ranker that it holds; empty where it holds none."""
        config = self._json(CONFIG_FILE)
        return config if config.get("model_type") == MODEL_TYPE else {}

    def parts(self) -> set[str]:
        """Those of "model", "processor" and "retriever" that it holds."""
        found = {part for part, mark in PART_MARKS.items() if mark in self.files}
        return found if self.config else found - {"model"}

    def refuse_foreign_adapter(self) -> None:
        """Raise `LKGError` where pushing a ranker would have to delete an adapter that somebody else made."""
        found = sorted({*ROOT_ADAPTER} & self.files)
        if found and not self.config:
            raise LKGError(
                f"{self.repo_id!r} holds {found} at its root and no ranker: an adapter of its own, which would hide a "
                "ranker and would have to be deleted. Nothing was uploaded. Choose another id, or delete these files "
                "first."
            )

    def refuse_other_retriever(self, item_ids: Sequence[str]) -> None:
        """Raise `LKGError` where its retriever finds other items than these of a processor that is pushed without
        one: together they could not be loaded."""
        known = self._json(f"{RETRIEVER_FOLDER}/{CONFIG_FILE}").get("catalogue")
        if known is not None and known != catalogue_fingerprint(item_ids):
            raise LKGError(
                f"The retriever in {self.repo_id!r} was trained to find other items than the {len(item_ids):,} that "
                "are pushed without one. Nothing was uploaded. Push the retriever as well (the trainer's "
                "`retriever=`, `Recommender.push_to_hub`), remove the old one with `remove_retriever=True` "
                "(--remove-retriever), or choose another id."
            )

    def _json(self, name: str) -> dict[str, Any]:
        return json.loads(self._text(name) or "{}")

    def _text(self, name: str) -> str | None:
        with self._asking("its card" if name == CARD_FILE else "its files"):
            if not self.api.file_exists(self.repo_id, name, revision=self.revision):
                return None
            with tempfile.TemporaryDirectory() as folder:
                path = self.api.hf_hub_download(self.repo_id, name, revision=self.revision, local_dir=folder)
                return Path(path).read_text(encoding="utf-8")

    @contextmanager
    def _asking(self, what: str) -> Iterator[None]:
        try:
            yield
        except HUB_ERRORS as error:
            raise LKGError(
                f"{self.repo_id!r} could not be asked for {what} ({error}). Nothing was uploaded. {ADVICE}"
            ) from error
