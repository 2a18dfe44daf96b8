import functools
import math

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModel

from llamarec_lkg.retrieval.base import pad_left
from llamarec_lkg.retrieval.modeling_lrurec import LRURecConfig, LRURecForRetrieval, _LinearRecurrence
from llamarec_lkg.retrieval.packing import Chunks
from llamarec_lkg.utils.errors import LKGError


def loop(inputs: torch.Tensor, eigenvalues: torch.Tensor) -> torch.Tensor:
    """The recurrence as it is written down, one step after the other."""
    state, states = torch.zeros_like(inputs[:, 0]), []
    for step in range(inputs.shape[1]):
        state = eigenvalues * state + inputs[:, step]
        states.append(state)
    return torch.stack(states, dim=1)


def scan(inputs: torch.Tensor, eigenvalues: torch.Tensor, size: int = 3) -> torch.Tensor:
    """The recurrence in chunks, of histories of the same length."""
    batch, length, width = inputs.shape
    chunks = Chunks.of([length] * batch, size)
    slots = torch.from_numpy(chunks.slots)
    laid_out = inputs.new_zeros(size * chunks.num_chunks, width).index_copy(0, slots, inputs.flatten(0, 1))
    return recurrence(laid_out.unflatten(0, (size, -1)), eigenvalues, chunks.groups)[slots].view(inputs.shape)


def recurrence(inputs: torch.Tensor, eigenvalues: torch.Tensor, groups: tuple[int, ...]) -> torch.Tensor:
    """Complex chunks (C, K, H) -> states (C * K, H), where both projections change nothing."""
    pairs = torch.view_as_real(inputs).flatten(-2)
    same, nothing = torch.eye(pairs.shape[-1], dtype=pairs.dtype), pairs.new_zeros(pairs.shape[-1])
    states = _LinearRecurrence.apply(pairs, same, nothing, eigenvalues, same, nothing, groups)
    return torch.view_as_complex(states.unflatten(-1, (-1, 2))).flatten(0, 1)


@pytest.fixture
def model() -> LRURecForRetrieval:
    torch.manual_seed(0)
    return LRURecForRetrieval(LRURecConfig(num_items=9, hidden_size=8, max_length=12)).eval()


def random_recurrence(length, dtype=torch.complex128, seed=0):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(3, length, 5, dtype=dtype, generator=generator)
    radius, angle = torch.rand(5, generator=generator) * 0.3 + 0.7, torch.rand(5, generator=generator) * 6
    return inputs, torch.polar(radius.double(), angle.double()).to(dtype)


@pytest.mark.parametrize("size", [1, 3, 4, 60])
@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 8, 9, 10, 15, 16, 17, 50])
def test_the_scan_equals_a_loop_over_time_in_values_and_gradients(length, size):
    results = []
    for function in (functools.partial(scan, size=size), loop):
        inputs, eigenvalues = (tensor.requires_grad_() for tensor in random_recurrence(length))
        states = function(inputs, eigenvalues)
        weights = torch.randn(states.shape, dtype=states.dtype, generator=torch.Generator().manual_seed(1))
        (states * weights).real.sum().backward()
        results.append((states.detach(), inputs.grad, eigenvalues.grad))
    for mine, expected in zip(*results, strict=True):
        assert mine.shape == expected.shape
        torch.testing.assert_close(mine, expected, rtol=1e-9, atol=1e-9)
    assert length == 1 or results[0][2].abs().min() > 0


def test_the_scan_does_not_change_its_inputs():
    inputs, eigenvalues = random_recurrence(10)
    copy = inputs.clone()
    scan(inputs, eigenvalues)
    assert torch.equal(inputs, copy)


def test_the_scan_is_accurate_in_single_precision_over_long_histories():
    inputs, eigenvalues = random_recurrence(400, torch.complex64)
    expected = loop(inputs.to(torch.complex128), eigenvalues.to(torch.complex128))
    for size in (1, 7, 400):
        torch.testing.assert_close(scan(inputs, eigenvalues, size), expected.to(torch.complex64), rtol=1e-4, atol=1e-4)


