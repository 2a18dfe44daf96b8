"""Saving a ranker and loading it again: written all together or not at all, and read with every weight accounted for.

A folder holds one form of a ranker at a time: whole, or only what was trained beside a backbone that lies elsewhere.
"""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_NAME

from ..hub.layout import (
    ADAPTER_FOLDER,
    MODEL_MAP,
    PARTS,
    PRIVATE_FOLDER,
    PRIVATE_PARTS,
    USER_EMBEDDING,
    USER_EMBEDDING_FILE,
    ignore_private,
    write_shim,
)
from ..hub.push import PushOptions, push_folder
from ..hub.saved_folder import refuse_root_adapter
from ..utils.errors import LKGError
from ..utils.files import atomic_files, read_json
from ..utils.hub import HUB_ERRORS, HUB_IDS, RULES_FILE, hub_options, lasting_name, pinned
from .adapter_files import load_adapter_weights
from .adapters import DEFAULT_ADAPTER
from .backbones import check_size, choose_dtype
from .configuration_llamarec_lkg import LlamaRecLKGConfig
from .weight_files import is_own, load_heads, load_users, weight_files


class CheckpointMixin:
    """`from_pretrained` and `save_pretrained` of a [`LlamaRecLKGForRanking`], and resuming from a checkpoint."""

    _keys_to_ignore_on_save = [USER_EMBEDDING]  # it has a file of its own

    # -- loading ----------------------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *args: Any,
        backbone: Any = None,
        is_trainable: bool = False,
        adapter_name: str = DEFAULT_ADAPTER,
        output_loading_info: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Load any of the forms `save_pretrained` writes, from a folder or from the Hub.

        Args:
            config: a `LlamaRecLKGConfig`, of which a copy is used, or the place of one, to use instead of the saved.
            backbone: a folder, Hub id or model to use in place of the one that a small form names. False leaves the
                language model out, as `use_language_model=False` does; None and True are what was saved.
            dtype: of the backbone; by default, or "auto", the checkpoint's own, but float32 for half precision that
                the device does not compute fast. The heads stay in float32.
            is_trainable: whether a saved adapter, to be called `adapter_name`, can be trained on.
            output_loading_info: return what loading the backbone found, too.
            kwargs: fields of the configuration, which have the last word; `HUB_KEYS` of hub.py for all files; for the
                backbone `quantization_config`, `device_map`, `attn_implementation`, ...

        Raises:
            LKGError: weights are missing or do not fit, or the backbone cannot be found or is another.
            OSError: a file is absent.
        """
        name = str(pretrained_model_name_or_path)
        hub = pinned(name, hub_options(kwargs))
        kwargs.update(hub)
        config = _config_to_load_with(name, kwargs, hub)
        if Path(name).is_dir():
            refuse_root_adapter(Path(name, hub.get("subfolder") or ""))
        if not (isinstance(backbone, bool | None) or (config.external_backbone and config.use_language_model)):
            raise LKGError(
                f"backbone={str(backbone)[:200]!r} was given, but {name} names no backbone that it could stand for. "
                "Leave `backbone=` out."
            )
        left_out = backbone is False or not config.use_language_model
        if left_out:
            config.use_language_model = config.has_adapter = False
            model, info = cls(config), {}
        elif config.external_backbone:
            model, info = cls._around_backbone(name, None if backbone is True else backbone, config, kwargs)
        else:
            model, info = cls._from_whole(name, *args, config=config, **kwargs)
        if not model._own_backbone:
            load_heads(model, *weight_files(name, own=True, **hub), beside_backbone=left_out)
        if config.has_adapter:
            model._attach_adapter(name, adapter_name, is_trainable, **hub)
        load_users(model.preference, model.config, name, **hub)
        model._left_backbone_out = left_out
        model.eval()
        revision = hub.get("revision")
        model.config.name_or_path = model.name_or_path = lasting_name(name)
        model.config._commit_hash = getattr(revision, "resolved", revision)
        empty = {"missing_keys": set(), "unexpected_keys": set(), "mismatched_keys": set(), "error_msgs": []}
        return (model, {**empty, **info}) if output_loading_info else model

    @classmethod
    def _around_backbone(
        cls, name: str, backbone: Any, config: LlamaRecLKGConfig, kwargs: dict[str, Any]
    ) -> tuple[Any, dict[str, Any]]:
        """A new ranker around the backbone of a small form, or the given one, which must be the same architecture."""
        # these say where the ranker is, not where its backbone is
        elsewhere = ("revision", "subfolder", "adapter_kwargs", "_from_auto")
        kwargs = {key: value for key, value in kwargs.items() if key not in elsewhere}
        saved, wanted = config.text_config, config.backbone_name_or_path if backbone is None else backbone
        if wanted is None:
            raise LKGError(f"{name} holds no backbone and does not name one. Give `backbone=`, a folder or Hub id.")
        if isinstance(backbone, str | Path):
            config.backbone_revision = None  # of the one that this one stands for; its own is the default branch
        try:
            model, info = cls.from_backbone(wanted, config, output_loading_info=True, **kwargs)
        except HUB_ERRORS as error:
            at = f" at {config.backbone_revision}" if config.backbone_revision else ""
            same = HUB_IDS.get(wanted) if isinstance(wanted, str) else None
            hint = f" On the Hub it is {same!r}, with other rounding: scores differ a little." if same else ""
            raise LKGError(
                f"{name} was trained around the backbone {str(wanted)[:200]!r}, which could not be loaded{at} "
                f"({error}). Give `backbone=`, a folder or Hub id of the same model, loaded as it is now.{hint}"
            ) from error
        shape = ("model_type", "vocab_size", "hidden_size", "num_hidden_layers")
        pairs = {key: (getattr(saved, key, None), getattr(config.text_config, key, None)) for key in shape}
        if differing := {key: pair for key, pair in pairs.items() if None not in pair and pair[0] != pair[1]}:
            raise LKGError(
                f"{name} was trained around another backbone than the one loaded; (saved, loaded): {differing}. Give "
                "`backbone=`: a folder or Hub id of the same model."
            )
        return model, info

    @classmethod
    def _from_whole(cls, name: str, *args: Any, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """A checkpoint with its backbone; a weight that is missing in it is an error, not a new start."""
        choose_dtype(name, kwargs)
        model, info = super().from_pretrained(name, *args, output_loading_info=True, **kwargs)
        missing = sorted(info["missing_keys"], key=lambda key: (not is_own(key), key))
        if missing:
            more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
            raise LKGError(
                f"{name} lacks the weights {missing[:5]}{more}. It is damaged, its files are of two models, or it is "
                "a plain backbone, which is for `LlamaRecLKGForRanking.from_backbone`. Save or download it again."
            )
        model._own_backbone = True
        model.check_reading()
        return model, info

    def load_trained_weights(self, folder: str | Path) -> None:
        """Put the weights of a checkpoint of this very model in place: own weights and adapter, or all of them."""
        folder = Path(folder)
        if self.config.num_users and not (folder / USER_EMBEDDING_FILE).exists():
            raise LKGError(
                f"{folder} lacks {USER_EMBEDDING_FILE}, the weights of this model's {self.config.num_users:,} users. "
                "Copy all of the checkpoint."
            )
        if self.has_adapter or self.language_model is None:
            load_heads(self, folder / SAFE_WEIGHTS_NAME)
            if self.has_adapter:
                name = self.active_adapter
                place = folder / ADAPTER_FOLDER
                load_adapter_weights(self.language_model, name, place, self._adapter_starts.get(name))
        else:
            weights = {name: value for path in weight_files(folder) for name, value in load_file(path).items()}
            result = self.load_state_dict(weights, strict=False)
            if result.unexpected_keys or {*result.missing_keys} - {*self.all_tied_weights_keys, USER_EMBEDDING}:
                raise LKGError(f"The checkpoint in {folder} does not fit this model: {result}.")
            self.mark_backbone_changed()
        load_users(self.preference, self.config, folder)

    # -- saving -----------------------------------------------------------------------------------------------------

    def own_state_dict(self, state_dict: dict[str, torch.Tensor] | None = None) -> dict[str, torch.Tensor]:
        """The weights of everything but the backbone, of this model or out of a gathered `state_dict`."""
        weights = (state_dict or self.state_dict()).items()
        return {name: value.detach().contiguous() for name, value in weights if is_own(name)}

    def save_pretrained(
        self, save_directory: str | Path, *, include_backbone: bool | None = None, **kwargs: Any
    ) -> None:
        """Save the whole model or, by default when it has an adapter, only what was trained.

        The small form holds `config.json`, the heads (preferences, fusion, readout) in `model.safetensors`, and the
        adapter in `adapter/`; the backbone is named, not copied. The weights of single users, where there are any, are
        in `private/`, which `.gitignore` names. A model that was saved in the folder before is replaced as a whole: a
        save that fails leaves the earlier one, and one that is killed meanwhile no `config.json`.

        Args:
            include_backbone: False saves the small form of a model without adapter as well. (After weights of its
                backbone were changed by hand, call `mark_backbone_changed` first.)
            kwargs: for `PreTrainedModel.save_pretrained`; with `push_to_hub=True` also for `push_to_hub`, whose
                `repo_id` is by default the folder's name.

        Raises:
            LKGError: the small form is asked for, but the backbone's weights are not those of the base it would name.
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
        weights = kwargs.get("state_dict") or self.state_dict()
        try:
            with atomic_files(folder, CONFIG_NAME, [*PARTS["model"], *PRIVATE_PARTS["model"]]) as new:
                write_shim(new)
                if USER_EMBEDDING in weights:
                    self._save_users(new, weights[USER_EMBEDDING], folder / RULES_FILE)
                if external:
                    self._save_small(new, kwargs.get("state_dict"))
                else:
                    super().save_pretrained(new, **kwargs)
        except BaseException:
            self.config.external_backbone = before
            raise

    def _saved_without_backbone(self, folder: Path, include_backbone: bool | None) -> bool:
        """Whether the small form is to be saved; raises `LKGError` where a form cannot be, or not there."""
        config = folder / CONFIG_NAME
        if self._left_backbone_out and config.exists() and read_json(config).get("use_language_model", True):
            raise LKGError(
                f"{folder} holds a ranker with its language model, and this one was loaded without it "
                "(`backbone=False` or `use_language_model=False`). Save it in a folder of its own."
            )
        small = self.has_adapter or self.language_model is None
        external = small if include_backbone is None else not include_backbone
        if self.has_adapter and not external:
            raise LKGError("A model with an adapter is saved whole after `model.merge_adapter()`.")
        if external and self.language_model is not None and self._own_backbone:
            remedy = "Call `model.merge_adapter()`, and save" if self.has_adapter else "Save"
            raise LKGError(
                "The backbone of this model has weights of its own (trained, merged, or saved whole); the small form "
                f"would name {self.config.backbone_name_or_path!r} in their place. {remedy} with "
                "`include_backbone=True`."
            )
        if external and self.language_model is not None:
            check_size(self.language_model, self.config)
        return external

    def _save_small(self, folder: Path, state_dict: dict[str, torch.Tensor] | None) -> None:
        own = self.own_state_dict(state_dict)
        own = {name: value.cpu() for name, value in own.items() if name != USER_EMBEDDING}
        save_file(own, folder / SAFE_WEIGHTS_NAME, metadata={"format": "pt"})
        if self.has_adapter:
            self._save_adapter(folder / ADAPTER_FOLDER, state_dict)
        self.config.architectures = [type(self).__name__.removeprefix("FSDP")]
        self.config.save_pretrained(folder)

    def _save_users(self, folder: Path, weight: torch.Tensor, rules: Path) -> None:
        (folder / PRIVATE_FOLDER).mkdir()
        metadata = {"format": "pt", **({"users": self.config.users} if self.config.users else {})}
        table = {USER_EMBEDDING: weight.detach().cpu().contiguous()}
        save_file(table, folder / USER_EMBEDDING_FILE, metadata=metadata)
        if rules.exists():
            (folder / RULES_FILE).write_bytes(rules.read_bytes())
        ignore_private(folder)


def _config_to_load_with(name: str, kwargs: dict[str, Any], hub: dict[str, Any]) -> LlamaRecLKGConfig:
    """The saved configuration, or a copy of the given one; takes `config` and its fields out of `kwargs`."""
    config = kwargs.pop("config", None)
    fields = {key: kwargs.pop(key) for key in list(kwargs) if key in LlamaRecLKGConfig.__annotations__}
    if isinstance(config, str | Path):
        elsewhere = {key: value for key, value in hub.items() if key not in ("revision", "subfolder")}
        config = LlamaRecLKGConfig.from_pretrained(config, **elsewhere)
    elif config is None:
        config = LlamaRecLKGConfig.from_pretrained(name, **hub)
    elif isinstance(config, LlamaRecLKGConfig):
        config = deepcopy(config)  # what is loaded is written down in it
    else:
        raise LKGError(
            f"config is a {type(config).__name__}; it is a LlamaRecLKGConfig, or the place of one. Give single fields "
            "by their names: `from_pretrained(..., num_paths=2)`."
        )
    for key, value in fields.items():
        setattr(config, key, value)
    config.num_users, config.users = 0, None  # `private/` says who they are
    config.check()
    return config
