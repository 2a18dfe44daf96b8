"""What the demo shows, without its layout: a history and preferences in, a ranked list and two figures in HTML out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import jinja2
import numpy as np

from ..data.schema import CO_RATED
from ..utils.hub import template_text
from .preferences import with_weights
from .reasons import PATH, Reason, Recommendation
from .recommender import Recommender


SHOWN_ITEMS = 10
SHOWN_PATHS = 3
FAINT = 0.005  # a share that would be written as nothing
COLORS = 8  # relations that have one of their own in `demo.css`
OTHER_RELATIONS = "other relations"
MOST_CHOICES = 20_000  # items that a browser can search through as one types


@dataclass(frozen=True)
class Answer:
    """A ranked list as the demo shows it.

    Args:
        items: all candidates, best first.
        own: preferences that the history tells.
        preferences: those that ranked the list.
    """

    items: list[Recommendation]
    own: dict[str, float]
    preferences: dict[str, float]

    @property
    def ranks(self) -> dict[str, int]:
        """Item id -> rank."""
        return {item.item_id: item.rank for item in self.items}


class DemoView:
    """Answers of a recommender, and their pictures.

    Args:
        recommender: with a retriever.
    """

    def __init__(self, recommender: Recommender):
        self.recommender = recommender
        average = recommender.preferences([]) if recommender.processor.relations else {}
        self.relations = tuple(average)
        """Those that the average user follows most come first."""

    def choices(self, history: Sequence[str] = ()) -> list[tuple[str, str]]:
        """(title, id) of what a history can be made of, by title; of a large catalogue what most people chose, and the
        first `history`. A title that is not the only one of its kind has its id beside it."""
        processor = self.recommender.processor
        most_chosen = np.argsort(-processor.log_counts[1:], kind="stable")[:MOST_CHOICES]
        listed = dict.fromkeys([*most_chosen.tolist(), *(processor.dense_item[raw] - 1 for raw in history)])
        titles = [processor.titles[item] for item in listed]
        twice = {title for title, count in zip(*np.unique(titles, return_counts=True), strict=True) if count > 1}
        pairs = [(processor.titles[item], processor.item_ids[item]) for item in listed]
        return sorted((f"{title} [{raw}]" if title in twice else title, raw) for title, raw in pairs)

    def first_history(self, count: int = 3) -> list[str]:
        """What most people chose."""
        order = np.argsort(-self.recommender.processor.log_counts[1:], kind="stable")
        return [self.recommender.item_ids[item] for item in order[:count]]

    def answer(self, history: Sequence[str], preferences: Mapping[str, float] | None = None) -> Answer:
        """Rank what the retriever finds for a history of raw ids, by preferences over all relations; by default those
        that the history tells. The errors of [`Recommender.recommend`]."""
        own = self.recommender.preferences(history) if self.relations else {}
        count = max(SHOWN_ITEMS, self.recommender.processor.num_candidates)
        given = preferences if self.relations else None
        items = self.recommender.recommend(history, preferences=given, k=count, num_reasons=SHOWN_PATHS)
        return Answer(items, own, own if given is None else dict(given))

    def move(self, history: Sequence[str], before: Answer, relation: str, weight: float) -> Answer:
        """The list with another weight of one relation; the other weights keep their proportions, and take the
        history's own where they are 0."""
        others = any(value for name, value in before.preferences.items() if name != relation)
        return self.answer(history, with_weights(before.preferences if others else before.own, {relation: weight}))

    # -- pictures -----------------------------------------------------------------------------------------------------

    def ranked(self, answer: Answer, own_ranks: Mapping[str, int], last_ranks: Mapping[str, int]) -> str:
        """The list with the parts of each score as a bar and the paths from the history.

        Args:
            own_ranks: ranks by the history's own preferences; what stands elsewhere now is marked.
            last_ranks: ranks before the last change, from which the items move.
        """
        items, kinds = answer.items[:SHOWN_ITEMS], [self._parts(item) for item in answer.items[:SHOWN_ITEMS]]
        low = min((sum(share for share in parts.values() if share < 0) for parts in kinds), default=0.0)
        high = max((sum(share for share in parts.values() if share > 0) for parts in kinds), default=0.0)
        rows = [
            {
                "item": item,
                "moved": own_ranks.get(item.item_id, item.rank) - item.rank,
                "offset": last_ranks.get(item.item_id, item.rank) - item.rank,
                "bar": self._bar(parts, low, high),
                "parts": [(name, self._color(name), share) for name, share in parts.items() if abs(share) >= FAINT],
                "paths": self._paths(item),
            }
            for item, parts in zip(items, kinds, strict=True)
        ]
        used = {name for parts in kinds for name, share in parts.items() if abs(share) >= FAINT}
        order = [*self.relations[:COLORS], OTHER_RELATIONS, "retriever", "language model", "popularity", "window"]
        legend = [(in_words(name), self._color(name)) for name in order if name in used]
        zero = 100 * -low / (high - low) if high > low else 0.0
        return _template("ranked").render(rows=rows, legend=legend, zero=zero, in_words=in_words)

    def compared(self, answer: Answer) -> str:
        """The retriever's order and the ranker's of the same candidates, side by side."""
        retrieved = sorted(answer.items, key=lambda item: -item.retrieval_score)
        at = {item.item_id: place for place, item in enumerate(retrieved, 1)}
        shown = answer.items[:SHOWN_ITEMS]
        lines = [(at[item.item_id], item.rank, at[item.item_id] - item.rank) for item in shown]
        ranks = answer.ranks
        left = [(place, item.title, ranks[item.item_id]) for place, item in enumerate(retrieved[:SHOWN_ITEMS], 1)]
        right = [(item.rank, item.title, at[item.item_id]) for item in shown]
        return _template("compared").render(left=left, right=right, lines=lines, candidates=len(retrieved))

    def _parts(self, item: Recommendation) -> dict[str, float]:
        """Part of the score -> its share, the largest first; relations without a colour of their own are one part."""
        parts: dict[str, float] = {}
        for reason in item.reasons:
            name = reason.relation or reason.kind
            if reason.relation and name not in self.relations[:COLORS]:
                name = OTHER_RELATIONS
            parts[name] = parts.get(name, 0.0) + reason.share
        return dict(sorted(parts.items(), key=lambda part: -part[1]))

    def _bar(self, parts: Mapping[str, float], low: float, high: float) -> list[dict[str, Any]]:
        """The parts as pieces of a bar from `low` to `high`, in percent of its width: what adds to the score lies to
        the right of zero, what takes from it to the left."""
        pieces, ends, width = [], {True: 0.0, False: 0.0}, (high - low) or 1.0
        for name, share in parts.items():
            start, ends[share > 0] = ends[share > 0], ends[share > 0] + share
            left = min(start, ends[share > 0]) - low
            piece = {"left": 100 * left / width, "width": 100 * abs(share) / width}
            pieces.append({**piece, "color": self._color(name), "text": f"{in_words(name)} {share:+.2f}"})
        return pieces

    def _paths(self, item: Recommendation) -> list[dict[str, Any]]:
        named = [reason for reason in item.reasons if reason.kind == PATH]
        strongest = max((abs(reason.share) for reason in named), default=1.0)
        return [self._path(reason, abs(reason.share) / strongest) for reason in named]

    def _path(self, reason: Reason, strength: float) -> dict[str, Any]:
        return {
            "start": reason.nodes[0],
            "relation": in_words(reason.relation),
            "entity": reason.through[1],
            "share": reason.share,
            "width": 1.5 + 4.5 * strength,
            "color": self._color(reason.relation),
        }

    def _color(self, name: str) -> str:
        """The class in `demo.css` of a part of the score."""
        if name in self.relations[:COLORS]:
            return f"lkg-c{self.relations.index(name)}"
        return "lkg-other" if name in (*self.relations, OTHER_RELATIONS) else f"lkg-{name.replace(' ', '-')}"


def in_words(name: str) -> str:
    """A relation, or another part of a score, as a person would write it."""
    if name == CO_RATED:
        return "rated by the same people"
    return name.removesuffix("_IS").replace("_", " ").lower() if name.isupper() else name


@cache
def _template(name: str) -> jinja2.Template:
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(template_text(f"space/{name}.html.j2"))
