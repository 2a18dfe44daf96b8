"""Sizes of SASRec, a first stage (see `modeling_sasrec`)."""

from __future__ import annotations

from transformers import AutoConfig

from .configuration_sequential import SequentialRetrieverConfig


class SASRecConfig(SequentialRetrieverConfig):
    """Sizes of SASRec; what is not listed here is in [`SequentialRetrieverConfig`].

    Args:
        num_attention_heads: of each layer; `hidden_size` is a multiple of it, an even one.
    """

    model_type = "sasrec"

    num_attention_heads: int = 2


AutoConfig.register(SASRecConfig.model_type, SASRecConfig, exist_ok=True)
