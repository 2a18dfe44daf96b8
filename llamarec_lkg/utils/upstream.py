"""What other libraries print that our users need not read. Their warnings and errors stay."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


def hide_missing_kernel() -> None:
    """Leave out the line by which bitsandbytes, which `peft` imports, says at import that an optional kernel for CPUs
    is not installed. Nothing here uses it; called before `peft` is imported."""
    logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
    logger.addFilter(lambda record: "gemm_4bit_forward" not in str(record.msg))


@contextmanager
def quiet_upstream() -> Iterator[None]:
    """Inside, `transformers` shows no bar for reading weights that are here already (downloads keep theirs), and a
    warning that PEFT's use of `transformers` raises stays away."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
    from transformers.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled

    shown, hub_shown = is_progress_bar_enabled(), not are_progress_bars_disabled()
    disable_progress_bar()  # those of the Hub's client, too
    if hub_shown:
        enable_progress_bars()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
            yield
    finally:
        if shown:
            enable_progress_bar()
        if not hub_shown:
            disable_progress_bars()
