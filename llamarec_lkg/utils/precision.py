"""Which floating point type a device computes fast.

Half the width is half the memory, but not everywhere faster: on a CPU without bfloat16 instructions a forward pass in
bfloat16 takes five times as long as one in float32.
"""

from __future__ import annotations

import torch

from .errors import LKGError


# what `torch.cpu.get_capabilities` calls instructions for bfloat16, and what to call them in a line of text
CPU_BFLOAT16 = {"amx_bf16": "AMX", "avx512_bf16": "AVX512-BF16", "bf16": "Arm BF16"}


def fast_dtype(device: str | int | torch.device | None = None) -> torch.dtype:
    """The type that a device computes fast: bfloat16 or float16 on a GPU, float32 on a CPU without bfloat16.

    Args:
        device: by default a CUDA GPU where there is one, else Apple's, else the CPU.
    """
    kind = _kind(device)
    if kind == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return torch.bfloat16 if kind == "cpu" and _cpu_bfloat16() else torch.float32


def resolve_dtype(
    dtype: str | torch.dtype | None = None, device: str | int | torch.device | None = None
) -> torch.dtype:
    """A type by its name ("bfloat16") or as it is; "auto" and None are [`fast_dtype`] of the device."""
    if dtype in (None, "auto"):
        return fast_dtype(device)
    found = dtype if isinstance(dtype, torch.dtype) else getattr(torch, str(dtype), None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise LKGError(f"dtype is {dtype!r}; it is 'auto', 'float32', 'bfloat16' or 'float16'.")
    return found


def loading_dtype(
    saved: str | torch.dtype | None, device: str | int | torch.device | None = None
) -> str | torch.dtype:
    """What to load a checkpoint in: its own type, but float32 for half precision that the device computes slowly.

    Args:
        saved: by the checkpoint's configuration; where that is None, "auto" has transformers look at the weights.
    """
    saved = resolve_dtype(saved) if saved else "auto"
    fast = {torch.float32, fast_dtype(device)} | ({torch.float16} if _kind(device) == "cuda" else set())
    return torch.float32 if saved in (torch.bfloat16, torch.float16) and saved not in fast else saved


def describe_dtype(device: str | int | torch.device | None = None) -> str:
    """What [`fast_dtype`] chooses and why, in one line: "bfloat16 on this CPU (AVX512-BF16)"."""
    name, kind = str(fast_dtype(device)).removeprefix("torch."), _kind(device)
    if kind == "cuda":
        return f"{name} on this GPU ({torch.cuda.get_device_name(device if isinstance(device, int) else None)})"
    if kind == "cpu":
        return f"{name} on this CPU ({_cpu_bfloat16() or 'it has no bfloat16 instructions'})"
    return f"{name} on {kind}"


def _kind(device: str | int | torch.device | None) -> str:
    if device is not None:
        return torch.device(device).type
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _cpu_bfloat16() -> str | None:
    """The CPU's instructions for bfloat16, None where it has none."""
    capabilities = torch.cpu.get_capabilities()
    return next((name for key, name in CPU_BFLOAT16.items() if capabilities.get(key)), None)