def test_histories_of_different_lengths_are_scanned_each_by_itself():
    """Also their gradients; in the places that fill the chunks up stands something."""
    lengths = [3, 0, 11, 1, 7, 7]
    inputs, eigenvalues = random_recurrence(sum(lengths))
    inputs = inputs[0]
    wanted, given = [], (inputs.clone().requires_grad_(), eigenvalues.clone().requires_grad_())
    for part in given[0].split(lengths):
        wanted += [loop(part[None], given[1])[0]] if len(part) else []
    wanted = torch.cat(wanted)
    chunks = Chunks.of(lengths, 4)
    slots = torch.from_numpy(chunks.slots)
    mine = inputs.clone().requires_grad_(), eigenvalues.clone().requires_grad_()
    laid_out = inputs.new_ones(4 * chunks.num_chunks, 5).index_copy(0, slots, mine[0])
    found = recurrence(laid_out.unflatten(0, (4, -1)), mine[1], chunks.groups)[slots]
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)
    weights = torch.randn(found.shape, dtype=found.dtype)
    for states in (found, wanted):
        (states * weights).real.sum().backward()
    for one, other in zip(mine, given, strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-9, atol=1e-9)


def test_the_projections_around_the_scan_have_their_gradients():
    lengths, generator = [3, 0, 11, 7], torch.Generator().manual_seed(0)
    chunks = Chunks.of(lengths, 4)
    shapes = (4, chunks.num_chunks, 6), (10, 6), (10,), (3, 10), (3,)
    hidden, enter, enter_bias, leave, leave_bias = (
        torch.randn(shape, dtype=torch.float64, generator=generator, requires_grad=True) for shape in shapes
    )
    eigenvalues = random_recurrence(1)[1].requires_grad_()
    given = hidden, enter, enter_bias, eigenvalues, leave, leave_bias
    assert torch.autograd.gradcheck(lambda *tensors: _LinearRecurrence.apply(*tensors, chunks.groups), given)


def test_eigenvalues_start_on_the_ring_and_inputs_are_scaled_to_it():
    torch.manual_seed(0)
    config = LRURecConfig(num_items=3, hidden_size=64, radius_min=0.8, radius_max=0.99)
    for block in LRURecForRetrieval(config).blocks:
        radius = torch.exp(-torch.exp(block.recurrence.decay_log))
        assert radius.min() > 0.8 - 1e-5 and radius.max() < 0.99 + 1e-5
        assert radius.std() > 0.02
        angle = torch.exp(block.recurrence.angle_log)
        assert 0 < angle.min() < 0.5 and 5.5 < angle.max() < 2 * math.pi + 1e-5
        torch.testing.assert_close(torch.exp(block.recurrence.input_scale_log) ** 2, 1 - radius**2)


def test_weights_start_as_published(model):
    assert not model.item_embedding.weight[0].any()
    assert 0.01 < model.item_embedding.weight[1:].std() < 0.03
    assert model.item_embedding.weight.abs().max() <= 0.04
    assert not model.item_bias.any()
    assert not model.blocks[0].feed_forward_in.bias.any()
    assert (model.embedding_norm.weight == 1).all()


@pytest.mark.parametrize("wrong", [{"hidden_dropout_prob": 1.5}, {"hidden_dropout_prob": None}, {"max_length": 0.5}])
def test_sizes_that_are_none_are_refused(wrong):
    with pytest.raises(LKGError, match=f"{next(iter(wrong))} is {next(iter(wrong.values()))!r}; it is "):
        LRURecConfig(**wrong)


def test_the_configuration_carries_the_sizes():
    config = LRURecConfig(num_items=9, hidden_size=16, num_hidden_layers=3, hidden_dropout_prob=0.1)
    model = LRURecForRetrieval(config)
    assert model.item_embedding.weight.shape == (10, 16)
    assert len(model.blocks) == 3 and model.blocks[0].dropout == 0.1
    assert model.blocks[0].recurrence.decay_log.shape == (32,)
    assert (LRURecConfig().hidden_size, LRURecConfig().max_length) == (64, 200)


def test_scores_are_finite_for_items_and_never_choose_padding(model):
    logits = model(torch.tensor([[0, 3, 5], [1, 2, 9], [0, 0, 0]])).logits
    assert logits.shape == (3, 10) and logits.dtype == torch.float32
    assert (logits[:, 0] == -torch.inf).all()
    assert torch.isfinite(logits[:, 1:]).all()


