"""Why an item stands where it stands: the parts of its score, as records and as a sentence.

A score is a sum (see `ScoreFusion`), so the shares of all reasons add up to it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from ..data.schema import CO_RATED
from ..data.values import clean_text
from ..graph.ranges import joined, owners, portions, ranks
from ..ranking.heads import PartWeights
from ..ranking.processing_llamarec_lkg import LlamaRecLKGProcessor
from .questions import Ranking


SHOWN_REASONS = 4  # in print
FAINT = 0.05  # of the strongest path's share
LEAST = 1e-6  # a share that is more than rounding
LANGUAGE_MODEL, RETRIEVER, POPULARITY = "language model", "retriever", "popularity"
PATH, OTHER_PATHS = "path", "other paths"
WINDOW = "window"
PAIRS_AT_ONCE = 2**14  # of an item of a history and a candidate, whose paths are looked for together


@dataclass(frozen=True)
class Reason:
    """One part of an item's score.

    Args:
        kind (`str`): "path", "other paths" (all that are not named, of one relation), "retriever", "popularity",
            "language model" or, in a list longer than one pass, "window" (what its window was lowered by, so that
            scores fall along the ranks).
        share (`float`): what it adds to the score.
        relation (`str`, optional): of a path.
        preference (`float`, optional): the user's weight of that relation, of 1 over all relations.
        nodes (`list[str]`): names along a path: item of the history, entity (if there is one), the item.
    """

    kind: str
    share: float
    relation: str | None = None
    preference: float | None = None
    nodes: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """In words, without the share."""
        if self.kind == PATH:
            relation = "rated by the same people" if self.relation == CO_RATED else self.relation
            through = " ".join(name for name in (relation, *self.nodes[1:-1]) if name)
            return f"{self.nodes[0]} -> {through} -> {self.nodes[-1]}"
        if self.kind == OTHER_PATHS:
            by_people = self.relation == CO_RATED
            return "people who rated the same items" if by_people else f"other paths along {self.relation}"
        if self.kind == POPULARITY:
            return "how many people chose it"
        if self.kind == WINDOW:
            return "coming after others of a long list"
        return "the order of the history (retriever)" if self.kind == RETRIEVER else "what the language model reads"

    @property
    def through(self) -> tuple[str | None, str]:
        """What a path runs through: relation and entity, which is empty on a direct edge."""
        return self.relation, self.nodes[1] if len(self.nodes) > 2 else ""

    def __str__(self) -> str:
        weight = "" if self.preference is None else f"  (preference {self.preference:.0%})"
        return f"{self.share:+.3f}  {self.text}{weight}"


@dataclass(frozen=True)
class Recommendation:
    """One ranked item.

    Args:
        rank (`int`): 1 is best.
        score (`float`): the ranker's logit; comparable within one list. It falls along the ranks: of a list that is
            longer than one pass, windows that would stand above those before them are lowered.
        retrieval_score (`float`): the first stage's.
        relations (`dict[str, float]`): part of the score that came through each relation of the graph, largest first.
        paths (`list[str]`): the named paths from the history, in the order of `reasons`.
        reasons (`list[Reason]`): the whole score taken apart, largest share first; their shares sum to `score`.
            Empty where there was nothing to compare with: a list of one is not ranked.
    """

    rank: int
    item_id: str
    title: str
    score: float
    retrieval_score: float
    relations: dict[str, float] = field(default_factory=dict)
    paths: list[str] = field(default_factory=list)
    reasons: list[Reason] = field(default_factory=list)

    def __str__(self) -> str:
        told = [reason for reason in self.reasons if abs(reason.share) >= 0.01 * abs(self.score)][:SHOWN_REASONS]
        lines = [f"{reason.share:+.3f}  {reason.text}" for reason in told]
        if left := len(self.reasons) - len(told):
            lines.append(f"{self.score - sum(reason.share for reason in told):+.3f}  {left} more")
        reasons = "".join(f"\n      {line}" for line in lines)
        return f"{self.rank:>3}. {self.title}  [{self.item_id}]  {self.score:+.3f}{reasons}"

    def sentence(self, count: int = 3) -> str:
        """The score, the `count` parts that weigh most, each relation with its strongest path, and what the others
        add."""
        if not self.reasons:
            return f"{self.title} is here with a score of {self.score:+.2f}; it was not compared with others."
        groups: dict[tuple[str, str | None], list[Reason]] = {}
        for reason in self.reasons:
            key = (PATH, reason.relation) if reason.relation else (reason.kind, None)
            groups.setdefault(key, []).append(reason)
        shares = {key: sum(reason.share for reason in group) for key, group in groups.items()}
        order = sorted(groups, key=lambda key: -abs(shares[key]))
        parts = [f"{shares[key]:+.2f} {_spoken(groups[key])}" for key in order[:count]]
        if rest := order[count:]:
            total, plural = sum(shares[key] for key in rest), "s" if len(rest) > 1 else ""
            parts.append(f"{total:+.2f} for {len(rest)} smaller reason{plural}")
        listed = parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
        return f"{self.title} scores {self.score:+.2f}: {listed}."


@dataclass(frozen=True)
class Shown:
    """What of a ranked list is shown: its best K candidates, and for each of them at most `count` paths.

    Args:
        rows (shape (K,)): the candidates among those of the list.
        count: paths of a candidate.
    """

    ranking: Ranking
    rows: np.ndarray
    count: int

    @cached_property
    def items(self) -> np.ndarray:
        return self.ranking.example.candidates[self.rows]

    @cached_property
    def along(self) -> np.ndarray:
        """Parts of the scores along each relation, shape (K, R)."""
        return self.ranking.parts[self.rows, 3:].astype(float)


def described(
    processor: LlamaRecLKGProcessor,
    rankings: Sequence[Ranking],
    weights: PartWeights,
    ks: Sequence[int],
    num_reasons: Sequence[int],
) -> list[list[Recommendation]]:
    """The best `k` of each ranked list, with reasons; `weights` are those of the fusion that scored them."""
    asked = zip(rankings, ks, num_reasons, strict=True)
    lists = [Shown(ranking, ranking.order[:k], count) for ranking, k, count in asked]
    # of many pairs the terms take room, and sorting them takes longer than for one list after the other
    pairs = [len(shown.rows) * len(shown.ranking.example.history) for shown in lists]
    parts = (strongest_paths(processor, lists[part], weights) for part in portions(pairs, PAIRS_AT_ONCE))
    paths = [named for part in parts for named in part]
    return [_told(processor, shown, named) for shown, named in zip(lists, paths, strict=True)]


def _told(processor: LlamaRecLKGProcessor, shown: Shown, paths: Sequence[Sequence[Reason]]) -> list[Recommendation]:
    """The candidates that are shown, with those of their paths that are named."""
    ranking, rows, items, along, names = shown.ranking, shown.rows, shown.items, shown.along, processor.relations
    parts, scores = ranking.parts[rows].astype(float), ranking.scores[rows]
    alone, windows = parts[:, :3].tolist(), (scores - parts.sum(1)).tolist()
    by_size, preferences = np.argsort(-along, axis=1, kind="stable").tolist(), None
    if ranking.preferences is not None:
        preferences = dict(zip(names, ranking.preferences.tolist(), strict=True))
    told = []
    for place, values in enumerate(along.tolist()):
        reasons = []
        if preferences is not None:
            own = zip((LANGUAGE_MODEL, RETRIEVER, POPULARITY, WINDOW), (*alone[place], windows[place]), strict=True)
            relations = {name: value for name, value in zip(names, values, strict=True) if value}
            reasons = reasons_for(paths[place], dict(own), relations, preferences)
        told.append(
            Recommendation(
                rank=place + 1,
                item_id=processor.item_ids[items[place] - 1],
                title=processor.titles[items[place] - 1],
                score=float(scores[place]),
                retrieval_score=float(ranking.example.retrieval_scores[rows[place]]),
                relations={names[column]: values[column] for column in by_size[place] if values[column]},
                paths=[reason.text for reason in reasons if reason.kind == PATH],
                reasons=reasons,
            )
        )
    return told


def reasons_for(
    paths: Sequence[Reason],
    parts: Mapping[str, float],
    relations: Mapping[str, float],
    preferences: Mapping[str, float],
) -> list[Reason]:
    """Take a score apart, largest share first.

    Args:
        paths: those of its paths that are named.
        parts: the score by part: "retriever", "popularity", "language model" and "window".
        relations: the same by relation; what the named paths leave of it is summed up.
        preferences: of the user, by relation.
    """
    rest = dict(relations)
    for reason in paths:
        rest[reason.relation] -= reason.share
    left = {name: share for name, share in rest.items() if abs(share) > LEAST}
    others = [Reason(OTHER_PATHS, share, name, preferences[name]) for name, share in left.items()]
    others += [Reason(name, share) for name, share in parts.items() if abs(share) > LEAST]
    return sorted([*paths, *others], key=lambda reason: -reason.share)


def strongest_paths(
    processor: LlamaRecLKGProcessor, lists: Sequence[Shown], weights: PartWeights
) -> list[list[list[Reason]]]:
    """The paths to name for the candidates of some lists: for each at most as many as are to be shown, the strongest
    through each entity first. A list that was not scored has none."""
    named: list[list[list[Reason]]] = [[[] for _ in shown.rows] for shown in lists]
    told = [place for place, shown in enumerate(lists) if shown.count and shown.ranking.preferences is not None]
    if not told:
        return named
    some, index, names = [lists[place] for place in told], processor.evidence_index, processor.relations
    sizes = np.array([len(shown.rows) for shown in some])
    own, candidates = owners(sizes), np.concatenate([shown.items for shown in some])
    which, items, columns, main, recent = evidence_terms(
        processor, [shown.ranking.example.history for shown in some], [shown.items for shown in some]
    )
    along = index.column_relation[columns]
    preferred = np.stack([shown.ranking.preferences for shown in some]).astype(float)
    shares = weights.evidence_weight.item() * preferred[own[which], along] * main
    shares = shares + weights.recent_weight.double().numpy(force=True)[along] * recent
    counted = np.concatenate([shown.along != 0 for shown in some])
    shares = np.where(counted[which, along], shares, 0.0)
    counts = np.array([shown.count for shown in some]).repeat(sizes)
    terms = _varied(which, shares, _through(processor, columns, candidates[which]), counts)
    of_candidate = [reasons for place in told for reasons in named[place]]
    found = (one[terms].tolist() for one in (which, along, items, columns, shares))
    for row, relation, item, column, share in zip(*found, strict=True):
        nodes = _names_along(processor, item, column, int(candidates[row]))
        preference = float(preferred[own[row], relation])
        of_candidate[row].append(Reason(PATH, share, names[relation], preference, nodes))
    return named


def evidence_terms(
    processor: LlamaRecLKGProcessor, histories: Sequence[np.ndarray], candidates: Sequence[np.ndarray]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Every path that the evidence of the candidates of some lists runs through, once for each item of the history,
    (T,), candidate by candidate: index into the candidates of all lists, the item, the evidence index's column (a
    relation and the entity that it leads through), and the path's parts of the evidence and of the recent evidence
    along that relation."""
    lengths, items = [len(history) for history in histories], joined(histories, np.int64)
    keys = owners(np.array(lengths, dtype=np.int64)) * (len(processor.titles) + 1) + items
    _, first, item = np.unique(keys, return_index=True, return_inverse=True)
    order = np.argsort(first)  # items are numbered by their keys here, and from here on as they stand in the history
    first, number = first[order], np.empty_like(order)
    number[order] = np.arange(len(order))
    heard = [
        np.bincount(number[item], joined([index.history_weights(length) for length in lengths], float), len(first))
        for index in (processor.evidence_index, processor.recent_index)
    ]
    items = items[first]
    once = np.split(items, np.searchsorted(first, np.cumsum(lengths)[:-1]))
    which, places, columns, shared = processor.evidence_index.contributions(once, candidates)
    main, recent = (shared * weights[places] for weights in heard)
    return which, items[places], columns, main, recent


