"""Lists to rank: what a retriever finds for each target, at evaluation and, out of fold, in training.

A retriever, or a table of co-ratings, that has seen a transition knows the answer: it puts the true next item far
higher than it ever will at test time, and a ranker trained on such lists learns to trust it blindly. So users are
parted into folds. For the users of a fold, lists and evidence come from a retriever and a graph that were fitted on
the others (`SequenceDataset.without_users`), at all of their training positions. At test time all training
interactions are used.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from tqdm.auto import tqdm

from ..data.schema import PADDING_ITEM, RankingExample
from ..data.sequences import SequenceDataset
from ..graph.evidence import EvidenceIndex
from ..utils.errors import LKGError
from .base import Retriever, exclude_history, frozen, never_ranked, rows_at_once, top_k
from .fused import FusedRetriever


# what a `RankingExample` carries of each candidate
OF_CANDIDATES = ("retrieval_scores", "evidence", "recent_evidence", "popularity")


# positions, histories, and scores of all items: the retriever's, and those that candidates are chosen by,
# which may be the same array
ScoredBlock = tuple[np.ndarray, list[np.ndarray], np.ndarray, np.ndarray]


def evaluation_examples(
    dataset: SequenceDataset, retriever: Retriever, split: str, *, num_candidates: int = 20, progress: bool = True
) -> list[RankingExample]:
    """The retriever's best `num_candidates` for every target of `split`, in its order; label -1 where it missed the
    target. Of a [`FusedRetriever`] they carry the scores of its first part: the ranker weighs the others itself."""
    blocks = _scored(dataset, retriever, dataset.positions(split), f"retrieve {split}", progress)
    return list(_retrieve(dataset, blocks, num_candidates))


def folds_of_users(num_users: int, folds: int, seed: int = 42) -> np.ndarray:
    """The fold, from 0 on, of each dense user, shape (num_users + 1,), drawn by seed; folds differ by one user at
    most.

    Raises:
        LKGError: there are fewer than two folds, or fewer users than folds.
    """
    if not 2 <= folds <= num_users:
        raise LKGError(f"{folds} folds of {num_users} users were asked for; there are two folds or more, none empty.")
    order = np.random.default_rng(seed).permutation(num_users)
    return np.concatenate([[0], order % folds])


def training_examples(
    dataset: SequenceDataset,
    retrievers: Retriever | Sequence[Retriever],
    fold_of_user: np.ndarray | None = None,
    *,
    num_candidates: int = 20,
    negatives: Literal["retrieved", "uniform"] = "retrieved",
    per_user: int | None = None,
    shuffle: bool = True,
    seed: int = 42,
    progress: bool = True,
) -> list[RankingExample]:
    """Lists at training positions that have a history, with their target among the candidates.

    Args:
        retrievers: one for each fold, fitted on `dataset.without_users(users of the fold)`; or a single one for all
            users, which suits `negatives="uniform"` as published.
        fold_of_user: from `folds_of_users`; needed with several retrievers.
        negatives: "retrieved" keeps the positions whose target the retriever finds, with what it found beside it: the
            very distribution of evaluation. "uniform" draws the other candidates from all items, as published. Both
            leave out the history unless the data allow repeats.
        per_user: only the latest so many positions of each user; None takes all.
        shuffle: put the candidates into random order, so that a place says nothing about the answer.

    Raises:
        LKGError: folds and retrievers do not go together, or no position is left to learn from.
    """
    if negatives not in ("retrieved", "uniform"):
        raise LKGError(f"negatives is {negatives!r}; it is 'retrieved' or 'uniform'.")
    retrievers = list(retrievers) if isinstance(retrievers, Sequence) else [retrievers]
    fold_of_user = np.zeros(dataset.num_users + 1, dtype=int) if fold_of_user is None else fold_of_user
    if len(fold_of_user) != dataset.num_users + 1 or fold_of_user.max() != len(retrievers) - 1:
        raise LKGError(
            f"{len(retrievers)} retrievers were given for {int(fold_of_user.max()) + 1} folds of "
            f"{len(fold_of_user) - 1} users; the data have {dataset.num_users} users. Give one retriever a fold, and "
            "`folds_of_users(dataset.num_users, ...)`."
        )
    positions = _positions(dataset, per_user)
    folds = fold_of_user[dataset.user_of(positions)]
    generator, examples = np.random.default_rng(seed), []
    for fold, retriever in enumerate(retrievers):
        part = positions[folds == fold]
        text = "training lists" if len(retrievers) == 1 else f"training lists, fold {fold + 1} of {len(retrievers)}"
        blocks = _scored(dataset, retriever, part, text, progress)
        if negatives == "uniform":
            found = _uniform(dataset, blocks, num_candidates, generator)
        else:
            found = (example for example in _retrieve(dataset, blocks, num_candidates) if example.label >= 0)
        examples += [
            _chosen(example, generator.permutation(len(example.candidates))) if shuffle else example
            for example in found
        ]
    if not examples:
        raise LKGError(
            f"None of {len(positions)} training positions gives an example: the retriever finds no target among its "
            f"best {num_candidates}. Train it longer, keep more candidates, or use negatives='uniform'."
        )
    return examples


def best_lists(pools: Sequence[RankingExample], num_candidates: int) -> list[RankingExample]:
    """Of lists in the order of retrieval the first `num_candidates`, where the target is among them: what evaluation
    sees."""
    return [_chosen(pool, np.arange(num_candidates)) for pool in pools if pool.label < num_candidates]


def drawn_lists(
    pools: Sequence[RankingExample], num_candidates: int, *, pool_share: float = 0.3, seed: int = 42
) -> list[RankingExample]:
    """Lists to learn from, one a pool, in random order of candidates.

    Args:
        pools: longer lists in the order of retrieval, whose target is among their candidates.
        pool_share: in so many of the lists, and in all whose target is not among the first `num_candidates`, the other
            candidates are drawn from the whole pool: more lists, and of more kinds.
    """
    generator, lists = np.random.default_rng(seed), []
    for pool in pools:
        rows = np.arange(min(num_candidates, len(pool.candidates)))
        if pool.label >= num_candidates or generator.random() < pool_share:
            others = generator.permutation(np.delete(np.arange(len(pool.candidates)), pool.label))
            rows = np.append(others[: num_candidates - 1], pool.label)
        lists.append(_chosen(pool, generator.permutation(rows)))
    return lists


def with_easy_lists(examples: Sequence[RankingExample], share: float, *, seed: int = 42) -> list[RankingExample]:
    """The same lists, but in a share of them the other candidates are the targets of other lists.

    Such a list only asks which item fits this history, and nothing but the language model answers: retrieval scores,
    evidence and popularity are 0 in it. Its negatives are as popular as targets are, so that popularity gives nothing
    away. Neither does having had an item before: where the target is one of the history, the others are, too. What the
    retriever finds is so alike that a language model which sees nothing else may never begin to learn.

    Args:
        examples: lists whose target is among their candidates, with features. Paths that the prompt shows stay.
        share: from 0 to 1.

    Returns:
        the lists in their order; an easy one has fewer candidates where there are not so many others.

    Raises:
        LKGError: a list has no features; the processor would read them of an easy list, too, and favour its target.
    """
    if share and any(getattr(example, name) is None for example in examples for name in OF_CANDIDATES):
        raise LKGError("Lists lack what graph and counts say of their candidates. Give them to `with_features` first.")
    generator, lists = np.random.default_rng(seed), []
    targets = np.array([example.candidates[example.label] for example in examples])
    for example, easy in zip(examples, generator.random(len(examples)) < share, strict=True):
        count, target = len(example.candidates) - 1, example.candidates[example.label]
        drawn = targets[generator.integers(len(targets), size=4 * count)]
        if target in example.history:
            drawn = generator.permutation(example.history[example.history != target])
        else:
            drawn = drawn[~np.isin(drawn, [*example.history, target])]
        others = drawn[np.sort(np.unique(drawn, return_index=True)[1])[:count]]
        lists.append(_silent(example, others, generator) if easy and len(others) else example)
    return lists


def _silent(example: RankingExample, others: np.ndarray, generator: np.random.Generator) -> RankingExample:
    """The target among others, in random order, of which nothing is known."""
    order = generator.permutation(len(others) + 1)
    candidates = np.append(others, example.candidates[example.label])[order]
    known = {name: getattr(example, name) for name in OF_CANDIDATES}
    silent = {name: np.zeros((len(order), *values.shape[1:]), values.dtype) for name, values in known.items()}
    return replace(example, candidates=candidates, label=int(order.argmax()), **silent)


def evidence_scale(
    examples: Sequence[RankingExample],
    indexes: EvidenceIndex | Sequence[EvidenceIndex],
    fold_of_user: np.ndarray | None = None,
) -> np.ndarray:
    """The standard deviation of each relation's evidence over the candidates of lists, shape (R,), 1 where nothing
    varies: what evidence is divided by (`EvidenceIndex.with_scale`), so that relations compare.

    `indexes` and `fold_of_user` are as for `with_features`; what scale the indexes have plays no part.
    """
    indexes = list(indexes) if isinstance(indexes, Sequence) else [indexes]
    folds = np.array([0 if fold_of_user is None else fold_of_user[example.user] for example in examples])
    parts = []
    for fold, index in enumerate(indexes):
        lists = [examples[row] for row in np.flatnonzero(folds == fold)]
        index = index.with_scale(np.ones(index.num_relations))
        evidence = index.evidence([one.history for one in lists], [one.candidates for one in lists])
        parts += [rows[: len(one.candidates)] for one, rows in zip(lists, evidence, strict=True)]
    spread = np.concatenate(parts).std(axis=0, dtype=np.float64)
    return np.where(spread > 1e-6, spread, 1.0).astype(np.float32)


def with_features(
    examples: Sequence[RankingExample],
    indexes: EvidenceIndex | Sequence[EvidenceIndex],
    fold_of_user: np.ndarray | None = None,
    *,
    log_counts: np.ndarray | Sequence[np.ndarray] | None = None,
    recent_half_life: float = 1.0,
    progress: bool = True,
) -> list[RankingExample]:
    """The lists with what graph and training counts say of their candidates and histories.

    `indexes` are one for each fold, of a graph whose co-ratings leave the users of the fold out, or a single one.
    Their scale is that of the processor that the lists go with: evidence and statistics are told in its units.
    `log_counts` are likewise log(1 + training interactions) of items without the users of each fold; without them
    popularity is not carried. `recent_half_life` is the processor's.
    """
    indexes = list(indexes) if isinstance(indexes, Sequence) else [indexes]
    log_counts = [log_counts] if isinstance(log_counts, np.ndarray) else log_counts
    result: list[RankingExample | None] = [None] * len(examples)
    rows_of_user: dict[int, list[int]] = defaultdict(list)
    for row, example in enumerate(examples):
        rows_of_user[example.user].append(row)
    with tqdm(total=len(examples), desc="read evidence", unit="list", disable=not progress) as bar:
        for user, rows in rows_of_user.items():
            fold = 0 if fold_of_user is None else int(fold_of_user[user])
            index, lists = indexes[fold], [examples[row] for row in rows]
            histories, candidates = [one.history for one in lists], [one.candidates for one in lists]
            half_lives = index.half_life, recent_half_life
            (evidence, recent), _ = index.features(histories, candidates, half_lives, with_statistics=False)
            for place, (row, statistics) in enumerate(zip(rows, _statistics(index, histories), strict=True)):
                count = len(candidates[place])
                result[row] = replace(
                    examples[row],
                    evidence=evidence[place, :count],
                    recent_evidence=recent[place, :count],
                    history_relations=statistics,
                    popularity=None if log_counts is None else log_counts[fold][candidates[place]],
                )
            bar.update(len(rows))
    return result


def _statistics(index: EvidenceIndex, histories: Sequence[np.ndarray]) -> np.ndarray:
    """`index.statistics`; where the histories are beginnings of one, as a user's are, at the price of that one."""
    longest = max(histories, key=len)
    if len(histories) > 1 and all(np.array_equal(longest[: len(history)], history) for history in histories):
        return index.statistics_along(longest)[[len(history) for history in histories]]
    return index.statistics(histories)


