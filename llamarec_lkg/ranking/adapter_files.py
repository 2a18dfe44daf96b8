"""Which adapters can be used, and their files: weights that must all be there, relative to the untouched backbone.

Some LoRA initialisations (PiSSA, OLoRA) move a part of the backbone into the adapter. A repository that names the
untouched backbone has to put that part back: their adapters are converted when they are saved.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from ..utils.errors import LKGError


ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


BASE_CHANGING = ("pissa", "olora")


# those whose change to the backbone cannot be told from two small matrices, or that need data before they start
REFUSED_INITIALISATIONS = ("loftq", "corda", "lora_ga", "eva")


def adapter_state(language_model: nn.Module, adapter_name: str) -> dict[str, torch.Tensor]:
    """What the file of an adapter holds."""
    from peft import get_peft_model_state_dict

    return get_peft_model_state_dict(language_model, adapter_name=adapter_name, save_embedding_layers=False)


def read_adapter_weights(folder: str | Path) -> dict[str, torch.Tensor]:
    """The weights in the folder of an adapter.

    Raises:
        LKGError: the file is not there, or is damaged.
    """
    path = Path(folder) / ADAPTER_WEIGHTS
    try:
        return load_file(path)
    except FileNotFoundError as error:
        raise LKGError(f"{path} is not there. Copy or download all of the folder, or save it again.") from error
    except SafetensorError as error:
        raise LKGError(f"{path} is not readable ({error}). Copy or download it again.") from error


def check_adapter_weights(
    language_model: nn.Module, adapter_name: str, found: Mapping[str, torch.Tensor], source: str | Path
) -> None:
    """Raise `LKGError` unless a file's weights are those of an adapter by name: one that is missing would keep its
    random start, or be the backbone's."""
    needed = adapter_state(language_model, adapter_name).keys()
    missing, left_over = sorted(needed - found.keys()), sorted(found.keys() - needed)
    if missing or left_over:
        raise LKGError(
            f"The adapter of {source} is not whole or does not fit this backbone: {len(missing)} weights are missing "
            f"{missing[:3]}, {len(left_over)} are left over {left_over[:3]}. Copy or download it again; if it "
            "is whole, it belongs to another backbone, or its files do not belong to each other."
        )


def load_adapter_weights(
    language_model: nn.Module, adapter_name: str, folder: Path, start: Mapping[str, torch.Tensor] | None = None
) -> None:
    """The weights of a checkpoint into an adapter that is there; a file that does not fit changes nothing.

    Args:
        folder: of the checkpoint's adapter.
        start: what the adapter started from, where it was converted when it was saved (`save_adapter_weights`).

    Raises:
        LKGError: a weight is missing, left over or of another shape, or the start is another.
    """
    from peft import set_peft_model_state_dict

    weights = read_adapter_weights(folder)
    check_adapter_weights(language_model, adapter_name, weights, folder)
    if start is not None:
        weights = without_start(weights, start, folder)
    try:
        set_peft_model_state_dict(language_model, weights, adapter_name)
    except RuntimeError as error:
        raise LKGError(
            f"The adapter in {folder} does not fit this model ({error}). Resume with the settings it was trained with."
        ) from error


def changes_base(adapter_config: Any) -> bool:
    """Whether adding this adapter takes its start out of the backbone's weights."""
    return str(getattr(adapter_config, "init_lora_weights", True)).lower().startswith(BASE_CHANGING)


def trained_outside_adapters(language_model: nn.Module | None) -> list[str]:
    """The backbone's weights that are open to training and that no adapter's file would hold."""
    if language_model is None:
        return []
    adapters = getattr(language_model, "peft_config", {})
    saved: set[str] = set()
    if adapters:  # with `bias="all"` its file holds weights that do not bear its name
        saved = set(adapter_state(language_model, language_model.active_adapter))
    return [
        name
        for name, weight in language_model.named_parameters()
        if weight.requires_grad and name not in saved and not any(f".{one}." in f"{name}." for one in adapters)
    ]


