"""The files of an adapter repository: weights that must all be there, and adapters that are plain relative to their
base.

Some LoRA initialisations (PiSSA, OLoRA) move a part of the backbone into the adapter. A repository that names the
untouched backbone has to put that part back: their adapters are converted when they are saved.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from ..utils.errors import LKGError
from ..utils.files import read_json, write_json


ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


BASE_CHANGING = ("pissa", "olora")


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
        start: what the adapter started from, where it was converted when it was saved (`save_as_plain_lora`).

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


def save_as_plain_lora(folder: Path, start: Mapping[str, torch.Tensor]) -> None:
    """Rewrite a saved PiSSA or OLoRA adapter as LoRA of twice the rank on the untouched base.

    Training started at W - s B0 A0 with the adapter B0 A0 and ended at W - s B0 A0 + s B A, which is W + s [B, -B0]
    [A; A0] (PiSSA, arXiv 2404.02948, appendix C).
    """
    weights = load_file(folder / ADAPTER_WEIGHTS)
    for key, first in start.items():
        first = first.to(weights[key].dtype)
        if "lora_A" in key:
            weights[key] = torch.cat([weights[key], first], dim=0)
        elif "lora_B" in key:
            weights[key] = torch.cat([weights[key], -first], dim=1)
    save_file({key: value.contiguous() for key, value in weights.items()}, folder / ADAPTER_WEIGHTS)
    config = read_json(folder / ADAPTER_CONFIG)
    factor = 2**0.5 if config["use_rslora"] else 2  # rsLoRA divides alpha by the root of the rank
    config |= {"init_lora_weights": True, "r": 2 * config["r"], "lora_alpha": factor * config["lora_alpha"]}
    config["rank_pattern"] = {key: 2 * rank for key, rank in (config["rank_pattern"] or {}).items()}
    config["alpha_pattern"] = {key: factor * alpha for key, alpha in (config["alpha_pattern"] or {}).items()}
    write_json(folder / ADAPTER_CONFIG, config)


def without_start(
    weights: Mapping[str, torch.Tensor], start: Mapping[str, torch.Tensor], folder: Path
) -> dict[str, torch.Tensor]:
    """What `save_as_plain_lora` put together, apart again; its start must be the one this model has."""
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
