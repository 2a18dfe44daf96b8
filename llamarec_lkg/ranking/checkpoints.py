"""The files of a saved ranker: written all together or not at all, and read with every weight accounted for.

A folder holds one form of a ranker at a time. Weights and adapters that an earlier save left there, and that are no
part of this one, go with it: a loader would take them for the model, and a push would publish them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_NAME

from ..hub.layout import ADAPTER_FOLDER, MODEL_MAP, write_shim
from ..hub.push import PushOptions, push_folder
from ..hub.saved_folder import refuse_root_adapter
from ..utils.errors import LKGError
from ..utils.files import exchanged, read_json
from .weight_files import ADAPTER, _weight_patterns, is_own, load_heads, weight_files


class ModelFiles:
    """Saving a [`LlamaRecLKGForRanking`], and putting the weights of a checkpoint in place."""

    def own_state_dict(self, state_dict: dict[str, torch.Tensor] | None = None) -> dict[str, torch.Tensor]:
        """The weights of everything but the backbone, of this model or out of a gathered `state_dict`."""
        return {
            name: value.detach().contiguous()
            for name, value in (state_dict or self.state_dict()).items()
            if is_own(name)
        }

    def save_pretrained(
        self, save_directory: str | Path, *, include_backbone: bool | None = None, **kwargs: Any
    ) -> None:
        """Save the whole model or, by default when it has an adapter, only what was trained.

        The small form holds `config.json`, the preference and fusion weights in `model.safetensors`, and the adapter
        in `adapter/`; the backbone is named, not copied. A model that was saved in the folder before is replaced as a
        whole: a save that fails leaves the earlier one. One that is killed in the moment of replacing leaves no
        `config.json`, so that nobody loads a mixture; the files of both are then in a hidden folder `.writing.*`.

        Args:
            include_backbone: False saves the small form of a model without adapter as well (its backbone is then
                taken to be untrained; after weights of it were changed by hand, call `mark_backbone_changed` first).
            kwargs: for `PreTrainedModel.save_pretrained`, which passes over what it does not know; and with
                `push_to_hub=True` for `push_to_hub`, whose `repo_id` is by default the folder's name.

        Raises:
            LKGError: the small form is asked for, but the backbone's weights are not those of the base it would
                name (trained, merged, or loaded from a whole checkpoint).
            TypeError: the model is to be pushed, and an argument is none of these.
        """
        folder, wanted = Path(save_directory), kwargs.pop("push_to_hub", False)
        options = PushOptions.take(kwargs, strict=wanted)
        repo_id = kwargs.pop("repo_id", folder.name)
        self._save(folder, include_backbone, **kwargs)
        if wanted and kwargs.get("is_main_process", True):
            push_folder(folder, repo_id, parts=(self.hub_part,), options=options)

    def _save(self, folder: Path, include_backbone: bool | None, **kwargs: Any) -> None:
        refuse_root_adapter(folder)
        external = self._saved_without_backbone(folder, include_backbone)
        before = self.config.external_backbone
        self.config.external_backbone = external and self.language_model is not None
        self.config.has_adapter = self.has_adapter
        self.config.auto_map = MODEL_MAP
        writes = kwargs.get("is_main_process", True)
        if external and not writes:
            return
        if not external and (kwargs.get("distributed_checkpoint") or not self.should_save_on_this_rank(writes)):
            super().save_pretrained(folder, **kwargs)  # writes a part, or hands weights to the process that writes
            return
        try:
            with exchanged(folder, CONFIG_NAME, [*ADAPTER, *_weight_patterns(kwargs.get("variant"))]) as new:
                write_shim(new)
                if external:
                    self._save_small(new, kwargs.get("state_dict"))
                else:
                    super().save_pretrained(new, **kwargs)
        except BaseException:
            self.config.external_backbone = before
            raise

    def _saved_without_backbone(self, folder: Path, include_backbone: bool | None) -> bool:
        """Whether the small form is to be saved; raises `LKGError` where a form cannot be, or not there."""
        if self._left_backbone_out and (folder / CONFIG_NAME).exists():
            if (folder / ADAPTER[0]).exists() or read_json(folder / CONFIG_NAME).get("use_language_model", True):
                raise LKGError(
                    f"{folder} holds a ranker with its language model, and this one was loaded without it "
                    "(`backbone=False` or `use_language_model=False`): saved there it would take the place of the "
                    "other's weights. Save it in a folder of its own."
                )
        external = (
            (self.has_adapter or self.language_model is None) if include_backbone is None else not include_backbone
        )
        if self.has_adapter and not external:
            raise LKGError("A model with an adapter is saved whole after `model.merge_adapter()`.")
        if external and self.language_model is not None and self._own_backbone:
            remedy = "Call `model.merge_adapter()`, and save" if self.has_adapter else "Save"
            raise LKGError(
                "The backbone of this model has weights of its own (trained, merged, or saved whole); the small form "
                f"would name {self.config.backbone_name_or_path!r} in their place. {remedy} the whole model with "
                "`include_backbone=True`."
            )
        return external

    def _save_small(self, folder: Path, state_dict: dict[str, torch.Tensor] | None) -> None:
        own = {name: value.cpu() for name, value in self.own_state_dict(state_dict).items()}
        save_file(own, folder / SAFE_WEIGHTS_NAME, metadata={"format": "pt"})
        if self.has_adapter:
            self._save_adapter(folder / ADAPTER_FOLDER, state_dict)
        self.config.architectures = [type(self).__name__.removeprefix("FSDP")]
        self.config.save_pretrained(folder)

    def load_trained_weights(self, folder: str | Path) -> None:
        """Put the weights of a checkpoint of this very model in place: own weights and adapter, or all of them.

        Raises:
            LKGError: the checkpoint does not fit.
        """
        folder = Path(folder)
        if not self.has_adapter and self.language_model is not None:
            weights = {name: value for path in weight_files(folder) for name, value in load_file(path).items()}
            result = self.load_state_dict(weights, strict=False)
            tied = set(self.all_tied_weights_keys or ())
            if result.unexpected_keys or set(result.missing_keys) - tied:
                raise LKGError(f"The checkpoint in {folder} does not fit this model: {result}.")
            self.mark_backbone_changed()
            return
        load_heads(self, folder / SAFE_WEIGHTS_NAME)
        if self.has_adapter:
            self._load_adapter_weights(folder / ADAPTER_FOLDER)
