"""Why an item stands where it stands: the parts of its score, as records and as a sentence.

A score is a sum (see `ScoreFusion`), so the shares of all reasons add up to it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..data.schema import CO_RATED, RankingExample
from ..data.values import clean_text
from ..graph.ranges import ranks
from ..ranking.heads import PartWeights
from ..ranking.processing_llamarec_lkg import LlamaRecLKGProcessor
from .questions import Ranking


SHOWN_REASONS = 4  # in print
FAINT = 0.05  # of the strongest path's share
LEAST = 1e-6  # a share that is more than rounding
LANGUAGE_MODEL, RETRIEVER, POPULARITY = "language model", "retriever", "popularity"
PATH, OTHER_PATHS = "path", "other paths"
WINDOW = "window"


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


def described(
    processor: LlamaRecLKGProcessor, ranking: Ranking, weights: PartWeights, k: int, num_reasons: int
) -> list[Recommendation]:
    """The best `k` of a ranked list, with reasons; `weights` are those of the fusion that scored it."""
    rows, example, names = ranking.order[:k], ranking.example, processor.relations
    parts, scores, items = ranking.parts[rows].astype(float), ranking.scores[rows], example.candidates[rows]
    alone, along = parts[:, :3].tolist(), parts[:, 3:]
    windows, by_size = (scores - parts.sum(1)).tolist(), np.argsort(-along, axis=1, kind="stable").tolist()
    preferences, paths = None, [[] for _ in rows]
    if ranking.preferences is not None:
        preferences = dict(zip(names, ranking.preferences.tolist(), strict=True))
        paths = strongest_paths(processor, example, rows, along != 0, preferences, weights, num_reasons)
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
                retrieval_score=float(example.retrieval_scores[rows[place]]),
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
    processor: LlamaRecLKGProcessor,
    example: RankingExample,
    rows: np.ndarray,
    counted: np.ndarray,
    preferences: Mapping[str, float],
    weights: PartWeights,
    count: int,
) -> list[list[Reason]]:
    """The paths to name for some candidates of a list: for each at most `count`, the strongest through each entity
    first.

    Args:
        rows (shape (K,)): which candidates.
        counted (`bool`, shape (K, R)): along which relations their scores have a part.
        preferences: of the user, by relation.
        weights: those of the fusion that scored the list.
    """
    named: list[list[Reason]] = [[] for _ in rows]
    if not count:
        return named
    index, names, candidates = processor.evidence_index, processor.relations, example.candidates[rows]
    which, items, columns, main, recent = evidence_terms(processor, example.history, candidates)
    along = index.column_relation[columns]
    preferred = np.array([preferences[name] for name in names])
    shares = weights.evidence_weight.item() * preferred[along] * main
    shares = shares + weights.recent_weight.double().numpy(force=True)[along] * recent
    shares = np.where(counted[which, along], shares, 0.0)
    for term in _varied(which, shares, _through(processor, columns, candidates[which]), count):
        name, row = names[along[term]], which[term]
        nodes = _names_along(processor, int(items[term]), int(columns[term]), int(candidates[row]))
        named[row].append(Reason(PATH, float(shares[term]), name, preferences[name], nodes))
    return named


def evidence_terms(
    processor: LlamaRecLKGProcessor, history: np.ndarray, candidates: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Every path that the evidence of some candidates runs through, once for each item of the history, (T,), candidate
    by candidate: index into the candidates, the item, the evidence index's column (a relation and the entity that it
    leads through), and the path's parts of the evidence and of the recent evidence along that relation."""
    index = processor.evidence_index
    which, places, columns, shared = index.contributions(history, candidates)
    keys = (which * (len(processor.titles) + 1) + history[places]) * len(index.column_node) + columns
    keys, first, term = np.unique(keys, return_index=True, return_inverse=True)
    parts = [
        np.bincount(term, weights=shared * one.history_weights(len(history))[places], minlength=len(keys))
        for one in (index, processor.recent_index)
    ]
    order = np.argsort(first)  # as they stand in the history
    first = first[order]
    return which[first], history[places[first]], columns[first], parts[0][order], parts[1][order]


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


def _varied(which: np.ndarray, shares: np.ndarray, through: np.ndarray, count: int) -> np.ndarray:
    """The `count` paths of each candidate that are named, candidate by candidate: by weight the first through each
    entity, then the second of each, ...: four films of one year are one thing to say. What weighs next to nothing
    beside the strongest comes last."""
    sizes, strongest = np.abs(shares), np.zeros(which.max(initial=-1) + 1)
    np.maximum.at(strongest, which, sizes)
    faint = sizes < FAINT * strongest[which]
    suffices = np.bincount(which[~faint], minlength=len(strongest)) >= count
    order = np.flatnonzero((sizes > 0) & ~(faint & suffices[which]))
    order = order[np.lexsort((-sizes[order], which[order]))]
    which, through, faint = which[order], through[order], faint[order]
    grouped = np.lexsort((through, which))
    begins = [np.diff(one[grouped], prepend=one[grouped][:1]) != 0 for one in (which, through)]
    turns = np.empty(len(order), dtype=np.int64)
    turns[grouped] = ranks(np.logical_or(*begins).cumsum())
    return order[np.lexsort((turns, faint, which))][ranks(which) < count]


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
