"""Training steps of the retrievers beside plain ones, and the best items of a million for many users."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from llamarec_lkg.retrieval.base import best_items, pad_left
from llamarec_lkg.retrieval.modeling_lrurec import LRURecConfig, LRURecForRetrieval
from llamarec_lkg.retrieval.modeling_sasrec import SASRecConfig, SASRecForRetrieval
from llamarec_lkg.retrieval.sequential import NeuralRetriever
from llamarec_lkg.retrieval.training import training_step

from .runner import Figure, alone, benchmark, forget_peak, in_turns, peak


ITEMS, LENGTH, BATCH, SIZE, LAYERS, DROPOUT = 1349, 200, 16, 64, 2, 0.2  # MovieLens-100K and the default settings
CATALOGUE, USERS, BEST = 1_000_000, 128, 100


def windows(count: int, items: int = ITEMS) -> list[np.ndarray]:
    """Histories by chance, as long as those of MovieLens-100K in windows: mean 88, median 63."""
    generator = np.random.default_rng(0)
    lengths = np.clip(generator.lognormal(np.log(63), 0.95, count), 17, LENGTH).astype(int)
    return [generator.integers(1, items + 1, length + 1) for length in lengths]


class PlainRecurrence(nn.Module):
    """A layer of LRURec as it is written down: one step of the recurrence after the other, with padding."""

    def __init__(self):
        super().__init__()
        radius, angle = 0.8 + 0.19 * torch.rand(2 * SIZE), 6.28 * torch.rand(2 * SIZE)
        self.decay, self.angle = nn.Parameter((-radius.log()).log()), nn.Parameter((angle + 1e-4).log())
        self.scale = nn.Parameter((1 - radius**2).sqrt().log())
        self.enter, self.leave = nn.Linear(SIZE, 4 * SIZE), nn.Linear(4 * SIZE, SIZE)
        self.norm, self.last_norm, self.dropout = nn.LayerNorm(SIZE), nn.LayerNorm(SIZE), nn.Dropout(DROPOUT)
        self.inner, self.outer = nn.Linear(SIZE, 4 * SIZE), nn.Linear(4 * SIZE, SIZE)

    def forward(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        eigenvalues = torch.polar(torch.exp(-torch.exp(self.decay)), torch.exp(self.angle))
        inputs = torch.complex(*self.enter(hidden).chunk(2, dim=-1)) * torch.exp(self.scale) * mask[..., None]
        state, states = torch.zeros_like(inputs[:, 0]), []
        for place in range(inputs.shape[1]):
            state = eigenvalues * state + inputs[:, place]
            states.append(state)
        states = torch.stack(states, dim=1)
        hidden = self.norm(hidden + self.dropout(self.leave(torch.cat([states.real, states.imag], dim=-1))))
        return self.last_norm(hidden + self.dropout(self.outer(self.dropout(F.gelu(self.inner(hidden))))))


class PlainAttention(nn.TransformerEncoderLayer):
    """A layer of SASRec from the parts of torch, with padding."""

    def __init__(self):
        super().__init__(SIZE, 2, 4 * SIZE, DROPOUT, F.gelu, batch_first=True, norm_first=True)

    def forward(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        causal = torch.ones(mask.shape[1], mask.shape[1], dtype=torch.bool).triu(1)
        return super().forward(hidden, src_mask=causal, src_key_padding_mask=~mask, is_causal=True)


class Plain(nn.Module):
    """Item vectors, layers, and the cross-entropy over all items, at once for all places with a next item."""

    def __init__(self, layer: Callable[[], nn.Module], positions: bool, left: bool):
        super().__init__()
        self.items, self.bias = nn.Embedding(ITEMS + 1, SIZE, padding_idx=0), nn.Parameter(torch.zeros(ITEMS + 1))
        self.places = nn.Embedding(LENGTH, SIZE) if positions else None
        self.norm, self.dropout = nn.LayerNorm(SIZE), nn.Dropout(DROPOUT)
        self.layers, self.left = nn.ModuleList([layer() for _ in range(LAYERS)]), left
        nn.init.normal_(self.items.weight, std=0.02)

    def forward(self, items: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        hidden, mask = self.items(items), items != 0
        if self.places is not None:
            hidden = hidden + self.places.weight[: items.shape[1]]
        hidden = self.dropout(self.norm(hidden))
        for layer in self.layers:
            hidden = layer(hidden, mask)
        counts = labels != 0
        return F.cross_entropy(hidden[counts] @ self.items.weight.T + self.bias, labels[counts])


def plain_step(model: Plain, optimizer: torch.optim.Optimizer, batch: list[np.ndarray]) -> None:
    items, labels = (pad_left([one[part] for one in batch], LENGTH) for part in (slice(None, -1), slice(1, None)))
    if not model.left:  # attention without a single place to look at is not a number
        items, labels = items.flip(1), labels.flip(1)
    loss = model(items, labels)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()


def step_times(kind: str, steps: int = 10, passes: int = 4) -> tuple[float, float]:
    """Seconds of a step of ours, and of the plain one on the same batches: the median of a pass over them, by turns.
    Each trains whole passes, because a step of training comes after one of the same model, not of another one."""
    torch.manual_seed(0)
    config, model = {"lrurec": (LRURecConfig, LRURecForRetrieval), "sasrec": (SASRecConfig, SASRecForRetrieval)}[kind]
    ours = model(config(num_items=ITEMS, hidden_size=SIZE, num_hidden_layers=LAYERS, max_length=LENGTH)).train()
    theirs = Plain(PlainRecurrence if kind == "lrurec" else PlainAttention, kind == "sasrec", kind == "lrurec")
    optimizers = [torch.optim.AdamW(one.parameters(), lr=1e-3, fused=True) for one in (ours, theirs)]
    drawn = windows(BATCH * steps)
    batches = [drawn[start : start + BATCH] for start in range(0, len(drawn), BATCH)]

    def train(step: Callable, number: int) -> None:
        for batch in batches:
            step((ours, theirs)[number], optimizers[number], batch)

    mine, plain = in_turns(lambda: train(training_step, 0), lambda: train(plain_step, 1), repeats=passes)
    return mine / steps, plain / steps


def million() -> tuple[NeuralRetriever, list[np.ndarray]]:
    """A retriever that knows a million items, and histories of users."""
    torch.manual_seed(0)
    return NeuralRetriever(LRURecForRetrieval(LRURecConfig(num_items=CATALOGUE))), windows(USERS, CATALOGUE)


def best_of_a_million() -> float:
    """The most memory held, in GB, while the best items of all users are found; what drawing the weights takes does
    not count."""
    retriever, histories = million()
    forget_peak()
    best_items(retriever, histories, BEST, histories)
    return peak()


@benchmark
def retrieval() -> Iterator[Figure]:
    for kind, peer, target in (("lrurec", "plain recurrence", 5), ("sasrec", "torch's encoder layers", 3)):
        mine, plain = step_times(kind)
        yield Figure(f"training step, {kind}, {ITEMS} items", 1000 * mine, 1000 * plain, "ms", target, peer)
    retriever, histories = million()
    states = retriever.states(histories)
    vectors = retriever.model.item_vectors().detach()
    mine, plain = in_turns(
        lambda: best_items(retriever, histories, BEST, histories),
        lambda: torch.topk(states @ vectors.T, BEST),
        repeats=3,
    )
    name = f"best {BEST} of {CATALOGUE / 1e6:.0f}M items, {USERS} users"
    yield Figure(f"{name}: time", mine, plain, "s", 1.5, "product and torch.topk", overhead=True)
    yield Figure(f"{name}: memory", alone(best_of_a_million)["found"], 1, "GB", 1, "bound", overhead=True)