def _names_along(processor: LlamaRecLKGProcessor, item: int, column: int, candidate: int) -> list[str]:
    """The names along a path: item of the history, entity if there is one, candidate."""
    graph, node = processor.knowledge_graph, int(processor.evidence_index.column_node[column])
    inner = [] if node == graph.item_nodes[candidate] else [clean_text(graph.node_names[node])]
    return [processor.titles[item - 1], *inner, processor.titles[candidate - 1]]


def _through(processor: LlamaRecLKGProcessor, columns: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """What each path to its candidate runs through, as a number: relation and entity, or the relation alone of a
    direct edge."""
    index = processor.evidence_index
    nodes = index.column_node[columns].astype(np.int64)
    direct = nodes == processor.knowledge_graph.item_nodes[candidates]
    width = len(processor.knowledge_graph.node_names) + 1
    return index.column_relation[columns].astype(np.int64) * width + np.where(direct, 0, nodes + 1)


def _varied(which: np.ndarray, shares: np.ndarray, through: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The paths of each candidate that are named, as many as `counts` (K,) says, candidate by candidate: by weight the
    first through each entity, then the second of each, ...: four films of one year are one thing to say. What weighs
    next to nothing beside the strongest comes last."""
    sizes, strongest = np.abs(shares), np.zeros(len(counts))
    np.maximum.at(strongest, which, sizes)
    faint = sizes < FAINT * strongest[which]
    suffices = np.bincount(which[~faint], minlength=len(strongest)) >= counts
    order = np.flatnonzero((sizes > 0) & ~(faint & suffices[which]))
    order = order[np.lexsort((-sizes[order], which[order]))]
    which, through, faint = which[order], through[order], faint[order]
    grouped = np.lexsort((through, which))
    begins = [np.diff(one[grouped], prepend=one[grouped][:1]) != 0 for one in (which, through)]
    turns = np.empty(len(order), dtype=np.int64)
    turns[grouped] = ranks(np.logical_or(*begins).cumsum())
    return order[np.lexsort((turns, faint, which))][ranks(which) < counts[which]]


def _spoken(group: Sequence[Reason]) -> str:
    """Reasons of one kind or relation in words, after their share."""
    best = max(group, key=lambda reason: (reason.kind == PATH, abs(reason.share)))
    if best.relation is None:
        return f"for {best.text}"
    example = ""
    if best.kind == PATH:
        entity = " ".join(name for name in best.nodes[1:-1] if name)
        example = f"{entity}, as in {best.nodes[0]}; " if entity else f"from {best.nodes[0]}; "
    return f"along {best.relation} ({example}preference {best.preference:.0%})"