def test_left_padding_does_not_change_scores(model):
    for block in model.blocks:  # a bias would put something into the state at every padded place
        torch.nn.init.normal_(block.recurrence.input_projection.bias)
    histories = [[3], [5, 2, 7], [1, 2, 3, 4, 5, 6, 7]]
    for history in histories:
        alone = model(torch.tensor([history])).logits
        for padding in (1, 2, 9, 30):
            padded = model(torch.tensor([[0] * padding + history])).logits
            torch.testing.assert_close(padded, alone, rtol=1e-4, atol=1e-5)
    together = model(pad_left([np.array(history) for history in histories], 12)).logits
    for row, history in enumerate(histories):
        torch.testing.assert_close(together[row], model(torch.tensor([history])).logits[0], rtol=1e-4, atol=1e-5)


def test_the_order_of_the_history_matters(model):
    one, other = model(torch.tensor([[1, 2, 3]])).logits, model(torch.tensor([[2, 1, 3]])).logits
    assert (one[:, 1:] - other[:, 1:]).abs().max() > 1e-4


def test_no_position_sees_a_later_item(model):
    early = model.encode(torch.tensor([[4, 5, 6, 7, 8]]))
    changed = model.encode(torch.tensor([[4, 5, 6, 1, 2]]))
    torch.testing.assert_close(early[:, :3], changed[:, :3])
    assert (early[:, 3] - changed[:, 3]).abs().max() > 1e-3


def test_the_loss_is_the_cross_entropy_over_items_at_labelled_positions(model):
    with torch.no_grad():
        model.item_bias.copy_(torch.linspace(-1, 1, 10))
    items, labels = torch.tensor([[0, 3, 5], [1, 2, 9]]), torch.tensor([[0, 5, 2], [2, 0, 4]])
    hidden = model.encode(items).detach()
    losses = []
    for row, column in ((0, 1), (0, 2), (1, 0), (1, 2)):
        scores = [
            float((hidden[row, column] @ model.item_embedding.weight[item] + model.item_bias[item]).detach())
            for item in range(1, 10)
        ]
        losses.append(math.log(sum(map(math.exp, scores))) - scores[int(labels[row, column]) - 1])
    output = model(items, labels=labels)
    assert output.loss.item() == pytest.approx(sum(losses) / 4, rel=1e-5)
    assert output.logits is None and model(items).loss is None


def test_scores_follow_from_the_last_position(model):
    items = torch.tensor([[4, 5, 6]])
    expected = model.encode(items)[:, -1] @ model.item_embedding.weight.T + model.item_bias
    torch.testing.assert_close(model(items).logits[:, 1:], expected[:, 1:])


def test_every_parameter_learns_and_padding_stays_zero(model):
    model.train()
    model(torch.tensor([[0, 3, 5], [1, 2, 9]]), labels=torch.tensor([[0, 5, 2], [2, 9, 4]])).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
    assert not model.item_embedding.weight.grad[0].any()
    assert float(model.item_bias.grad[0]) == 0.0


def test_a_model_comes_back_from_disk_exactly(model, tmp_path):
    with torch.no_grad():
        model.item_bias.normal_()
    model.save_pretrained(tmp_path)
    items = torch.tensor([[0, 3, 5], [1, 2, 9]])
    for loaded in (LRURecForRetrieval.from_pretrained(tmp_path), AutoModel.from_pretrained(tmp_path)):
        assert type(loaded) is LRURecForRetrieval and not loaded.training
        assert loaded.config.to_diff_dict() == model.config.to_diff_dict()
        expected = model.state_dict()
        assert loaded.state_dict().keys() == expected.keys()
        assert all(torch.equal(value, expected[name]) for name, value in loaded.state_dict().items())
        assert torch.equal(loaded(items).logits, model(items).logits)
    assert type(AutoConfig.from_pretrained(tmp_path)) is LRURecConfig
    assert AutoConfig.from_pretrained(tmp_path).num_items == 9


def test_half_precision_keeps_the_recurrence_in_full_precision(model):
    items, labels = torch.tensor([[0, 3, 5], [1, 2, 9]]), torch.tensor([[0, 5, 2], [2, 9, 4]])
    full = model(items).logits
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed, loss = model(items).logits, model(items, labels=labels).loss
    half = model.to(torch.bfloat16)(items).logits
    for logits in (mixed, half):
        assert logits.dtype == torch.float32
        torch.testing.assert_close(logits[:, 1:], full[:, 1:], rtol=0.1, atol=0.02)
    assert loss.dtype == torch.float32 and torch.isfinite(loss)
