"""The weight files of a ranker: which there are, and reading them with every weight accounted for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from ..hub.layout import ADAPTER_FILES, ADAPTER_FOLDER, USER_EMBEDDING, USER_EMBEDDING_FILE
from ..utils.errors import LKGError
from ..utils.files import read_json
from ..utils.hub import fetch
from .configuration_llamarec_lkg import LlamaRecLKGConfig


BACKBONE_PREFIX = "language_model."
"""What the names of the backbone's weights begin with; all others are the ranker's own."""


def is_own(name: str) -> bool:
    """Whether a weight of this name is of the preferences or the fusion, and not of the backbone."""
    return not name.startswith(BACKBONE_PREFIX)


def replaced_files(variant: str | None) -> list[str]:
    """Patterns of the files that an earlier save may have left, and that a new one replaces: weights in one file or in
    shards, adapters, weights of users. (A folder `adapter/` may hold somebody's own files as well: those stay.)"""
    adapters = [f"{ADAPTER_FOLDER}/{inner}{name}" for inner in ("", "*/") for name in ADAPTER_FILES]
    if variant is None:
        return [*adapters, USER_EMBEDDING_FILE, SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME, "model-*-of-*.safetensors"]
    weights = f"model.{variant}.safetensors", f"model.{variant}-*-of-*.safetensors"
    return [*adapters, USER_EMBEDDING_FILE, *weights, f"model.safetensors.index.{variant}.json"]


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


def load_heads(heads: nn.Module, *paths: str | Path, beside_backbone: bool = False) -> None:
    """Load preference and fusion weights; every one of them must be there, and nothing else.

    Args:
        heads: the ranker, or a module with its `preference` and `fusion`.
        paths: safetensors files that hold them.
        beside_backbone: whether the files hold a backbone's weights as well, which are then passed over.

    Raises:
        LKGError: a weight is missing, left over, or of another shape, or a file is damaged.
    """
    found = {name: value for path in paths for name, value in _read(path, own=beside_backbone)}
    if foreign := sorted(name for name in found if not is_own(name)):
        raise LKGError(
            f"{paths[0]} holds {len(foreign)} weights of a backbone, such as {foreign[0]!r}, but its config.json says "
            "that the backbone lies elsewhere: the files belong to two models. Copy, download or save one of them "
            "whole."
        )
    needed = {name: value for name, value in heads.state_dict().items() if is_own(name) and name != USER_EMBEDDING}
    shapes = [{name: tuple(value.shape) for name, value in weights.items()} for weights in (found, needed)]
    names = sorted(shapes[0].keys() | shapes[1].keys())
    wrong = {
        name: tuple(one.get(name) for one in shapes) for name in names if shapes[0].get(name) != shapes[1].get(name)
    }
    if wrong:
        raise LKGError(
            f"{', '.join(map(str, paths))} does not fit this model; (found, needed) shapes: {wrong}. The weights "
            "belong to another configuration (relations, switches): load them with the config.json saved beside them."
        )
    heads.load_state_dict(found, strict=False)


def load_users(preference: nn.Module, config: LlamaRecLKGConfig, name: str | Path, **hub: Any) -> None:
    """Take the weights of single users along where a folder or repository has them; else everybody is the average
    user. The configuration then says how many users there are, and who (their fingerprint)."""
    found = user_embedding(config, name, **hub) if config.use_user_embedding else None
    if found is not None:
        weight, config.users = found
        config.num_users = len(weight) - 1
        preference.take_users(weight)


def user_embedding(config: LlamaRecLKGConfig, name: str | Path, **hub: Any) -> tuple[torch.Tensor, str | None] | None:
    """The weights of single users and the users' fingerprint; None where a folder or repository has none.

    Raises:
        LKGError: the file is damaged, or is that of another model.
    """
    path = fetch(name, USER_EMBEDDING_FILE, optional=True, **hub)
    if path is None:
        return None
    weights, size = dict(_read(path)), config.user_embedding_size or config.num_relations
    shapes = {key: tuple(value.shape) for key, value in weights.items()}
    if shapes.keys() != {USER_EMBEDDING} or shapes[USER_EMBEDDING][1:] != (size,):
        raise LKGError(
            f"{path} holds {shapes}; this model needs {USER_EMBEDDING!r} alone, with {size} numbers for each user. "
            "The files are of two models: save the model again."
        )
    with safe_open(path, framework="pt") as file:
        return weights[USER_EMBEDDING], (file.metadata() or {}).get("users")


def _read(path: str | Path, own: bool = False) -> Iterator[tuple[str, torch.Tensor]]:
    """The weights of a safetensors file; with `own`, those of preferences and fusion alone."""
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (no mapping)
                if is_own(name) or not own:
                    yield name, file.get_tensor(name)
    except SafetensorError as error:
        raise LKGError(f"{path} is not readable ({error}). Copy or download it again.") from error
