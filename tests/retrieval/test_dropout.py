"""The quick noise is that of dropout: its shares, its scale, its gradients."""

import pytest
import torch

from llamarec_lkg.retrieval.dropout import add_dropped, dropout, noise


@pytest.mark.parametrize("probability", [0.05, 0.2, 0.5, 0.999])
def test_the_noise_has_two_values_in_their_shares_and_a_mean_of_one(probability):
    torch.manual_seed(0)
    found = noise(torch.empty(301, 997), probability)
    values, counts = found.unique(return_counts=True)
    assert values.tolist() == pytest.approx([0, 1 / (1 - probability)], rel=1e-2)
    assert float(counts[0]) / found.numel() == pytest.approx(probability, abs=5e-3)
    # neighbours, which come from the same draw, know nothing of each other
    pairs = (found[:, 1:] == 0) & (found[:, :-1] == 0)
    assert pairs.float().mean().item() == pytest.approx(probability**2, abs=5e-3)


def test_noise_is_repeatable_by_seed():
    torch.manual_seed(1)
    first = noise(torch.empty(7, 3), 0.5)
    assert not torch.equal(first, noise(torch.empty(7, 3), 0.5))
    torch.manual_seed(1)
    assert torch.equal(first, noise(torch.empty(7, 3), 0.5))


def test_values_and_gradients_are_those_of_a_product_with_the_noise():
    hidden, update = (torch.randn(5, 4, dtype=torch.float64).requires_grad_() for _ in range(2))
    torch.manual_seed(0)
    factors = noise(update, 0.4)
    torch.manual_seed(0)
    found = add_dropped(hidden, update, 0.4, True)
    torch.testing.assert_close(found, hidden + update * factors)
    found.sum().backward()
    assert torch.equal(update.grad, factors) and torch.equal(hidden.grad, torch.ones(5, 4).double())
    torch.manual_seed(0)
    torch.testing.assert_close(dropout(update, 0.4, True), update * factors)


def test_everything_and_nothing_is_dropped():
    values = torch.randn(6, 3)
    assert not dropout(values, 1.0, True).any()
    assert torch.equal(dropout(values, 0.0, True), values) and torch.equal(dropout(values, 0.5, False), values)
    assert torch.equal(add_dropped(values, values, 0.5, False), 2 * values)


def test_a_probability_of_next_to_nothing_drops_nothing():
    assert noise(torch.empty(5), 1e-6).tolist() == [1] * 5
    assert noise(torch.empty(5), 1 - 1e-6).tolist() == [0] * 5