def to_dataset(examples: Sequence[RankingExample]) -> Any:
    """A `datasets.Dataset` with one row an example, in dense ids: what the trainer takes."""
    from datasets import Dataset

    columns = {}
    for name in RankingExample.__dataclass_fields__:
        values = [getattr(example, name) for example in examples]
        if any(value is not None for value in values):
            columns[name] = [value.tolist() if isinstance(value, np.ndarray) else value for value in values]
    return Dataset.from_dict(columns)


def _positions(dataset: SequenceDataset, per_user: int | None) -> np.ndarray:
    """Training positions with a history, the latest `per_user` of each user."""
    positions = dataset.positions("train")
    positions = positions[~np.isin(positions, dataset.offsets[:-1])]
    if per_user is None:
        return positions
    users = dataset.user_of(positions)
    later = np.searchsorted(users, users, side="right") - np.arange(len(users))  # how many of the user's are left
    return positions[later <= per_user]


def _scored(
    dataset: SequenceDataset, retriever: Retriever, positions: np.ndarray, description: str, progress: bool
) -> Iterator[ScoredBlock]:
    """Positions in blocks, with the history before each and the scores of all items."""
    fused, rows, retriever = isinstance(retriever, FusedRetriever), rows_at_once(dataset.num_items), frozen(retriever)
    with tqdm(total=len(positions), desc=description, unit="list", disable=not progress) as bar:
        for start in range(0, len(positions), rows):
            block = positions[start : start + rows]
            histories = [dataset.item_sequence[dataset.history(position)] for position in block]
            scores = retriever.retriever.score(histories) if fused else retriever.score(histories)
            yield block, histories, scores, retriever.join(scores, histories) if fused else scores
            bar.update(len(block))


