"""The precision is that which the device computes fast."""

import pytest
import torch

from llamarec_lkg.utils import precision
from llamarec_lkg.utils.precision import describe_dtype, resolve_dtype


@pytest.fixture(autouse=True)
def real(monkeypatch, chosen_dtype):
    """The suite computes in float32 on every machine; here the choice itself is tested."""
    monkeypatch.setattr(precision, "fast_dtype", chosen_dtype)


@pytest.fixture
def machine(monkeypatch):
    """`machine(cpu={...}, cuda=None | True | False)`: the CPU's flags, and whether its GPU knows bfloat16."""

    def make(cpu=(), cuda=None):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict.fromkeys(cpu, True) | {"avx2": True})
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda is not None)
        monkeypatch.setattr(
            torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or cuda
        )
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "A GPU")
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)

    return make


@pytest.mark.parametrize(
    ("cpu", "cuda", "dtype", "line"),
    [
        ((), None, torch.float32, "float32 on this CPU (it has no bfloat16 instructions)"),
        (("avx512_bf16",), None, torch.bfloat16, "bfloat16 on this CPU (AVX512-BF16)"),
        (("avx512_bf16", "amx_bf16"), None, torch.bfloat16, "bfloat16 on this CPU (AMX)"),
        (("bf16",), None, torch.bfloat16, "bfloat16 on this CPU (Arm BF16)"),
        ((), True, torch.bfloat16, "bfloat16 on this GPU (A GPU)"),
        (("avx512_bf16",), False, torch.float16, "float16 on this GPU (A GPU)"),
    ],
)
def test_the_dtype_is_what_the_device_computes_fast(machine, cpu, cuda, dtype, line):
    machine(cpu, cuda)
    assert resolve_dtype("auto") == resolve_dtype() == dtype
    assert describe_dtype() == line


def test_a_device_is_named(machine):
    machine((), cuda=True)
    assert resolve_dtype("auto", "cpu") == torch.float32
    assert resolve_dtype("auto", torch.device("cuda", 0)) == torch.bfloat16
    assert resolve_dtype("auto", "mps") == torch.float32 and describe_dtype("mps") == "float32 on mps"


def test_what_is_given_is_taken(machine):
    machine(("avx512_bf16",))
    assert resolve_dtype("float32") == resolve_dtype(torch.float32) == torch.float32
    assert resolve_dtype("float16", "cpu") == torch.float16
    for wrong in ("int8", "bf16", "nonsense"):
        with pytest.raises(ValueError, match=f"dtype is '{wrong}'; it is 'auto'"):
            resolve_dtype(wrong)
