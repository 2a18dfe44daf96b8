"""Several adapters on one backbone, each with the configuration and heads (preferences, fusion, readout) it was
trained with.

PEFT alone would switch only the weights inside the backbone and leave another tenant's preferences in place: scores
would be wrong without a word. Here all of them change hands together.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers.utils import SAFE_WEIGHTS_NAME, logging

from ..hub.layout import ADAPTER_FILES, ADAPTER_FOLDER
from ..utils.errors import LKGError
from ..utils.hub import HUB_KEYS, fetch, lasting_name, pinned
from .adapter_files import (
    adapter_state,
    changes_base,
    check_adapter,
    check_adapter_weights,
    save_adapter_weights,
    untie_adapted,
)
from .backbones import check_size
from .configuration_llamarec_lkg import LlamaRecLKGConfig
from .heads import evaluating
from .weight_files import is_own, load_heads, load_users, read_weights


if TYPE_CHECKING:
    from .processing_llamarec_lkg import LlamaRecLKGProcessor


logger = logging.get_logger(__name__)


DEFAULT_ADAPTER = "default"

HEADS = ("preference", "fusion", "readout")


@dataclass
class Tenant:
    """All about an adapter that is loaded but not in use, but its PEFT weights, which wait in the backbone."""

    config: LlamaRecLKGConfig
    heads: dict[str, nn.Module]
    trainable: bool


class AdapterMixin:
    """The adapters of a [`LlamaRecLKGForRanking`]. `save_pretrained` and `push_to_hub` take the one in use."""

    @property
    def has_adapter(self) -> bool:
        return hasattr(self.language_model, "peft_config")

    @property
    def adapter_names(self) -> list[str]:
        """All loaded adapters, in the order they came."""
        return list(self.language_model.peft_config) if self.has_adapter else []

    @property
    def active_adapter(self) -> str | None:
        """The adapter in use."""
        return self.language_model.active_adapter if self.has_adapter else None

    def active_adapters(self) -> list[str]:
        """The adapter in use as a list, as `transformers` asks for it. There is never more than one."""
        return [self.active_adapter] if self.has_adapter else []

    def add_adapter(
        self, adapter_config: Any, adapter_name: str = DEFAULT_ADAPTER, config: LlamaRecLKGConfig | None = None
    ) -> None:
        """Add a new, untrained PEFT adapter (LoRA and its variants, QLoRA, IA3, VeRA, ...) and put it to use.

        Args:
            adapter_config (`peft.PeftConfig`): what to add to the backbone.
            config: of a further tenant (`processor.model_config()`), by default that of the adapter in use. Its
                preferences and fusion weights start untrained; those of the first adapter are the model's own.
        """
        from peft import get_peft_model, prepare_model_for_kbit_training

        self._require_base()
        check_size(self.language_model, self.config)
        check_adapter(adapter_config, adapter_name, self.language_model)
        if self.has_adapter:
            config = self._tenant_config(config or deepcopy(self.config))
            config.heads_trained = False
            self._check_backbone(config, "the new adapter")
            self.check_reading(config)
            tenant = Tenant(config, self.make_heads(config), trainable=True)
            self._init_weights(tenant.heads["preference"])
            self.language_model.add_adapter(adapter_name, adapter_config)
            self._tenants[adapter_name] = tenant
            self.set_adapter(adapter_name)
        else:
            if getattr(self.language_model, "is_quantized", False):
                self.language_model = prepare_model_for_kbit_training(
                    self.language_model, use_gradient_checkpointing=False
                )
            self.language_model = get_peft_model(self.language_model, adapter_config, adapter_name=adapter_name)
        if changes_base(adapter_config):
            start = adapter_state(self.language_model, adapter_name)
            self._adapter_starts[adapter_name] = {key: value.detach().cpu().clone() for key, value in start.items()}

    def load_adapter(
        self,
        pretrained_model_name_or_path: str | Path,
        adapter_name: str,
        *,
        is_trainable: bool = False,
        processor: LlamaRecLKGProcessor | None = None,
        same_backbone: bool = False,
        **kwargs: Any,
    ) -> None:
        """Load a further adapter repository beside those that are loaded; the backbone stays as it is.

        `set_adapter` puts it to use; on a model without an adapter it is in use at once. A load that fails changes
        nothing.

        Args:
            processor: the one that will feed it; checked against the repository's configuration.
            same_backbone: say that the backbone is the same although the repository calls it by another name.
            kwargs: any of `HUB_KEYS`.

        Raises:
            LKGError: the repository has no adapter, or does not fit the backbone or the processor.
            OSError: a file is absent.
        """
        if unknown := sorted(set(kwargs) - set(HUB_KEYS)):
            raise LKGError(f"load_adapter does not know {unknown}; beside its own arguments it takes {HUB_KEYS}.")
        self._require_base()
        name = str(pretrained_model_name_or_path)
        kwargs = pinned(name, kwargs)
        found = LlamaRecLKGConfig.get_config_dict(name, **kwargs)[0]
        if found.get("model_type") != LlamaRecLKGConfig.model_type or not found.get("has_adapter"):
            raise LKGError(
                f"{name} is no adapter repository (model_type {found.get('model_type')!r}, has_adapter "
                f"{found.get('has_adapter', False)}): that is what saving a ranker with an adapter writes."
            )
        config = LlamaRecLKGConfig.from_pretrained(name, **kwargs)
        heads = self.make_heads(config)
        load_users(heads["preference"], config, name, **kwargs)
        if processor is not None:
            processor.check_model(config)
        if not same_backbone:
            self._check_backbone(config, name)
        self._tenant_config(config)
        self.check_reading(config)
        tenant = Tenant(config, heads, trainable=is_trainable)
        load_heads(nn.ModuleDict(heads), fetch(name, SAFE_WEIGHTS_NAME, **kwargs))
        first = not self.has_adapter
        self._attach_adapter(name, adapter_name, is_trainable, **kwargs)
        revision = kwargs.get("revision")
        config.name_or_path, config._commit_hash = lasting_name(name), getattr(revision, "resolved", revision)
        if first:
            self._take(tenant)
        else:
            self._tenants[adapter_name] = tenant

    def set_adapter(self, adapter_name: str) -> None:
        """Put a loaded adapter to use, with its preferences, fusion weights and configuration. Batches must then come
        from the processor of this adapter."""
        self._require_adapter(adapter_name)
        current = self.active_adapter
        if adapter_name == current:
            return
        self._tenants[current] = Tenant(self.config, self.heads(), self._is_trainable())
        tenant = self._tenants.pop(adapter_name)
        self._take(tenant)
        self.language_model.set_adapter(adapter_name, inference_mode=not tenant.trainable)

    def delete_adapter(self, adapter_name: str) -> None:
        """Forget a loaded adapter that is not in use, with its preferences and fusion weights."""
        self._require_adapter(adapter_name)
        if adapter_name == self.active_adapter:
            raise LKGError(f"The adapter {adapter_name!r} is in use; switch to another with `set_adapter` first.")
        self.language_model.delete_adapter(adapter_name)
        del self._tenants[adapter_name]
        self._adapter_starts.pop(adapter_name, None)

    def require_trainable_adapter(self) -> None:
        """Raise `LKGError` where there is an adapter and nothing of it would be trained, or could be loaded again."""
        if not self.has_adapter:
            return
        check_size(self.language_model, self.config)
        if not self._is_trainable():
            raise LKGError(
                f"The adapter {self.active_adapter!r} is frozen: training would move only preferences and fusion "
                "weights beside it. Load it with `is_trainable=True`, or call `trainer.warm_up_heads()`."
            )

    def merge_adapter(self) -> Any:
        """Add the adapter's weights to the backbone's, so that the whole can be saved as one. Input and output
        embeddings that were tied are two of their own from then on, where the adapter changes one of them."""
        if self._tenants:
            raise LKGError(
                f"Merging {self.active_adapter!r} changes the backbone that {sorted(self._tenants)} were trained on. "
                "Delete those with `delete_adapter` first."
            )
        if self.has_adapter:
            untie_adapted(self.language_model)
            with self.warned_of_change(f"Merging {self.active_adapter!r}"):
                self.language_model = self.language_model.merge_and_unload()
            self._say_whether_tied()
            self.config.has_adapter = False
            self.mark_backbone_changed()
            self._adapter_starts.clear()
        return self

    def _say_whether_tied(self) -> None:
        """Let the configurations say of the embeddings, input and output, what they are."""
        words, output = self.get_input_embeddings(), self.get_output_embeddings()
        if output is None or output.weight is words.weight:
            return
        backbone = self.language_model.config
        for config in (self.config, backbone, backbone.get_text_config()):
            config.tie_word_embeddings = False
        for model in (self.language_model, self):
            model.all_tied_weights_keys = model.get_expanded_tied_weights_keys(all_submodels=True)

    def mark_backbone_changed(self) -> None:
        """Say that the backbone is no longer the base it names: the model is then saved whole, without adapters."""
        self._own_backbone = True
        self.config.external_backbone = False

    # -- files ------------------------------------------------------------------------------------------------------

    def _save_adapter(self, folder: Path, state_dict: Mapping[str, torch.Tensor] | None = None) -> None:
        """Write the adapter in use into a folder of its own; `state_dict`: gathered, where weights are sharded."""
        gathered = {k.removeprefix("language_model."): v for k, v in (state_dict or {}).items() if not is_own(k)}
        name = self.active_adapter
        if left_out := [other for other in self.adapter_names if other != name]:
            logger.warning(
                f"The adapter in use, {name!r}, is saved; {left_out} are loaded, but not saved. Switch to each with "
                "`set_adapter`, and save it in a folder of its own."
            )
        start = self._adapter_starts.get(name)
        with evaluating(self.language_model):  # PEFT leaves it in a mode of its own
            save_adapter_weights(self.language_model, name, folder, gathered or None, start)

    def _attach_adapter(self, source: str, adapter_name: str, is_trainable: bool, **hub: Any) -> None:
        """Put the PEFT adapter of a repository on the backbone, whole or not at all. The adapter in use stays so."""
        from peft import PeftConfig, get_peft_model

        files = [fetch(source, f"{ADAPTER_FOLDER}/{file}", **hub) for file in ADAPTER_FILES]
        folder = str(Path(files[0]).parent)
        try:
            adapter_config = PeftConfig.from_pretrained(folder)
        except (ValueError, KeyError, TypeError) as error:
            raise LKGError(f"{files[0]} is not readable ({error!r}). Copy or download it again.") from error
        check_adapter(adapter_config, adapter_name, self.language_model)
        adapter_config.inference_mode = not is_trainable
        first, language_model = not self.has_adapter, self.language_model
        if first:
            language_model = get_peft_model(language_model, adapter_config, adapter_name=adapter_name)
        try:
            found = dict(read_weights(files[1]))
            language_model.load_adapter(folder, adapter_name, is_trainable=is_trainable)
            check_adapter_weights(language_model, adapter_name, found, source)
        except (RuntimeError, ValueError, KeyError) as error:  # LKGError is a ValueError
            if first:
                language_model = language_model.unload()
            elif adapter_name in language_model.peft_config:
                language_model.delete_adapter(adapter_name)
            if isinstance(error, LKGError):
                raise
            raise LKGError(f"The adapter of {source} does not fit this backbone ({error}).") from error
        finally:
            self.language_model = language_model.train(self.training)  # PEFT leaves it in a mode of its own

    # -- parts ------------------------------------------------------------------------------------------------------

    def _take(self, tenant: Tenant) -> None:
        device = self.fusion.retrieval_weight.device
        self.config = tenant.config
        for name in HEADS:
            head = tenant.heads.get(name)
            setattr(self, name, None if head is None else head.to(device).train(self.training))

    def _tenant_config(self, config: LlamaRecLKGConfig) -> LlamaRecLKGConfig:
        """All tenants speak of the one backbone."""
        config.text_config = self.config.text_config
        config.backbone_name_or_path = self.config.backbone_name_or_path
        config.backbone_revision = self.config.backbone_revision
        config.num_hidden_layers = self.config.num_hidden_layers
        return config

    def _is_trainable(self) -> bool:
        mark = f".{self.active_adapter}."
        return any(p.requires_grad for name, p in self.language_model.named_parameters() if mark in f"{name}.")

    def _require_adapter(self, adapter_name: str) -> None:
        if adapter_name not in self.adapter_names:
            raise LKGError(f"No adapter {adapter_name!r} is loaded; loaded are {self.adapter_names}.")

    def _require_base(self) -> None:
        if self.language_model is None:
            raise LKGError("An adapter needs a language model; this ranker has none. Make one with `from_backbone`.")
        if self._own_backbone:
            raise LKGError(
                "The backbone of this model has weights of its own (trained, merged, or saved whole), which no "
                "adapter repository holds. Save `model.language_model.save_pretrained(folder)`, and build on it with "
                "`from_backbone(folder, config)`."
            )

    def _check_backbone(self, config: LlamaRecLKGConfig, who: str) -> None:
        """Raise `LKGError` unless an adapter names no backbone, or the one that is loaded; and no revision (it was
        trained on a folder that the Hub has under this name), or the one that is loaded."""
        name, present = (lasting_name(c.backbone_name_or_path or "") or None for c in (config, self.config))
        revision, here = config.backbone_revision, self.config.backbone_revision
        if name is not None and (name != present or revision not in (None, here)):
            raise LKGError(
                f"{who} was trained on the backbone {name} at {revision or 'no known commit'}, this model has "
                f"{present} at {here or 'no known commit'}. An adapter works on its own base only. If both mean the "
                "same weights (from commit to commit they often stay the same), pass same_backbone=True."
            )
        layers, here = (c.text_config.get_text_config().num_hidden_layers for c in (config, self.config))
        if layers != here:
            raise LKGError(
                f"{who} was trained on {layers} layers of the backbone, this model has {here} (`num_hidden_layers`). "
                "Load it on a model of its own."
            )
