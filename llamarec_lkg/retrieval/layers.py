"""Which part of a language model its layers are, so that the first of them can do without the others."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel

from ..utils.errors import LKGError


def layers_of(model: PreTrainedModel) -> nn.ModuleList:
    """The layers of a language model: what its decoder has `num_hidden_layers` of.

    Raises:
        LKGError: there is not exactly one such list.
    """
    count = model.config.get_text_config().num_hidden_layers
    parts = model.get_decoder().named_children()
    lists = {name: part for name, part in parts if isinstance(part, nn.ModuleList) and len(part) == count}
    if len(lists) != 1:
        raise LKGError(
            f"Which parts of {type(model).__name__} are its {count} layers is not known: the lists of so many are "
            f"{sorted(lists)}, and exactly one is needed. Use all layers, or name another backbone."
        )
    return next(iter(lists.values()))
