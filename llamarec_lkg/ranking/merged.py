"""A ranker's language model as a plain one, for servers that know nothing of rankers."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from transformers import GenerationConfig

from ..utils.errors import LKGError
from ..utils.files import atomic_folder
from ..utils.hub import pinned
from ..utils.precision import resolve_dtype
from .configuration_llamarec_lkg import LlamaRecLKGConfig
from .modeling_llamarec_lkg import LlamaRecLKGForRanking
from .processing_llamarec_lkg import LlamaRecLKGProcessor


logger = logging.getLogger(__name__)


def export_merged(
    model: str | Path, output: str | Path, *, dtype: str | None = None, revision: str | None = None
) -> Path:
    """Write the backbone, its adapter merged into it, as a folder of `transformers`: configuration, weights as
    safetensors, tokenizer, generation configuration. `AutoModelForCausalLM`, vLLM, SGLang and TGI load it.

    What else a ranker has (preferences, graph, fusion, a readout of its own) stays behind. Where no server can rank
    with what is written, a warning says so first.

    Args:
        model: folder or Hub id of a trained ranker.
        output: a new or empty folder; it is whole or absent.
        dtype: of the weights, such as "bfloat16"; by default what the ranker was saved in. They are merged in float32.
        revision: branch, tag or commit of a ranker on the Hub.

    Raises:
        LKGError: something is in the folder, or the ranker has no language model.
    """
    name, folder = str(model), Path(output)
    if folder.exists() and any(folder.iterdir()):
        raise LKGError(f"{folder} is not empty. Give a new folder, or empty it.")
    hub = pinned(name, {} if revision is None else {"revision": revision})
    config = LlamaRecLKGConfig.from_pretrained(name, **hub)
    if not config.use_language_model:
        raise LKGError(f"{name} was trained without a language model (use_language_model), so there is none to write.")
    processor = LlamaRecLKGProcessor.from_pretrained(name, **hub)
    try:
        require_plain_model(config, processor)
    except LKGError as error:
        logger.warning(f"What is written will be of no use to --remote and `RemoteScorer`: {error}")
    wanted = resolve_dtype(dtype or config.text_config.dtype or torch.float32)
    ranker = LlamaRecLKGForRanking.from_pretrained(name, dtype=torch.float32, **hub).merge_adapter()
    backbone = ranker.language_model.to(wanted)
    # a server takes defaults from here, and some change log-probabilities with them: temperatures, penalties
    ends = {key: getattr(backbone.generation_config, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    backbone.generation_config = GenerationConfig(**ends)
    with atomic_folder(folder) as new:
        backbone.save_pretrained(new)
        processor.tokenizer.save_pretrained(new)
    return folder


def require_plain_model(config: LlamaRecLKGConfig, processor: LlamaRecLKGProcessor) -> None:
    """Raise `LKGError` where a ranker takes more from its language model than a server gives."""
    if config.readout != "letters":
        raise LKGError(
            f"This ranker reads its language model in states (readout={config.readout!r}), which no server of "
            "completions gives. Train with prompt.readout=letters, or rank without a server."
        )
    if config.use_path_gate and config.path_gate == "attention_bias" and processor.writes_paths:
        raise LKGError(
            "This ranker biases attention to paths by how preferred they are (path_gate='attention_bias'), which "
            "no server does. Train with model.path_gate=straight_through, whose gate is open when ranking, or "
            "with model.use_path_gate=false; or rank without a server."
        )
