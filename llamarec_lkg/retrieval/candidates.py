"""Lists to rank: what the retriever finds for each target, at evaluation and, honestly, in training.

A retriever has learned its training transitions by heart: for them it puts the true next item far higher than it ever
will at test time, and a ranker trained on such lists learns to trust it blindly. Training lists are therefore made at
positions that the retriever making them has not seen (`SequenceDataset.without_last_training`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
from tqdm.auto import tqdm

from ..data.schema import PADDING_ITEM, RankingExample
from ..data.sequences import TRAIN, UNUSED, SequenceDataset
from ..utils.errors import LKGError
from .base import Retriever, exclude_history, top_k


def evaluation_examples(
    dataset: SequenceDataset, retriever: Retriever, split: str, *, num_candidates: int = 20, progress: bool = True
) -> list[RankingExample]:
    """The retriever's best `num_candidates` for every target of `split`, in its order; label -1 where it missed the
    target."""
    return list(_retrieve(dataset, retriever, dataset.positions(split), num_candidates, f"retrieve {split}", progress))


def training_examples(
    dataset: SequenceDataset,
    retriever: Retriever,
    honest: SequenceDataset | None = None,
    *,
    num_candidates: int = 20,
    negatives: Literal["retrieved", "uniform"] = "retrieved",
    shuffle: bool = True,
    seed: int = 42,
    progress: bool = True,
) -> list[RankingExample]:
    """Lists with their target among the candidates.

    Args:
        dataset: the full data.
        retriever: fitted on `honest`.
        honest: `dataset.without_last_training(n)`; the positions it leaves out become examples. None takes every
            training position with at least one item of history, which suits `negatives="uniform"`.
        negatives: "retrieved" keeps the positions whose target the retriever finds, with what it found beside it: the
            very distribution of evaluation. "uniform" draws the other candidates from all items, as published.
        shuffle: put the candidates into random order, so that a letter's place says nothing about the answer.

    Raises:
        LKGError: no position is left to learn from.
    """
    if honest is not None:
        positions = np.flatnonzero((honest.labels == UNUSED) & (dataset.labels == TRAIN))
    else:
        positions = dataset.positions("train")
        positions = positions[~np.isin(positions, dataset.offsets[:-1])]
    if negatives not in ("retrieved", "uniform"):
        raise LKGError(f"negatives is {negatives!r}; it is 'retrieved' or 'uniform'.")
    generator = np.random.default_rng(seed)
    if negatives == "uniform":
        examples = _uniform(dataset, retriever, positions, num_candidates, generator, progress)
    else:
        found = _retrieve(dataset, retriever, positions, num_candidates, "retrieve train", progress)
        examples = (example for example in found if example.label >= 0)
    examples = [_shuffled(example, generator) if shuffle else example for example in examples]
    if not examples:
        raise LKGError(
            f"None of {len(positions)} training positions gives an example: the retriever finds no target among its "
            f"best {num_candidates}. Train it longer, keep more candidates, or use negatives='uniform'."
        )
    return examples


def to_dataset(examples: Sequence[RankingExample]) -> Any:
    """A `datasets.Dataset` with one row an example, in dense ids: what the trainer takes."""
    from datasets import Dataset

    return Dataset.from_list(
        [
            {name: _plain(getattr(example, name)) for name in RankingExample.__dataclass_fields__}
            for example in examples
        ]
    )


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray) else value


def _retrieve(
    dataset: SequenceDataset,
    retriever: Retriever,
    positions: np.ndarray,
    count: int,
    description: str,
    progress: bool,
    block: int = 512,
) -> Iterator[RankingExample]:
    users = dataset.user_of(positions)
    with tqdm(total=len(positions), desc=description, unit="list", disable=not progress) as bar:
        for start in range(0, len(positions), block):
            part = positions[start : start + block]
            slices = [dataset.history(position) for position in part]
            histories = [dataset.item_sequence[piece] for piece in slices]
            items, scores = top_k(exclude_history(retriever.score(histories), histories), count)
            for row, position in enumerate(part):
                real = items[row] != PADDING_ITEM
                label = np.flatnonzero(items[row] == dataset.item_sequence[position])
                yield RankingExample(
                    user=int(users[start + row]),
                    history=histories[row].astype(np.int64),
                    ratings=dataset.ratings[slices[row]],
                    candidates=items[row][real].astype(np.int64),
                    retrieval_scores=scores[row][real],
                    label=int(label[0]) if len(label) else -1,
                )
            bar.update(len(part))


def _uniform(
    dataset: SequenceDataset,
    retriever: Retriever,
    positions: np.ndarray,
    count: int,
    generator: np.random.Generator,
    progress: bool,
    block: int = 512,
) -> Iterator[RankingExample]:
    users = dataset.user_of(positions)
    with tqdm(total=len(positions), desc="draw train", unit="list", disable=not progress) as bar:
        for start in range(0, len(positions), block):
            part = positions[start : start + block]
            slices = [dataset.history(position) for position in part]
            histories = [dataset.item_sequence[piece] for piece in slices]
            scores = retriever.score(histories)
            for row, position in enumerate(part):
                target = int(dataset.item_sequence[position])
                free = np.setdiff1d(np.arange(1, dataset.num_items + 1), np.append(histories[row], target))
                drawn = generator.choice(free, size=min(count - 1, len(free)), replace=False)
                candidates = np.append(target, drawn).astype(np.int64)
                yield RankingExample(
                    user=int(users[start + row]),
                    history=histories[row].astype(np.int64),
                    ratings=dataset.ratings[slices[row]],
                    candidates=candidates,
                    retrieval_scores=scores[row][candidates],
                    label=0,
                )
            bar.update(len(part))


def _shuffled(example: RankingExample, generator: np.random.Generator) -> RankingExample:
    order = generator.permutation(len(example.candidates))
    return RankingExample(
        user=example.user,
        history=example.history,
        ratings=example.ratings,
        candidates=example.candidates[order],
        retrieval_scores=example.retrieval_scores[order],
        label=int(np.flatnonzero(order == example.label)[0]),
    )
