"""Which adapters can be used, and their files: weights that must all be there, relative to the untouched backbone.

Some LoRA initialisations (PiSSA, OLoRA) move a part of the backbone into the adapter. A repository that names the
untouched backbone has to put that part back: their adapters are converted when they are saved.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from ..hub.layout import ADAPTER_FILES
from ..utils.errors import LKGError
from .weight_files import read_weights


BASE_CHANGING = ("pissa", "olora")

# those whose change to the backbone cannot be told from two small matrices, or that need data before they start
REFUSED_INITIALISATIONS = ("loftq", "corda", "lora_ga", "eva")


def adapter_state(language_model: nn.Module, adapter_name: str) -> dict[str, torch.Tensor]:
    """What the file of an adapter holds."""
    from peft import get_peft_model_state_dict

    return get_peft_model_state_dict(language_model, adapter_name=adapter_name, save_embedding_layers=False)


def check_adapter_weights(
    language_model: nn.Module, adapter_name: str, found: Mapping[str, torch.Tensor], source: str | Path
) -> None:
    """Raise `LKGError` unless a file's weights are those of an adapter by name: PEFT leaves a missing one at its
    random start."""
    needed = adapter_state(language_model, adapter_name).keys()
    missing, left_over = sorted(needed - found.keys()), sorted(found.keys() - needed)
    if missing or left_over:
        raise LKGError(
            f"The adapter of {source} is not whole or does not fit this backbone: {len(missing)} weights are missing "
            f"{missing[:3]}, {len(left_over)} are left over {left_over[:3]}. Copy or download it again."
        )


def load_adapter_weights(
    language_model: nn.Module, adapter_name: str, folder: Path, start: Mapping[str, torch.Tensor] | None
) -> None:
    """The weights of a checkpoint into an adapter that is there; `start` as of `save_adapter_weights`. A file with
    weights of other names changes nothing."""
    from peft import set_peft_model_state_dict

    weights = dict(read_weights(folder / ADAPTER_FILES[1]))
    check_adapter_weights(language_model, adapter_name, weights, folder)
    if start is not None:
        weights = without_start(weights, start, folder)
    set_peft_model_state_dict(language_model, weights, adapter_name)


def changes_base(adapter_config: Any) -> bool:
    """Whether adding this adapter takes its start out of the backbone's weights."""
    return str(getattr(adapter_config, "init_lora_weights", True)).lower().startswith(BASE_CHANGING)


def shared_weights(language_model: nn.Module) -> dict[int, int]:
    """In how many places a weight is, by its `id`, for those that are in several: tied embeddings, say."""
    places = Counter(id(weight) for _, weight in language_model.named_parameters(remove_duplicate=False))
    return {key: count for key, count in places.items() if count > 1}


