"""What a trainer does with the Hub: the card, the push at the end, and pushes while training goes on."""

from __future__ import annotations

import logging
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, HfApi
from transformers import Trainer
from transformers.trainer_utils import HubStrategy, SaveStrategy
from transformers.utils import PushInProgress

from ..hub.model_card import ModelCard
from ..hub.push import PushOptions, push_folder
from ..hub.saved_folder import SavedFolder, public_backbone
from ..ranking.modeling_llamarec_lkg import LlamaRecLKGForRanking
from ..utils.errors import LKGError
from ..utils.hub import make_repository, whole_id
from .training_args import LlamaRecLKGTrainingArguments


logger = logging.getLogger(__name__)


CARD_FIELDS = {"language": "language", "license": "license", "tags": "tags", "dataset": "dataset_name",
               "finetuned_from": "base_model"}  # fmt: skip
"""What `transformers.Trainer` takes for its card, and the field of ours it is."""
OTHER_CARD_ARGUMENTS = ("model_name", "tasks", "dataset_tags", "dataset_args")


class PushingTrainer(Trainer):
    """`transformers.Trainer` that pushes what others load, each time as one commit."""

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write the model card into `args.output_dir`, and what it says as `card.json`: at the end of training, and
        before a push."""
        if not self.is_world_process_zero():
            return
        given = {field: kwargs[name] for name, field in CARD_FIELDS.items() if kwargs.get(name) is not None}
        if isinstance(given.get("tags"), str):
            given["tags"] = [given["tags"]]
        if isinstance(given.get("dataset_name"), list):
            given["dataset_name"] = ", ".join(given["dataset_name"])
        card = ModelCard.from_trainer(self, has_retriever=self.retriever is not None, **given)
        card.save(self.args.output_dir)

    # -- pushing ----------------------------------------------------------------------------------------------------

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Make the repository of `args.hub_model_id`, by default one named like the output folder."""
        if not self.is_world_process_zero():
            return
        token = token if token is not None else self.args.hub_token
        name = self.args.hub_model_id or Path(self.args.output_dir).absolute().name
        self.hub_model_id = whole_id(name, token)
        private = private if private is not None else self.args.hub_private_repo
        make_repository(self.hub_model_id, private=private, revision=self.args.hub_revision, token=token)
        self.push_in_progress = None

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> CommitInfo | Future[CommitInfo] | None:
        """Save, and push ranker, processor, card and, where there is one, retriever to `args.hub_model_id`, as one
        commit.

        Args:
            blocking: False returns a `Future` at once.
            kwargs: further fields of [`~push.PushOptions`], by default as the training arguments say; `language`,
                `license`, `tags`, `dataset` and `finetuned_from` of the card. What else `transformers` takes for its
                card has no effect.

        Raises:
            LKGError: the backbone has no name that others can load, or the upload failed; what was saved in
                `args.output_dir` is there in any case.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        card = {name: kwargs.pop(name, None) for name in (*CARD_FIELDS, *OTHER_CARD_ARGUMENTS)}
        self.create_model_card(**card)
        self._finish_current_push()
        given = {"token": token, "revision": revision, "private": private}
        given = {name: value for name, value in given.items() if value is not None}
        options = self._push_options(commit_message=commit_message, **given, **kwargs)
        if blocking:
            return push_folder(self.args.output_dir, self.hub_model_id, options=options)
        return self._push_later(self.args.output_dir, options)

    def _push_later(self, folder: str, options: PushOptions, *, may_fail: bool = False) -> Future[CommitInfo | None]:
        """Push a copy of the folder, which training may change, or delete, before the push is done."""
        snapshot = SavedFolder(folder).snapshot()

        def push() -> CommitInfo | None:
            with snapshot:
                try:
                    return push_folder(snapshot.name, self.hub_model_id, options=options)
                except LKGError as error:
                    if not may_fail:
                        raise
                    logger.warning(f"Training goes on. {error}")

        return HfApi().run_as_future(push)

    def _push_options(self, **given: Any) -> PushOptions:
        """What the training arguments say, and what was given in its place."""
        names = {"share_users": "hub_share_users", "backbone": "hub_backbone", "private": "hub_private_repo",
                 "revision": "hub_revision", "token": "hub_token"}  # fmt: skip
        return PushOptions(**{name: getattr(self.args, own) for name, own in names.items()} | given)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Push a checkpoint's small form while training goes on. A push that fails is told and does not end it."""
        if not self.is_world_process_zero() or self.args.hub_strategy == HubStrategy.END:
            return
        busy = self.push_in_progress is not None and not self.push_in_progress.is_done()
        if busy and not self.args.hub_always_push:
            return
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        steps = self.args.save_strategy == SaveStrategy.STEPS
        when = f"step {self.state.global_step}" if steps else f"epoch {int(self.state.epoch)}"
        options = self._push_options(commit_message=f"Training in progress, {when}")
        try:
            job = self._push_later(checkpoint_folder, options, may_fail=True)
        except (LKGError, OSError) as error:  # no snapshot could be made
            logger.warning(f"Training goes on. {error}")
            return
        if busy:
            self.push_in_progress.jobs.append(job)
        else:
            self.push_in_progress = PushInProgress([job])


def check_push(args: LlamaRecLKGTrainingArguments, model: LlamaRecLKGForRanking) -> None:
    """Raise `LKGError` before training where pushing would fail after it."""
    if args.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
        raise LKGError(
            f"hub_strategy={args.hub_strategy.value!r} would publish whole checkpoints, with the optimiser's "
            "state and any weights of single users. Use 'every_save', which pushes what others load, or 'end'."
        )
    if model.has_adapter:
        public_backbone(model.config.backbone_name_or_path, args.hub_backbone)
