"""What a trainer does with the Hub: the card, the push at the end, and pushes while training goes on."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, HfApi
from transformers import Trainer
from transformers.trainer_utils import HubStrategy, SaveStrategy
from transformers.utils import PushInProgress

from ..hub.layout import CARD_FACTS, CARD_FILE
from ..hub.model_card import ModelCard
from ..hub.push import PushOptions, push_folder
from ..hub.saved_folder import SavedFolder, public_backbone
from ..ranking.modeling_llamarec_lkg import LlamaRecLKGForRanking
from ..utils.errors import LKGError
from ..utils.files import write_json
from ..utils.fingerprints import as_plain
from ..utils.hub import make_repository, whole_id
from .training_args import LlamaRecLKGTrainingArguments


logger = logging.getLogger(__name__)


CARD_ARGUMENTS = ("language", "license", "tags", "model_name", "finetuned_from", "tasks", "dataset", "dataset_tags",
                  "dataset_args")  # fmt: skip
"""What `transformers.Trainer` takes for its card."""


class PushingTrainer(Trainer):
    """`transformers.Trainer` that pushes what others load, each time as one commit."""

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write the model card into `args.output_dir`, and what it says as `card.json`: at the end of training, and
        before a push."""
        if not self.is_world_process_zero():
            return
        card = ModelCard.from_trainer(
            self,
            has_retriever=self.retriever is not None,
            **_card_fields(kwargs),
        )
        folder = Path(self.args.output_dir)
        write_json(folder / CARD_FACTS, {k: v for k, v in as_plain(card).items() if k != "report"})
        card.save(folder / CARD_FILE)

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
    ) -> CommitInfo | Any:
        """Save, and push ranker, processor, card and, where there is one, retriever to `args.hub_model_id`, as one
        commit.

        Args:
            blocking: False returns a `Future` at once.
            token, revision, private: by default those of the training arguments.
            kwargs: further fields of [`~push.PushOptions`] (`create_pr`, `share_users`, `backbone`, ...), by default
                as the training arguments say; `language`, `license`, `tags`, `dataset` and `finetuned_from` of the
                card. What else `transformers` takes for its card (`model_name`, `tasks`, `dataset_tags`,
                `dataset_args`) is known here and has no effect.

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
        card = {name: kwargs.pop(name) for name in CARD_ARGUMENTS if name in kwargs}
        self.create_model_card(**card)
        self._finish_current_push()
        given = {"token": token, "revision": revision, "private": private}
        given = {name: value for name, value in given.items() if value is not None}
        options = PushOptions(**{**self._push_options(), **given, "commit_message": commit_message, **kwargs})
        if blocking:
            return push_folder(self.args.output_dir, self.hub_model_id, options=options)
        # training may go on and save over these files before the push is done
        snapshot = SavedFolder(self.args.output_dir).snapshot(link=False)

        def push() -> CommitInfo:
            with snapshot:
                return push_folder(snapshot.name, self.hub_model_id, options=options)

        return HfApi().run_as_future(push)

    def _push_options(self) -> dict[str, Any]:
        return {
            "share_users": self.args.hub_share_users,
            "backbone": self.args.hub_backbone,
            "private": self.args.hub_private_repo,
            "revision": self.args.hub_revision,
            "token": self.args.hub_token,
        }

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
        options = PushOptions(**self._push_options(), commit_message=f"Training in progress, {when}")
        snapshot = SavedFolder(checkpoint_folder).snapshot(
            link=True
        )  # the checkpoint may be gone before the push is done

        def push() -> None:
            with snapshot:
                try:
                    push_folder(snapshot.name, self.hub_model_id, options=options)
                except LKGError as error:
                    logger.warning(f"Training goes on. {error}")

        job = HfApi().run_as_future(push)
        if busy:
            self.push_in_progress.jobs.append(job)
        else:
            self.push_in_progress = PushInProgress([job])


def _card_fields(given: dict[str, Any]) -> dict[str, Any]:
    """Arguments of `transformers` for a card as fields of ours."""
    fields = {k: v for k, v in given.items() if k in ("language", "license") and v is not None}
    if given.get("tags"):
        fields["tags"] = [given["tags"]] if isinstance(given["tags"], str) else list(given["tags"])
    if given.get("dataset"):
        names = given["dataset"]
        fields["dataset_name"] = names if isinstance(names, str) else ", ".join(names)
    if given.get("finetuned_from"):
        fields["base_model"] = given["finetuned_from"]
    return fields


def check_push(args: LlamaRecLKGTrainingArguments, model: LlamaRecLKGForRanking) -> None:
    """Raise `LKGError` before training where pushing would fail after it."""
    if args.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
        raise LKGError(
            f"hub_strategy={args.hub_strategy.value!r} would publish whole checkpoints, with the optimiser's "
            "state and any weights of single users. Use 'every_save', which pushes what others load, or 'end'."
        )
    if model.has_adapter:
        public_backbone(model.config.backbone_name_or_path, args.hub_backbone)