def save_adapter_weights(
    language_model: nn.Module,
    adapter_name: str,
    folder: Path,
    state_dict: Mapping[str, torch.Tensor] | None = None,
    start: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Write one adapter into a new folder, as PEFT does.

    Args:
        state_dict: gathered weights of the language model, where they are sharded.
        start: of a PiSSA or OLoRA adapter, its first weights. PEFT then writes plain LoRA of twice the rank for the
            untouched base: training went from W - B0 A0 + B0 A0 to W - B0 A0 + B A, which is W + [B, -B0] [A; A0].
    """
    if start is not None and state_dict:
        raise LKGError(
            f"The adapter {adapter_name!r} (PiSSA or OLoRA) cannot be saved from sharded weights: PEFT does not convert "
            "those. Train it on one device or with DDP, or start from init_lora_weights=True."
        )
    options = {"selected_adapters": [adapter_name], "state_dict": state_dict, "save_embedding_layers": False}
    with tempfile.TemporaryDirectory() as first:
        if start is not None:  # PEFT reads it from a folder, whose name is that of an adapter meanwhile
            options["path_initial_model_for_weight_conversion"] = initial = str(Path(first, "first-weights"))
            Path(initial).mkdir()
            save_file(dict(start), Path(initial, ADAPTER_WEIGHTS), metadata={"format": "pt"})
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
                f"The adapter in {folder} was trained from another start ({key}) than this model's. A randomised "
                "start ('pissa_niter_...') cannot be resumed; load the saved model and go on from there."
            )
    return trained


def check_adapter(adapter_config: Any, adapter_name: str, language_model: nn.Module) -> None:
    """Raise `LKGError` for what PEFT would do otherwise than one expects.

    Args:
        adapter_config (`peft.PeftConfig`): of an adapter that is to come.
        adapter_name: what it is to be called.
        language_model: where it is to go, with the adapters that it has.
    """
    loaded = getattr(language_model, "peft_config", {})
    if not adapter_name or "." in adapter_name or adapter_name in loaded:
        raise LKGError(
            f"An adapter cannot be called {adapter_name!r}: names have no dot and are given once; loaded are "
            f"{list(loaded)}."
        )
    parts = {part for name, _ in language_model.named_parameters() for part in name.split(".")}
    if adapter_name in parts:  # PEFT tells adapters apart by such parts, and would save others without weights
        raise LKGError(
            f"An adapter cannot be called {adapter_name!r}, as a part of the backbone is: the weights of other "
            f"adapters could not be told from its own. Choose another name, {adapter_name + '-adapter'!r} say."
        )
    if adapter_config.peft_type is None:
        raise LKGError("The adapter's configuration does not say which PEFT kind it is (peft_type).")
    if adapter_config.is_prompt_learning:
        raise LKGError(
            f"{adapter_config.peft_type.value} writes tokens of its own into the prompt, which the ranker "
            "assembles itself. Use an adapter of weights: LoRA and its variants, IA3, VeRA, ..."
        )
    start = str(getattr(adapter_config, "init_lora_weights", True)).lower()
    changes = changes_base(adapter_config)
    if changes and adapter_config.use_rslora and (adapter_config.rank_pattern or adapter_config.alpha_pattern):
        raise LKGError(
            f"init_lora_weights={start!r} with use_rslora and a rank_pattern or alpha_pattern cannot be saved: PEFT "
            "does not convert it to plain LoRA. Leave out the patterns or use_rslora."
        )
    if start.startswith(REFUSED_INITIALISATIONS) or (changes and getattr(adapter_config, "use_dora", False)):
        raise LKGError(
            f"init_lora_weights={start!r} with use_dora={getattr(adapter_config, 'use_dora', False)} leaves a "
            "backbone that an adapter repository cannot describe. Use true, 'gaussian', 'orthogonal', or without "
            "DoRA 'pissa' or 'olora'."
        )
    if loaded:
        kinds = {config.peft_type for config in loaded.values()}
        if {adapter_config.peft_type} != kinds:
            raise LKGError(
                f"{adapter_config.peft_type.value} cannot be loaded beside {[kind.value for kind in kinds]}: the "
                "adapters of one backbone are of one PEFT kind. Load it in a model of its own."
            )
        if changes or any(map(changes_base, loaded.values())):
            raise LKGError(
                f"An adapter that is trained from init_lora_weights={sorted(BASE_CHANGING)} changes the backbone, "
                "so no other can share it meanwhile. Train it alone; once saved and loaded it is plain LoRA."
            )
