"""Products by oneDNN are those of torch, and so are their gradients."""

import pytest
import torch
import torch.nn.functional as F

from llamarec_lkg.retrieval import products
from llamarec_lkg.retrieval.products import ROUND, add_product, is_quick, linear, product


def random(*shape, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=dtype)


@pytest.fixture(params=["AMD", "Intel"])
def either(request, monkeypatch):
    monkeypatch.setattr(products, "_is_intel", lambda: request.param == "Intel")


@pytest.mark.parametrize("sizes", [(8, 12), (12, 8)])
@pytest.mark.parametrize("shape", [(2 * ROUND,), (3, ROUND), (7,), (0,)])
def test_a_linear_layer_and_its_gradients(either, shape, sizes):
    size, width = sizes
    found, wanted = (
        [tensor.requires_grad_() for tensor in (random(*shape, size), random(width, size), random(width))]
        for _ in range(2)
    )
    mine, theirs = linear(*found), F.linear(*wanted)
    torch.testing.assert_close(mine, theirs)
    weights = random(*shape, width)
    (mine * weights).sum().backward(), (theirs * weights).sum().backward()
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-5, atol=1e-5)


def test_products_of_any_strides(either):
    left, right, bias = random(5, 2 * ROUND).T, random(5, 7).T, random(7)
    torch.testing.assert_close(product(left, right, bias), left @ right.T + bias)
    total = random(5, 7)
    wanted = total + left.T @ random(2 * ROUND, 7)
    add_product(total, left, random(2 * ROUND, 7))
    torch.testing.assert_close(total, wanted)


def test_what_is_not_of_single_precision_or_comes_once_is_left_to_torch(either):
    plain = random(ROUND, 3)
    assert is_quick(ROUND, plain) == (products._works() and not products._is_intel())
    assert not is_quick(ROUND + 1, plain) and not is_quick(0, plain) and not is_quick(ROUND, plain.double())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not is_quick(ROUND, plain) and linear(plain, random(4, 3), random(4)).dtype == torch.bfloat16
    found = linear(plain.bfloat16(), random(4, 3).bfloat16(), random(4).bfloat16())
    assert found.dtype == torch.bfloat16


@pytest.mark.parametrize("found", ["vendor_id : GenuineIntel", "vendor_id : AuthenticAMD", OSError])
def test_the_maker_of_the_processor_is_read_where_it_stands(monkeypatch, found):
    def read(path):
        if found is OSError:
            raise OSError
        return found

    products._is_intel.cache_clear()
    monkeypatch.setattr(products.Path, "read_text", read)
    monkeypatch.setattr(products.platform, "processor", lambda: "Intel64 Family 6 Model 85 Stepping 4, GenuineIntel")
    assert products._is_intel() == (found != "vendor_id : AuthenticAMD")
    products._is_intel.cache_clear()


def test_an_operator_that_takes_something_else_is_left_alone(monkeypatch):
    def changed(*args):
        raise TypeError("got an unexpected argument")

    products._works.cache_clear()
    monkeypatch.setattr(products, "_LINEAR", changed)
    assert not products._works()
    products._works.cache_clear()
