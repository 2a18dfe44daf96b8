"""The weight files of a ranker: which there are, and reading them with every weight accounted for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from ..hub.layout import USER_EMBEDDING, USER_EMBEDDING_FILE
from ..utils.errors import LKGError
from ..utils.files import read_json
from ..utils.hub import fetch
from .configuration_llamarec_lkg import LlamaRecLKGConfig


def is_own(name: str) -> bool:
    """Whether a weight of this name is of a head (preferences, fusion, readout), and not of the backbone."""
    return not name.startswith("language_model.")


def weight_files(name: str | Path, *, own: bool = False, **hub: Any) -> list[str]:
    """The weight files of a folder or repository: the one, or the shards of its index; with `own`, only those that
    hold weights of heads."""
    path = fetch(name, SAFE_WEIGHTS_NAME, optional=True, **hub)
    index = fetch(name, SAFE_WEIGHTS_INDEX_NAME, optional=True, **hub) if path is None else None
    if index is None:
        return [path or fetch(name, SAFE_WEIGHTS_NAME, **hub)]  # which says that it is not there
    places: dict[str, str] = read_json(index)["weight_map"]
    shards = sorted({shard for weight, shard in places.items() if is_own(weight) or not own})
    return [fetch(name, shard, **hub) for shard in shards]


def load_heads(heads: nn.Module, *paths: str | Path, beside_backbone: bool = False) -> None:
    """Load the weights of heads; every one of them must be there, and nothing else but, with `beside_backbone`, those
    of a backbone and of what reads it."""
    found = {name: value for path in paths for name, value in read_weights(path, own=beside_backbone)}
    if beside_backbone:
        found = {name: value for name, value in found.items() if not name.startswith("readout.")}
    needed = {name: value for name, value in heads.state_dict().items() if is_own(name) and name != USER_EMBEDDING}
    shapes = {
        name: tuple(tuple(weights[name].shape) if name in weights else None for weights in (found, needed))
        for name in sorted(found.keys() | needed.keys())
    }
    if wrong := {name: pair for name, pair in shapes.items() if pair[0] != pair[1]}:
        raise LKGError(
            f"{', '.join(map(str, paths))} does not fit this model; {len(wrong)} weights differ, (found, needed) "
            f"shapes: {dict(list(wrong.items())[:5])}. Load the weights with the config.json saved beside them."
        )
    heads.load_state_dict(found, strict=False)


def load_users(preference: nn.Module, config: LlamaRecLKGConfig, name: str | Path, **hub: Any) -> None:
    """Take the weights of single users along where a folder or repository has them; else everybody is the average
    user. The configuration then says how many users there are, and who (their fingerprint)."""
    path = fetch(name, USER_EMBEDDING_FILE, optional=True, **hub) if config.use_user_embedding else None
    if path is None:
        return
    weights, size = dict(read_weights(path)), config.user_embedding_size or config.num_relations
    shapes = {key: tuple(value.shape) for key, value in weights.items()}
    if shapes.keys() != {USER_EMBEDDING} or shapes[USER_EMBEDDING][1:] != (size,):
        raise LKGError(
            f"{path} holds {shapes}; this model needs {USER_EMBEDDING!r} alone, with {size} numbers for each user. "
            "The files are of two models: save the model again."
        )
    with safe_open(path, framework="pt") as file:
        config.users = (file.metadata() or {}).get("users")
    config.num_users = len(weights[USER_EMBEDDING]) - 1
    preference.take_users(weights[USER_EMBEDDING])


def read_weights(path: str | Path, own: bool = False) -> Iterator[tuple[str, torch.Tensor]]:
    """The weights of a safetensors file by name; with `own`, those of heads alone."""
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (no mapping)
                if is_own(name) or not own:
                    yield name, file.get_tensor(name)
    except (FileNotFoundError, SafetensorError) as error:
        raise LKGError(f"{path} is not readable ({error}). Copy or download it again.") from error
