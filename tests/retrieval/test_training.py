import math

import numpy as np
import pytest
import torch

from llamarec_lkg.retrieval import training as module
from llamarec_lkg.retrieval.modeling_lrurec import LRURecRetriever
from llamarec_lkg.retrieval.training import (
    ItemSampler,
    LRURecTrainingArguments,
    _batches,
    _sampled_items,
    _schedule,
    evaluate_retriever,
    train_lrurec,
    training_windows,
)
from llamarec_lkg.utils.errors import LKGError


def arguments(**changes) -> LRURecTrainingArguments:
    settings = {"hidden_size": 16, "num_hidden_layers": 1, "dropout": 0.0, "learning_rate": 0.02, "batch_size": 32}
    return LRURecTrainingArguments(**settings | {"max_steps": 4, "eval_steps": 2} | changes)


class Fixed:
    """Gives every history the same scores."""

    def __init__(self, scores):
        self.scores, self.num_items = np.array([-np.inf, *scores], dtype=np.float32), len(scores)

    def score(self, histories):
        return np.tile(self.scores, (len(histories), 1))


def test_a_retriever_is_measured_on_items_outside_the_history(make_dataset):
    # targets: validation 4 after 1 2 3, test 5 after 1 2 3 4, out of 8 items
    data = make_dataset([(1, item, item) for item in range(1, 6)] + [(2, item, item) for item in (6, 7, 8)])
    retriever = Fixed([9, 8, 7, 3, 2, 5, 4, 1])
    test = evaluate_retriever(retriever, data, "test")
    # user 1 ranks 6 7 5 8: the third place. User 2 has seen 6 and 7 and ranks 1 2 3 4 5 8: the sixth
    assert test["recall@1"] == 0 and test["recall@5"] == 0.5 and test["recall@10"] == test["recall@20"] == 1
    assert test["mrr@10"] == pytest.approx((1 / 3 + 1 / 6) / 2)
    validation = evaluate_retriever(retriever, data, "validation")
    # user 1 ranks 6 7 4: the third place. User 2 has seen 6 and ranks 1 2 3 7: the fourth
    assert validation["mrr@5"] == pytest.approx((1 / 3 + 1 / 4) / 2)
    assert validation["ndcg@5"] == pytest.approx((1 / math.log2(4) + 1 / math.log2(5)) / 2)


def test_windows_cover_every_transition_once(make_dataset):
    rows = [(1, item, item) for item in range(1, 12)] + [(2, item, item) for item in (1, 2, 3)]
    data = make_dataset(rows)  # user 1 trains on 1..9, user 2 on one item
    for length in (1, 2, 3, 4, 8, 100):
        windows = training_windows(data, length)
        assert all(2 <= len(window) <= length + 1 for window in windows)
        transitions = [
            pair for window in windows for pair in zip(window[:-1].tolist(), window[1:].tolist(), strict=True)
        ]
        assert sorted(transitions) == [(item, item + 1) for item in range(1, 9)]
    assert [window.tolist() for window in training_windows(data, 3)] == [[6, 7, 8, 9], [3, 4, 5, 6], [1, 2, 3]]


def test_batches_take_every_sequence_once_an_epoch_in_a_new_order():
    sequences = [np.array([number]) for number in range(7)]
    batches = _batches(sequences, 3, np.random.default_rng(0))
    epochs = [[int(sequence[0]) for _ in range(3) for sequence in next(batches)] for _ in range(2)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(7))] * 2
    assert epochs[0] != epochs[1]


def test_the_planted_order_is_learned(cycle_dataset):
    model, log = train_lrurec(cycle_dataset, arguments(max_steps=120, eval_steps=40), progress=False)
    assert not model.training
    assert [record["step"] for record in log] == [40, 80, 120]
    assert log[-1]["loss"] < 0.5 < log[0]["loss"]
    test = evaluate_retriever(LRURecRetriever(model), cycle_dataset, "test")
    assert test["recall@1"] > 0.9 and test["recall@10"] > 0.95


