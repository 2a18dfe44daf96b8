"""Sizes of LRURec, a first stage (see `modeling_lrurec`)."""

from __future__ import annotations

from transformers import AutoConfig

from .configuration_sequential import SequentialRetrieverConfig


class LRURecConfig(SequentialRetrieverConfig):
    """Sizes of LRURec. The defaults are the reference settings for MovieLens; what is not listed here is in
    [`SequentialRetrieverConfig`].

    Args:
        hidden_size: width of item vectors. The complex state is twice as wide.
        radius_min, radius_max: ring of the complex plane in which the eigenvalues start. Nearer 1 is longer memory.
    """

    model_type = "lrurec"

    radius_min: float = 0.8
    radius_max: float = 0.99


AutoConfig.register(LRURecConfig.model_type, LRURecConfig, exist_ok=True)
