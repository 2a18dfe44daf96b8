"""The loss over a catalogue in blocks is the loss at once, and so are its gradients."""

import pytest
import torch
import torch.nn.functional as F

from llamarec_lkg.retrieval import cross_entropy as module
from llamarec_lkg.retrieval import products
from llamarec_lkg.retrieval.cross_entropy import catalogue_cross_entropy, sampled_cross_entropy
from llamarec_lkg.retrieval.products import ROUND


COUNT = 2 * ROUND + 5  # positions: whole blocks of a quick product, and one that is none
DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32])


@pytest.fixture(params=["AMD", "Intel"])
def either(request, monkeypatch):
    """Products of a processor's maker: oneDNN's, or MKL's, for which a bias is a column of the vectors."""
    monkeypatch.setattr(products, "_is_intel", lambda: request.param == "Intel")


def inputs(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    sizes = (COUNT, 4), (11, 4), (11,)
    hidden, vectors, bias = (torch.randn(size, generator=generator, dtype=torch.float64) for size in sizes)
    bias[[0, 6]] = -torch.inf  # left out
    labels = torch.tensor([1, 5, 5, 10, 2, 3, 9]).repeat(COUNT)[:COUNT]
    return [tensor.to(dtype).requires_grad_() for tensor in (hidden, vectors, bias)], labels


def results(function, dtype=torch.float64):
    tensors, labels = inputs(dtype)
    loss = function(*tensors, labels)
    (3 * loss).backward()
    return loss.detach(), *(tensor.grad for tensor in tensors)


@DTYPES
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("rows", [1, 3, 7, ROUND, 100])
def test_blocks_give_what_everything_at_once_gives(monkeypatch, either, rows, dtype, autocast):
    monkeypatch.setattr(module, "SCORES_AT_ONCE", {"cpu": 11 * rows})
    with torch.autocast("cpu", enabled=autocast):
        mine = results(catalogue_cross_entropy, dtype)
    expected = results(lambda hidden, vectors, bias, labels: F.cross_entropy(hidden @ vectors.T + bias, labels))
    for found, wanted in zip(mine, expected, strict=True):
        torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-6)
    assert not mine[2][6].any() and mine[2][5].any(), "what is left out learns nothing"


@pytest.mark.parametrize(("dtype", "name"), [(torch.float64, "addmm"), (torch.float32, "mm")])
def test_no_block_is_larger_than_allowed(monkeypatch, dtype, name):
    monkeypatch.setattr(products, "_is_intel", lambda: True)
    monkeypatch.setattr(module, "SCORES_AT_ONCE", {"cpu": 60})
    sizes, places, function = [], set(), getattr(torch, name)

    def noted(*args, out):
        sizes.append(out.numel())
        places.add(out.data_ptr())
        return function(*args, out=out)

    monkeypatch.setattr(torch, name, noted)
    tensors, labels = inputs(dtype)
    catalogue_cross_entropy(*tensors, labels)
    assert sizes == [55] * 7 + [22] and len(places) == 1
    monkeypatch.setattr(module, "ROWS_AT_ONCE", {"cpu": 4})
    catalogue_cross_entropy(*tensors, labels)
    assert sizes[8:] == [44] * 9 + [11]


def test_a_bias_is_not_rounded_where_products_are(monkeypatch):
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "medium")
    monkeypatch.setattr(torch, "mm", None)
    tensors, labels = inputs(torch.float32)
    assert torch.isfinite(catalogue_cross_entropy(*tensors, labels)), "the bias is added to the product"


def test_nothing_is_kept_where_nothing_learns_and_no_position_is_no_loss():
    tensors, labels = inputs()
    with torch.no_grad():
        loss = catalogue_cross_entropy(*tensors, labels)
    assert not loss.requires_grad and torch.isfinite(loss)
    assert catalogue_cross_entropy(tensors[0][:0], *tensors[1:], labels[:0]) == 0


def test_half_precision_gives_a_loss_in_single_and_gradients_in_its_own():
    tensors, labels = inputs()
    halves = [tensor.detach().bfloat16().requires_grad_() for tensor in tensors]
    loss = catalogue_cross_entropy(*halves, labels)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(catalogue_cross_entropy(*tensors, labels).item(), rel=0.05)
    assert all(tensor.grad.dtype == torch.bfloat16 for tensor in halves)


@DTYPES
@pytest.mark.parametrize("rows", [2, ROUND, 100])
def test_the_sampled_loss_is_that_of_the_target_and_the_other_items_drawn(monkeypatch, either, rows, dtype):
    monkeypatch.setattr(module, "SCORES_AT_ONCE", {"cpu": 11 * rows})
    own = torch.randn(COUNT, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    hits = torch.tensor([-1, 5, -1, 10, 2, -1, 1]).repeat(COUNT)[:COUNT]

    def plain(hidden, vectors, bias, own, hits):
        scores = hidden @ vectors.T + bias
        scores = scores.masked_fill(torch.arange(11) == hits[:, None], -torch.inf)
        return F.cross_entropy(torch.cat([own[:, None], scores], 1), torch.zeros(COUNT, dtype=torch.long))

    results = []
    for function, kind in ((sampled_cross_entropy, dtype), (plain, torch.float64)):
        tensors = [tensor.detach().to(kind).requires_grad_() for tensor in (*inputs()[0], own)]
        loss = function(*tensors, hits)
        (3 * loss).backward()
        results.append((loss.detach(), *(tensor.grad for tensor in tensors)))
    for found, wanted in zip(*results, strict=True):
        torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-6)


def test_where_only_the_target_was_drawn_there_is_nothing_to_learn():
    hidden, vectors = torch.randn(2, 4, requires_grad=True), torch.randn(1, 4)
    loss = sampled_cross_entropy(hidden, vectors, torch.zeros(1), torch.zeros(2), torch.tensor([0, 0]))
    loss.backward()
    assert loss.item() == 0 and not hidden.grad.any()