def test_training_is_repeatable_by_seed(cycle_dataset):
    runs = [train_lrurec(cycle_dataset, arguments(dropout=0.2, seed=seed), progress=False) for seed in (1, 1, 2)]
    weights = [model.item_embedding.weight for model, _ in runs]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    assert runs[0][1] == runs[1][1]


def test_the_model_has_the_sizes_asked_for(cycle_dataset):
    model, _ = train_lrurec(cycle_dataset, arguments(max_length=5, dropout=0.1, num_hidden_layers=2), progress=False)
    assert model.config.num_items == 30 and model.config.hidden_size == 16
    assert (model.config.max_length, model.config.num_hidden_layers, model.config.hidden_dropout_prob) == (5, 2, 0.1)


def test_early_stopping_restores_the_best_model(cycle_dataset, monkeypatch):
    recalls = iter([0.1, 0.3, 0.2, 0.3, 0.25, 0.9])
    snapshots = []

    def evaluate(retriever, dataset, split):
        assert split == "validation"
        snapshots.append({name: value.clone() for name, value in retriever.model.state_dict().items()})
        return {"recall@10": next(recalls)}

    monkeypatch.setattr(module, "evaluate_retriever", evaluate)
    model, log = train_lrurec(cycle_dataset, arguments(max_steps=100, patience=3), progress=False)
    assert [record["recall@10"] for record in log] == [0.1, 0.3, 0.2, 0.3, 0.25]
    assert [record["step"] for record in log] == [2, 4, 6, 8, 10]
    state = model.state_dict()
    assert all(torch.equal(state[name], value) for name, value in snapshots[1].items())
    assert not all(torch.equal(state[name], value) for name, value in snapshots[-1].items())


def test_the_constant_rate_stays_and_one_cycle_rises_and_falls():
    constant = _schedule(arguments(max_steps=100, lr_scheduler_type="constant"))
    assert {constant(step) for step in range(101)} == {1.0}
    cycle = _schedule(arguments(max_steps=100, lr_scheduler_type="one_cycle"))
    rates = [cycle(step) for step in range(101)]
    assert rates[0] == pytest.approx(0.1) and rates[4] == pytest.approx(0.5)
    assert max(rates) == 1.0 and rates.index(1.0) in (9, 10)
    assert all(a <= b for a, b in zip(rates[:9], rates[1:10], strict=True))
    assert all(a >= b for a, b in zip(rates[10:-1], rates[11:], strict=True))
    assert rates[55] == pytest.approx(0.5) and rates[100] == pytest.approx(0.0)


@pytest.mark.parametrize("max_steps", [1, 2, 30])
def test_one_cycle_trains_for_any_number_of_steps(cycle_dataset, max_steps):
    settings = arguments(max_steps=max_steps, eval_steps=30, lr_scheduler_type="one_cycle")
    _, log = train_lrurec(cycle_dataset, settings, progress=False)
    assert [record["step"] for record in log] == [max_steps], "the last step is validated, too"
    assert {"loss", "recall@1", "recall@10", "recall@20", "ndcg@10", "mrr@5"} <= log[0].keys()
    assert math.isfinite(log[0]["loss"])


def test_the_schedule_reaches_the_optimizer(cycle_dataset, monkeypatch):
    rates = []

    class Recorder(torch.optim.AdamW):
        def step(self, *args, **options):
            rates.append(self.param_groups[0]["lr"])
            return super().step(*args, **options)

    monkeypatch.setattr(torch.optim, "AdamW", Recorder)
    settings = arguments(max_steps=20, eval_steps=20, lr_scheduler_type="one_cycle", learning_rate=0.02)
    train_lrurec(cycle_dataset, settings, progress=False)
    schedule = _schedule(settings)
    assert rates == pytest.approx([0.02 * schedule(step) for step in range(20)])