def untie_adapted(language_model: nn.Module) -> None:
    """Give each layer that carries an adapter weights of its own where it shares them with others, which a merge would
    change, too."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    shared = shared_weights(language_model)
    for layer in language_model.modules():
        if isinstance(layer, BaseTunerLayer):
            base = layer.get_base_layer()
            for name, weight in list(base.named_parameters(recurse=False)):
                if id(weight) in shared:
                    setattr(base, name, nn.Parameter(weight.detach().clone(), weight.requires_grad))


def trained_outside_adapters(language_model: nn.Module | None) -> list[str]:
    """The backbone's weights that are open to training and that no adapter's file would hold."""
    if language_model is None:
        return []
    adapters = getattr(language_model, "peft_config", {})
    # with `bias="all"` an adapter's file holds weights that do not bear its name
    saved = adapter_state(language_model, language_model.active_adapter) if adapters else ()
    return [
        name
        for name, weight in language_model.named_parameters()
        if weight.requires_grad and name not in saved and not any(f".{one}." in f"{name}." for one in adapters)
    ]


def save_adapter_weights(
    language_model: nn.Module,
    adapter_name: str,
    folder: Path,
    state_dict: Mapping[str, torch.Tensor] | None,
    start: Mapping[str, torch.Tensor] | None,
) -> None:
    """Write one adapter into a new folder, as PEFT does; `state_dict`: gathered, where weights are sharded.

    From `start`, the first weights of a PiSSA or OLoRA adapter, PEFT writes plain LoRA of twice the rank for the
    untouched base: training went from W - B0 A0 + B0 A0 to W - B0 A0 + B A, which is W + [B, -B0] [A; A0].
    """
    if start is not None and state_dict:
        raise LKGError(
            f"The adapter {adapter_name!r} (PiSSA or OLoRA) cannot be saved from sharded weights: PEFT does not "
            "convert those. Train it on one device or with DDP, or start from init_lora_weights=True."
        )
    options = {"selected_adapters": [adapter_name], "state_dict": state_dict, "save_embedding_layers": False}
    with tempfile.TemporaryDirectory() as first:
        if start is not None:  # PEFT reads it from a folder, whose name is that of an adapter meanwhile
            options["path_initial_model_for_weight_conversion"] = initial = str(Path(first, "first-weights"))
            Path(initial).mkdir()
            save_file(dict(start), Path(initial, ADAPTER_FILES[1]), metadata={"format": "pt"})
        language_model.save_pretrained(folder, **options)
    if (folder / adapter_name).is_dir():  # where PEFT puts all but the one called "default"
        for path in (folder / adapter_name).iterdir():
            path.rename(folder / path.name)
        (folder / adapter_name).rmdir()
    (folder / "README.md").unlink(missing_ok=True)  # the card of the whole stands above it


def without_start(
    weights: Mapping[str, torch.Tensor], start: Mapping[str, torch.Tensor], folder: Path
) -> dict[str, torch.Tensor]:
    """The trained part of a converted PiSSA or OLoRA adapter; its start must be the one this model has."""
    trained = {}
    for key, value in weights.items():
        dim, sign = (0, 1) if "lora_A" in key else (1, -1)
        rank = start[key].shape[dim]
        trained[key], first = value.narrow(dim, 0, rank), sign * value.narrow(dim, rank, value.shape[dim] - rank)
        if first.shape != start[key].shape or not torch.allclose(first.float(), start[key].float(), atol=1e-4):
            raise LKGError(
                f"The adapter in {folder} was trained from another start than this model's ({key}): it cannot be "
                "resumed. Load the saved model and go on from there."
            )
    return trained


def check_adapter(adapter_config: Any, adapter_name: str, language_model: nn.Module) -> None:
    """Raise `LKGError` where PEFT could not keep a new adapter apart from others, or save it beside its base."""
    loaded = getattr(language_model, "peft_config", {})
    # PEFT tells the weights of adapters apart by the parts of their names
    taken = {part for name, _ in language_model.named_parameters() for part in name.split(".")} | loaded.keys()
    if not adapter_name or "." in adapter_name or adapter_name in taken:
        raise LKGError(
            f"An adapter cannot be called {adapter_name!r}: names have no dot, and are not those of a part of the "
            f"backbone or of a loaded adapter ({list(loaded)}). Choose another, {adapter_name + '-adapter'!r} say."
        )
    if adapter_config.peft_type is None or adapter_config.is_prompt_learning:
        raise LKGError(
            f"The adapter's peft_type is {adapter_config.peft_type}; it must be one of weights (LoRA, IA3, VeRA, "
            "...), since the ranker assembles the prompt itself."
        )
    start = str(getattr(adapter_config, "init_lora_weights", True)).lower()
    changes = changes_base(adapter_config)
    patterns = changes and (adapter_config.rank_pattern or adapter_config.alpha_pattern)
    if start.startswith(REFUSED_INITIALISATIONS) or (
        changes and (adapter_config.use_dora or (patterns and adapter_config.use_rslora))
    ):
        raise LKGError(
            f"init_lora_weights={start!r} leaves a backbone that an adapter repository cannot describe. Use true, "
            "'gaussian' or 'orthogonal'; 'pissa' and 'olora' only without DoRA, and without rsLoRA with patterns."
        )
    if changes:
        _refuse_shared(adapter_config, language_model)
    if getattr(adapter_config, "layer_replication", None):
        raise LKGError(
            "layer_replication makes a deeper backbone than the one that the adapter's repository would name. Leave "
            "it out of the adapter's configuration."
        )
    if loaded and (changes or any(map(changes_base, loaded.values()))):
        raise LKGError(
            f"An adapter that is trained from init_lora_weights={sorted(BASE_CHANGING)} changes the backbone, "
            "so no other can share it meanwhile. Train it alone; once saved and loaded it is plain LoRA."
        )


def _refuse_shared(adapter_config: Any, language_model: nn.Module) -> None:
    """Raise `LKGError` where an adapter that takes its start out of a layer's weights would take it out of another's,
    too."""
    from peft.tuners.tuners_utils import check_target_module_exists

    shared = shared_weights(language_model)
    for name, layer in language_model.named_modules():
        tied = any(id(weight) in shared for weight in layer.parameters(recurse=False))
        if tied and check_target_module_exists(adapter_config, name):
            raise LKGError(
                f"init_lora_weights={adapter_config.init_lora_weights!r} changes the weights of {name!r}, which are "
                "tied to those of another layer. Leave it out of target_modules, or use init_lora_weights=True."
            )
