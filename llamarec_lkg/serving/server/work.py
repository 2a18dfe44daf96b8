"""What is asked for, checked in the event loop and ranked in the thread of batches."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ...data.schema import USER
from ...data.values import clean_text
from ...utils.errors import LKGError
from ..batch_rows import known, rank_each, why_not
from ..questions import Ranking, Request
from ..recommender import Recommender
from .messages import RANKED, Item
from .problems import Problem


SHOWN_NAMES = 20

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Key:
    """What lists of one batch have in common: adapter, how many candidates are looked for, and whether there are more
    than one forward pass ranks. A list so long would hold up those that are not."""

    adapter: str
    depth: int
    windows: bool


@dataclass(frozen=True)
class Asked:
    """A checked request, what of its ranking is to be told, and how many ids were left out of it."""

    request: Request
    k: int
    num_reasons: int
    left_out: int = 0


def check(
    recommender: Recommender,
    history: list[str],
    *,
    user: str | None,
    candidates: list[str] | None,
    repeats: str | None,
    leave_out_unknown: bool,
) -> tuple[Request, int]:
    """A checked request, and how many ids were left out of it.

    Raises:
        Problem: 422; it names the field.
    """
    sent = len(history) + len(candidates or ())
    if leave_out_unknown:
        history, candidates = known(recommender, history), known(recommender, candidates)
    left_out = sent - len(history) - len(candidates or ())
    try:
        return recommender.request(history, user=user, candidates=candidates, repeats=repeats), left_out
    except LKGError as error:
        raise Problem(422, str(error), field=_at_fault(recommender, history, candidates)) from None


def _at_fault(recommender: Recommender, history: list[str], candidates: list[str] | None) -> str:
    """The field of a refused request: the first unknown id, or candidates that repeat, or lack beside no retriever."""
    for name, ids in (("history", history), ("candidates", candidates or [])):
        for place, raw in enumerate(ids):
            if raw not in recommender.processor.dense_item:
                return f"{name}/{place}"
    return "candidates"


def key_of(recommender: Recommender, adapter: str, asked: Asked) -> Key:
    processor, candidates = recommender.processor, asked.request.candidates
    if candidates is None:
        return Key(adapter, max(asked.k, processor.num_candidates), asked.k > processor.num_candidates)
    longest = processor.longest_list
    return Key(adapter, processor.num_candidates, longest is not None and len(candidates) > longest)


def rank_batch(recommenders: Mapping[str, Recommender], key: Key, batch: Sequence[Asked]) -> list[bytes | Exception]:
    """The answers as JSON, or why there is none."""
    recommender = recommenders[key.adapter]
    rankings = rank_each(recommender, [asked.request for asked in batch], key.depth)
    found = list(zip(batch, rankings, strict=True))
    reasons = [why_not(ranking, asked.request, asked.k) for asked, ranking in found]
    told = iter(_described(recommender, [one for one, reason in zip(found, reasons, strict=True) if not reason]))
    return [
        _problem(ranking, reason) if reason else next(told) for ranking, reason in zip(rankings, reasons, strict=True)
    ]


def _problem(ranking: Ranking | str, reason: str) -> Problem:
    return Problem(422 if isinstance(ranking, str) or not len(ranking.order) else 500, reason)


def _described(recommender: Recommender, found: Sequence[tuple[Asked, Ranking]]) -> list[bytes | Exception]:
    """All at once; one by one where that fails, so that no list takes another along."""
    if not found:
        return []
    how = {"k": [asked.k for asked, _ in found], "num_reasons": [asked.num_reasons for asked, _ in found]}
    try:
        lists = recommender.describe_all([ranking for _, ranking in found], **how)
        return [
            b'{"items":%b,"left_out":%d}' % (RANKED.dump_json(items), asked.left_out)
            for items, (asked, _) in zip(lists, found, strict=True)
        ]
    except Exception as error:
        if len(found) > 1:
            logger.warning(f"{len(found)} lists are described one by one, as together they could not be: {error!r}")
            return [answer for one in found for answer in _described(recommender, [one])]
        logger.exception("A ranked list could not be described.")
        return [error]


def item_of(recommender: Recommender, item_id: str) -> Item | None:
    """What is known of an item; nothing of people."""
    processor = recommender.processor
    if (dense := processor.dense_item.get(item_id)) is None:
        return None
    graph, found = processor.knowledge_graph, {}
    if (node := int(graph.item_nodes[dense])) >= 0:
        _, codes, targets = graph.neighbours(np.array([node]))
        for code, target in zip(codes.tolist(), targets.tolist(), strict=True):
            names = found.setdefault(graph.relations[code // 2], [])
            if len(names) < SHOWN_NAMES and graph.entity_types[graph.node_types[target]] != USER:
                names.append(clean_text(graph.node_names[target] or graph.node_keys[target]))
    relations = {name: names for name, names in found.items() if names}
    return Item(item_id=item_id, title=processor.titles[dense - 1], relations=relations)
