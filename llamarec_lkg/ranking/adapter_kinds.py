"""Which adapters can be used: PEFT knows kinds, starts and names that would lose weights here without a word."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..utils.errors import LKGError
from .adapter_files import BASE_CHANGING, changes_base


# those whose change to the backbone cannot be told from two small matrices, or that need data before they start
REFUSED_INITIALISATIONS = ("loftq", "corda", "lora_ga", "eva")


def check_adapter(adapter_config: Any, adapter_name: str, language_model: nn.Module) -> None:
    """Raise `LKGError` for what PEFT would do otherwise than one expects.

    Args:
        adapter_config (`peft.PeftConfig`): of an adapter that is to come.
        adapter_name: what it is to be called.
        language_model: where it is to go, with the adapters that it has.
    """
    loaded = getattr(language_model, "peft_config", {})
    if not adapter_name or "." in adapter_name or adapter_name in loaded:
        raise LKGError(
            f"An adapter cannot be called {adapter_name!r}: names have no dot and are given once; loaded are "
            f"{list(loaded)}."
        )
    parts = {part for name, _ in language_model.named_parameters() for part in name.split(".")}
    if adapter_name in parts:  # PEFT tells adapters apart by such parts, and would save others without weights
        raise LKGError(
            f"An adapter cannot be called {adapter_name!r}, as a part of the backbone is: the weights of other "
            f"adapters could not be told from its own. Choose another name, {adapter_name + '-adapter'!r} say."
        )
    if adapter_config.peft_type is None:
        raise LKGError("The adapter's configuration does not say which PEFT kind it is (peft_type).")
    if adapter_config.is_prompt_learning:
        raise LKGError(
            f"{adapter_config.peft_type.value} writes tokens of its own into the prompt, which the ranker "
            "assembles itself. Use an adapter of weights: LoRA and its variants, IA3, VeRA, ..."
        )
    start = str(getattr(adapter_config, "init_lora_weights", True)).lower()
    changes = changes_base(adapter_config)
    if start.startswith(REFUSED_INITIALISATIONS) or (changes and getattr(adapter_config, "use_dora", False)):
        raise LKGError(
            f"init_lora_weights={start!r} with use_dora={getattr(adapter_config, 'use_dora', False)} leaves a "
            "backbone that an adapter repository cannot describe. Use true, 'gaussian', 'orthogonal', or without "
            "DoRA 'pissa' or 'olora'."
        )
    if loaded:
        kinds = {config.peft_type for config in loaded.values()}
        if {adapter_config.peft_type} != kinds:
            raise LKGError(
                f"{adapter_config.peft_type.value} cannot be loaded beside {[kind.value for kind in kinds]}: the "
                "adapters of one backbone are of one PEFT kind. Load it in a model of its own."
            )
        if changes or any(map(changes_base, loaded.values())):
            raise LKGError(
                f"An adapter that is trained from init_lora_weights={sorted(BASE_CHANGING)} changes the backbone, "
                "so no other can share it meanwhile. Train it alone; once saved and loaded it is plain LoRA."
            )