def _retrieve(dataset: SequenceDataset, blocks: Iterator[ScoredBlock], count: int) -> Iterator[RankingExample]:
    for block, histories, scores, chosen_by in blocks:
        items, _ = top_k(exclude_history(chosen_by, never_ranked(histories, dataset.settings.repeats)), count)
        for row, position in enumerate(block):
            candidates = items[row][items[row] != PADDING_ITEM]
            yield _example(dataset, position, candidates, scores[row][candidates])


def _uniform(
    dataset: SequenceDataset, blocks: Iterator[ScoredBlock], count: int, generator: np.random.Generator
) -> Iterator[RankingExample]:
    for block, histories, scores, _ in blocks:
        away = never_ranked(histories, dataset.settings.repeats)
        for row, position in enumerate(block):
            target = dataset.item_sequence[position]
            free = np.setdiff1d(np.arange(1, dataset.num_items + 1), np.append(away[row], target))
            drawn = generator.choice(free, size=min(count - 1, len(free)), replace=False)
            candidates = np.append(target, drawn)
            yield _example(dataset, position, candidates, scores[row][candidates])


def _example(
    dataset: SequenceDataset, position: int, candidates: np.ndarray, retrieval_scores: np.ndarray
) -> RankingExample:
    history = dataset.history(position)
    label = np.flatnonzero(candidates == dataset.item_sequence[position])
    return RankingExample(
        user=int(dataset.user_of(position)),
        history=dataset.item_sequence[history].astype(np.int64),
        ratings=dataset.ratings[history],
        candidates=candidates.astype(np.int64),
        retrieval_scores=retrieval_scores,
        label=int(label[0]) if len(label) else -1,
    )


def _chosen(example: RankingExample, rows: np.ndarray) -> RankingExample:
    """The list of these candidates, with what it carries of them."""
    rows = rows[rows < len(example.candidates)]
    names = [name for name in OF_CANDIDATES if getattr(example, name) is not None]
    carried = {name: getattr(example, name)[rows] for name in ("candidates", *names)}
    place = np.flatnonzero(rows == example.label)
    return replace(example, **carried, label=int(place[0]) if len(place) else -1)
