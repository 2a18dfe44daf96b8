"""The weight files of a ranker: which there are, and reading them with every weight accounted for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from ..hub.layout import ADAPTER_FILES, ADAPTER_FOLDER
from ..utils.errors import LKGError
from ..utils.files import read_json
from ..utils.hub import fetch


BACKBONE_PREFIX = "language_model."
"""What the names of the backbone's weights begin with; all others are the ranker's own."""


ADAPTER = [f"{ADAPTER_FOLDER}/{inner}{name}" for inner in ("", "*/") for name in ADAPTER_FILES]
"""The files of an earlier adapter. A folder of this name may hold somebody's own files as well: those stay."""


def _weight_patterns(variant: str | None) -> list[str]:
    """The weight files that a save may leave: one, or shards with their index."""
    if variant is None:
        return [SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME, "model-*-of-*.safetensors"]
    return [
        f"model.{variant}.safetensors",
        f"model.safetensors.index.{variant}.json",
        f"model.{variant}-*-of-*.safetensors",
    ]


def weight_files(name: str | Path, *, own: bool = False, **hub: Any) -> list[str]:
    """The weight files of a folder or repository as a loader takes them: the one, or the shards of its index.

    Args:
        own: only those that hold preference or fusion weights.
        hub: any of `HUB_KEYS` of hub.py.

    Raises:
        OSError: there is none.
    """
    path = fetch(name, SAFE_WEIGHTS_NAME, optional=True, **hub)
    index = fetch(name, SAFE_WEIGHTS_INDEX_NAME, optional=True, **hub) if path is None else None
    if index is None:
        return [path or fetch(name, SAFE_WEIGHTS_NAME, **hub)]  # which says that it is not there
    places: dict[str, str] = read_json(index)["weight_map"]
    shards = sorted({shard for weight, shard in places.items() if is_own(weight) or not own})
    return [fetch(name, shard, **hub) for shard in shards]


def is_own(name: str) -> bool:
    """Whether a weight of this name is of the preferences or the fusion, and not of the backbone."""
    return not name.startswith(BACKBONE_PREFIX)


def load_heads(heads: nn.Module, *paths: str | Path, beside_backbone: bool = False) -> None:
    """Load preference and fusion weights; every one of them must be there, and nothing else.

    Args:
        heads: the ranker, or a module with its `preference` and `fusion`.
        paths: safetensors files that hold them.
        beside_backbone: whether the files hold a backbone's weights as well, which are then passed over.

    Raises:
        LKGError: a weight is missing, left over, or of another shape, or a file is damaged.
    """
    found: dict[str, torch.Tensor] = {}
    for path in paths:
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 (no mapping)
                    if is_own(name) or not beside_backbone:
                        found[name] = file.get_tensor(name)
        except SafetensorError as error:
            raise LKGError(f"{path} is not readable ({error}). Copy or download it again.") from error
    if foreign := sorted(name for name in found if not is_own(name)):
        raise LKGError(
            f"{paths[0]} holds {len(foreign)} weights of a backbone, such as {foreign[0]!r}, but its config.json says "
            "that the backbone lies elsewhere: the files belong to two models. Copy, download or save one of them "
            "whole."
        )
    needed = {name: value for name, value in heads.state_dict().items() if is_own(name)}
    _require_same_shapes(found, needed, ", ".join(map(str, paths)))
    heads.load_state_dict(found, strict=False)


def _require_same_shapes(
    found: Mapping[str, torch.Tensor], needed: Mapping[str, torch.Tensor], path: str | Path
) -> None:
    """Raise `LKGError` unless two sets of weights have the same names and shapes."""
    wrong = {
        name: (
            tuple(found[name].shape) if name in found else None,
            tuple(needed[name].shape) if name in needed else None,
        )
        for name in sorted(found.keys() | needed.keys())
        if name not in found or name not in needed or found[name].shape != needed[name].shape
    }
    if wrong:
        raise LKGError(
            f"{path} does not fit this model; (found, needed) shapes: {wrong}. The weights belong to another "
            "configuration (relations, users, or switches), then load them with the config.json saved beside them; or "
            "to an earlier version of the library, then train the model again."
        )
