"""Sizes of LRURec, the first stage (see `modeling_lrurec`)."""

from __future__ import annotations

from transformers import AutoConfig, PreTrainedConfig


class LRURecConfig(PreTrainedConfig):
    """Sizes of LRURec. The defaults are the reference settings for MovieLens.

    Args:
        num_items: dense items, without padding.
        hidden_size: width of item embeddings. The complex state is twice as wide.
        max_length: how much history is read; older items are cut off.
        radius_min, radius_max: ring of the complex plane in which the eigenvalues start. Nearer 1 is longer memory.
        catalogue: [`~utils.fingerprints.catalogue_fingerprint`] of the items it was trained to find; None is not
            compared with anything.
    """

    model_type = "lrurec"

    num_items: int = 1
    hidden_size: int = 64
    num_hidden_layers: int = 2
    hidden_dropout_prob: float = 0.2
    max_length: int = 200
    radius_min: float = 0.8
    radius_max: float = 0.99
    initializer_range: float = 0.02
    catalogue: str | None = None


AutoConfig.register(LRURecConfig.model_type, LRURecConfig, exist_ok=True)
