"""The loss over a catalogue in blocks is the loss at once, and so are its gradients."""

import pytest
import torch
import torch.nn.functional as F

from llamarec_lkg.retrieval import cross_entropy as module
from llamarec_lkg.retrieval.cross_entropy import catalogue_cross_entropy, sampled_cross_entropy


def inputs(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    hidden, vectors = (torch.randn(size, generator=generator, dtype=dtype) for size in ((7, 4), (11, 4)))
    bias = torch.randn(11, generator=generator, dtype=dtype)
    bias[[0, 6]] = -torch.inf  # left out
    labels = torch.tensor([1, 5, 5, 10, 2, 3, 9])
    return [tensor.requires_grad_() for tensor in (hidden, vectors, bias)], labels


def results(function, dtype=torch.float64):
    tensors, labels = inputs()
    tensors = [tensor.detach().to(dtype).requires_grad_() for tensor in tensors]
    loss = function(*tensors, labels)
    (3 * loss).backward()
    return loss.detach(), *(tensor.grad for tensor in tensors)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])  # in the second the bias is a column of the vectors
@pytest.mark.parametrize("rows", [1, 2, 3, 7, 100])
def test_blocks_give_what_everything_at_once_gives(monkeypatch, rows, dtype):
    monkeypatch.setattr(module, "SCORES_AT_ONCE", {"cpu": 11 * rows})
    mine = results(catalogue_cross_entropy, dtype)
    expected = results(lambda hidden, vectors, bias, labels: F.cross_entropy(hidden @ vectors.T + bias, labels))
    for found, wanted in zip(mine, expected, strict=True):
        torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-6)
    assert not mine[2][6].any() and mine[2][5].any(), "what is left out learns nothing"


def test_no_block_is_larger_than_allowed(monkeypatch):
    monkeypatch.setattr(module, "SCORES_AT_ONCE", {"cpu": 25})
    sizes = []
    addmm = torch.addmm
    monkeypatch.setattr(torch, "addmm", lambda *args, out: sizes.append(out.numel()) or addmm(*args, out=out))
    tensors, labels = inputs()
    catalogue_cross_entropy(*tensors, labels)
    assert sizes == [22, 22, 22, 11]
    monkeypatch.setattr(module, "ROWS_AT_ONCE", {"cpu": 1})
    catalogue_cross_entropy(*tensors, labels)
    assert sizes[4:] == [11] * 7


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


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("rows", [2, 100])
def test_the_sampled_loss_is_that_of_the_target_and_the_other_items_drawn(monkeypatch, rows, dtype):
    monkeypatch.setattr(module, "SCORES_AT_ONCE", {"cpu": 11 * rows})
    own = torch.randn(7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    hits = torch.tensor([-1, 5, -1, 10, 2, -1, 1])

    def plain(hidden, vectors, bias, own, hits):
        scores = hidden @ vectors.T + bias
        scores = scores.masked_fill(torch.arange(11) == hits[:, None], -torch.inf)
        return F.cross_entropy(torch.cat([own[:, None], scores], 1), torch.zeros(7, dtype=torch.long))

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