def test_an_unknown_schedule_is_refused(cycle_dataset):
    with pytest.raises(LKGError, match="lr_scheduler_type is 'cosine'; it is 'constant' or 'one_cycle'"):
        train_lrurec(cycle_dataset, arguments(lr_scheduler_type="cosine"), progress=False)


def test_a_sample_that_is_the_catalogue_gives_the_whole_loss(cycle_dataset):
    """Also its gradients, with targets in the sample."""
    model = module._new_model(cycle_dataset, arguments(), None)
    items, labels = torch.tensor([[0, 3, 5], [1, 2, 9]]), torch.tensor([[0, 5, 2], [2, 0, 4]])
    sample = torch.randperm(30) + 1, torch.zeros(30)
    losses = [model(items, labels=labels, sample=one).loss for one in (None, sample)]
    torch.testing.assert_close(*losses)
    for mine, whole in zip(*(torch.autograd.grad(loss, model.parameters()) for loss in losses), strict=True):
        torch.testing.assert_close(mine, whole, rtol=1e-4, atol=1e-6)


def test_a_sum_over_samples_is_that_over_the_catalogue_in_the_mean():
    generator = np.random.default_rng(0)
    counts, values = generator.integers(0, 50, 201), generator.random(201)
    sampler = ItemSampler(counts, 40, seed=1)
    draws = [sampler.draw() for _ in range(4000)]
    items, stands_for = draws[0]
    assert items.dtype == torch.long and stands_for.dtype == torch.float32 and len(items) == len(items.unique()) <= 40
    assert all(1 <= items.min() and items.max() <= 200 for items, _ in draws)
    mean = np.mean([(values[items] * stands_for.exp().numpy()).sum() for items, stands_for in draws])
    assert mean == pytest.approx(values[1:].sum(), rel=0.01)


def test_the_loss_over_a_sample_learns_the_planted_order(cycle_dataset):
    settings = arguments(max_steps=150, eval_steps=150, sampled_items=8)
    model, _ = train_lrurec(cycle_dataset, settings, progress=False)
    assert evaluate_retriever(LRURecRetriever(model), cycle_dataset, "test")["recall@1"] > 0.9


def test_only_large_catalogues_are_sampled_unless_asked_for():
    assert [_sampled_items(arguments(), count) for count in (10, 100_000, 100_001)] == [0, 0, 8192]
    assert [_sampled_items(arguments(sampled_items=count), 10**6) for count in (0, 50)] == [0, 50]
    with pytest.raises(LKGError, match="sampled_items is -1"):
        _sampled_items(arguments(sampled_items=-1), 10)


def test_data_without_a_transition_is_refused(make_dataset):
    data = make_dataset([(1, item, item) for item in (1, 2, 3)])
    with pytest.raises(LKGError, match="No user has two training interactions"):
        train_lrurec(data, arguments(), progress=False)


def test_data_without_validation_targets_is_refused(make_dataset):
    rows = [(user, (user + step) % 7 + 1, 10 * step + user) for user in range(1, 6) for step in range(6)]
    data = make_dataset(rows, split="time", validation_fraction=0.0, test_fraction=0.2)
    assert len(data.positions("validation")) == 0 and len(data.positions("test")) > 0
    with pytest.raises(LKGError, match="no validation target to choose the best model by"):
        train_lrurec(data, arguments(), progress=False)


def test_the_reference_settings_are_the_default_and_every_setting_is_explained():
    args = LRURecTrainingArguments()
    assert (args.hidden_size, args.num_hidden_layers, args.dropout, args.max_length) == (64, 2, 0.2, 200)
    assert (args.learning_rate, args.weight_decay, args.batch_size) == (1e-3, 0.01, 16)
    assert (args.eval_steps, args.patience) == (500, 20)
    assert all(field.metadata.get("help") for field in args.__dataclass_fields__.values())
