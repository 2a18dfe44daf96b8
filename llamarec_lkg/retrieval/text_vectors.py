"""What a language model sees in a text, as a short vector: read once for each item, and cached.

The mean state after the first layers says what a text is about better than the last ones, which are busy with the next
token. States of one model all point the same way and vary most in directions that say little; so their mean is taken
off and what varies most is brought to unit variance in every direction (whitening: Su et al., arXiv 2103.15316).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from torch import nn
from tqdm.auto import tqdm

from ..utils.errors import LKGError
from ..utils.files import atomic_files, cache_dir, read_json, write_json
from ..utils.fingerprints import fingerprint
from ..utils.hub import is_local
from ..utils.precision import fast_dtype
from ..utils.upstream import quiet_upstream
from .layers import layers_of


FORMAT_VERSION = 1
TOKENS_AT_ONCE = 4096
MAX_TOKENS = 128  # of a text; what comes later is not read


@dataclass(frozen=True)
class TextProjection:
    """From mean states to text vectors: (states - mean) @ directions.

    Args:
        mean (`np.ndarray` of `float32`, shape (H,)), directions (shape (H, T)): fitted on the texts of a catalogue.
        layers (`int`): how many of the backbone's first layers read.
        backbone (`str`, optional): name of the language model, where it has one outside this machine.
    """

    mean: np.ndarray
    directions: np.ndarray
    layers: int
    backbone: str | None = None

    @classmethod
    def fit(cls, states: np.ndarray, size: int, layers: int, backbone: str | None = None) -> TextProjection:
        """The `size` directions in which `states` (N, H) vary most, scaled so that each varies by 1. Directions in
        which nothing varies become 0, so that there are always `size`."""
        mean = states.mean(axis=0, dtype=np.float64)
        centred = states - mean
        values, vectors = np.linalg.eigh(centred.T @ centred / len(states))  # ascending
        values, vectors = values[::-1][:size], vectors[:, ::-1][:, :size]
        # a direction that holds a millionth of the first one's variance is rounding
        scale = np.where(values > 1e-6 * max(values[0], 1e-12), 1 / np.sqrt(np.maximum(values, 1e-12)), 0.0)
        directions = np.zeros((states.shape[1], size), dtype=np.float32)
        directions[:, : vectors.shape[1]] = vectors * scale
        return cls(mean.astype(np.float32), directions, layers, backbone)

    def __call__(self, states: np.ndarray) -> np.ndarray:
        """(N, H) -> (N, T) of `float32`."""
        return ((states - self.mean) @ self.directions).astype(np.float32)


def read_texts(
    texts: Sequence[str],
    backbone: str | Path | tuple[Any, Any],
    *,
    layers: int = 8,
    size: int = 128,
    name: str | None = None,
    device: str | None = None,
    progress: bool = True,
) -> tuple[np.ndarray, TextProjection]:
    """Text vectors of a catalogue's items (N, size) of `float32`, and the projection that makes them.

    Args:
        texts: one an item, without padding.
        backbone: a causal language model's folder or Hub id, or a loaded (tokenizer, model). From a folder or id,
            vectors are cached by content: texts, backbone and sizes.
        layers: how many of its first layers read; all where it has fewer.
        size: width of the vectors.
        name: what the projection calls the backbone; by default its Hub id. A place on this machine is no name.
        device: by default a GPU where there is one.

    Raises:
        LKGError: there are no texts, or `layers` or `size` is below 1.
    """
    if not len(texts) or layers < 1 or size < 1:
        raise LKGError(
            f"{len(texts)} texts, {layers} layers and {size} directions were given; there is at least one of each."
        )
    loaded = isinstance(backbone, tuple)
    folder = None
    if not loaded:
        key = fingerprint(FORMAT_VERSION, list(texts), _identity(backbone), name, layers, size, MAX_TOKENS)
        folder = cache_dir() / "text_vectors" / key
        if (folder / "projection.json").exists():  # written last
            about, arrays = read_json(folder / "projection.json"), load_file(folder / "vectors.safetensors")
            return arrays["vectors"], TextProjection(arrays["mean"], arrays["directions"], **about)
    states = text_states(texts, backbone, layers=layers, device=device, progress=progress)
    projection = TextProjection.fit(states, size, layers, _name(backbone, name))
    vectors = projection(states)
    if folder is not None:
        with atomic_files(folder) as temporary:
            arrays = {"vectors": vectors, "mean": projection.mean, "directions": projection.directions}
            save_file(arrays, temporary / "vectors.safetensors")
            write_json(temporary / "projection.json", {"layers": layers, "backbone": projection.backbone})
    return vectors, projection


def with_padding_row(vectors: np.ndarray) -> np.ndarray:
    """(N, T) -> (N + 1, T) with zeros first, for the padding item."""
    return np.concatenate([np.zeros((1, vectors.shape[1]), dtype=np.float32), vectors])


@torch.inference_mode()
def text_states(
    texts: Sequence[str],
    backbone: str | Path | tuple[Any, Any],
    *,
    layers: int = 8,
    device: str | None = None,
    progress: bool = True,
) -> np.ndarray:
    """Mean over a text's tokens of the state after the first `layers` layers, shape (N, H) of `float32`. The first
    128 tokens are read; an empty text gives zeros. Arguments are those of [`read_texts`]."""
    tokenizer, model = backbone if isinstance(backbone, tuple) else _load(str(backbone), device)
    tokens = tokenizer(list(texts), add_special_tokens=False, truncation=True, max_length=MAX_TOKENS)["input_ids"]
    order = sorted(range(len(tokens)), key=lambda row: -len(tokens[row]))  # long first: memory runs out at once
    states = np.zeros((len(tokens), model.config.get_text_config().hidden_size), dtype=np.float32)
    with (
        _first_layers(model, layers) as decoder,
        tqdm(total=len(tokens), desc="read item texts", unit="text", disable=not progress) as bar,
    ):
        start = 0
        while start < len(order):
            longest = max(1, len(tokens[order[start]]))
            rows = order[start : start + max(1, TOKENS_AT_ONCE // longest)]
            states[rows] = _mean_states(decoder, [tokens[row] for row in rows], longest, model.device)
            start += len(rows)
            bar.update(len(rows))
    return states


def _mean_states(decoder: nn.Module, tokens: Sequence[Sequence[int]], length: int, device: torch.device) -> np.ndarray:
    ids, mask = np.zeros((2, len(tokens), length), dtype=np.int64)
    for row, text in enumerate(tokens):  # on the right: causal layers do not see it
        ids[row, : len(text)], mask[row, : len(text)] = text, 1
    ids, mask = torch.from_numpy(ids).to(device), torch.from_numpy(mask).to(device)
    seen = mask.clone()
    seen[:, 0] = 1  # an empty text is no text of which nothing may be seen
    hidden = decoder(input_ids=ids, attention_mask=seen, use_cache=False).last_hidden_state.float()
    means = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
    return means.cpu().numpy()


@contextmanager
def _first_layers(model: Any, count: int) -> Iterator[nn.Module]:
    """Inside, the model's decoder has only its first layers; its last norm stays."""
    layers = layers_of(model)
    others = layers[count:]
    del layers[count:]
    try:
        yield model.get_decoder()
    finally:
        layers.extend(others)


def _load(name: str, device: str | None) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    with quiet_upstream():
        model = AutoModelForCausalLM.from_pretrained(name, dtype=fast_dtype(device)).to(device)
    return AutoTokenizer.from_pretrained(name), model.eval()


def _name(backbone: str | Path | tuple[Any, Any], name: str | None) -> str | None:
    if name is None:
        name = backbone[1].config.name_or_path if isinstance(backbone, tuple) else str(backbone)
    return name if name and not is_local(name) else None


def _identity(backbone: str | Path) -> list[str]:
    """What tells a backbone from another: its name and, for a folder, the sizes and times of its weights."""
    folder = Path(backbone)
    weights = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
    return [str(backbone), *(f"{path.name} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in weights)]
