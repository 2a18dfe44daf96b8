"""Whether facts, links and items meet: what comes from two editions, or is spelled in two ways, ties nothing."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

import pandas as pd

from ..utils.errors import LKGError
from .schema import ITEM_ID, Triples, require_columns
from .values import spell_id


ENTITY_ID = "entity_id"
logger = logging.getLogger(__name__)


def checked_links(triples: Triples, items: Iterable[str]) -> Triples:
    """The same facts, with a word where some of the links to `items` (raw ids) meet nothing, and an `LKGError` where
    none meets anything."""
    if len(triples) and (unmet := unmet_links(triples, items)):
        links = triples.item_of_entity
        what = "items are in no fact" if _by_name(links) else "links lead from no fact or to no item"
        logger.warning(f"{len(unmet)} of {len(links)} {what}: {_some(unmet)}. Compare how they are spelled.")
    return triples


def unmet_links(triples: Triples, items: Iterable[str]) -> list[str]:
    """The linked entities that stand in no fact, or are linked to none of `items` (raw ids); an `LKGError` where there
    are facts and that is so of all."""
    links, in_facts, known = triples.item_of_entity, entities_of(triples), dict.fromkeys(items)
    unmet = [entity for entity, raw in links.items() if entity not in in_facts or raw not in known]
    if len(triples) and len(unmet) == len(links):
        found = f"None of the {len(triples)} facts is about an item: they name {_some(in_facts)}"
        if _by_name(links):
            raise LKGError(
                f"{found}, the items are {_some(known)}. Spell them alike, or say in a table `links` "
                "(`entity_id`, `item_id`) which is which."
            )
        raise LKGError(
            f"{found}, links lead from {_some(links)} to {_some(links.values())}, and the items are {_some(known)}. "
            "Take facts, links and items of one edition, spelled alike, or leave out both facts and links."
        )
    return unmet


def _by_name(links: Mapping[str, str]) -> bool:
    return all(entity == raw for entity, raw in links.items())


def tell_of_people(triples: Triples, user_ids: Iterable[str]) -> None:
    """A word where ids of users and of items are alike, and nobody has said which of them the facts are about."""
    if unclear := triples.assumed.intersection(user_ids, entities_of(triples)):
        at = next(row for row, ends in enumerate(zip(triples.heads, triples.tails, strict=True)) if unclear & {*ends})
        head, relation, tail = triples.heads[at], triples.relations[at], triples.tails[at]
        logger.warning(
            f"{len(unclear)} ids in the triples are ids of items and of users, and are taken for items: {head!r} "
            f"{relation!r} {tail!r}, for one. If such a fact is about a user, say so in a column `head_type` or "
            "`tail_type` of the triples: 'user' leaves it out, 'item' says that this is right."
        )


def entities_of(triples: Triples) -> dict[str, None]:
    """What the facts are about, in their order."""
    return dict.fromkeys([*pd.unique(triples.heads), *pd.unique(triples.tails)])


def _some(ids: Iterable[str]) -> str:
    shown = [repr(raw) for raw, _ in zip(ids, range(4), strict=False)]
    return ", ".join([*shown[:3], *["..."] * (len(shown) > 3)]) or "nothing"


def links_of(frame: pd.DataFrame, table: str) -> dict[str, str]:
    """Entity id -> raw item id, from a table with `item_id` and `entity_id`; blank links are left out with a word, and
    of an entity that is linked to several items the last counts, with a word."""
    require_columns(frame, [ITEM_ID, ENTITY_ID], table)
    pairs = list(zip(map(spell_id, frame[ENTITY_ID]), map(spell_id, frame[ITEM_ID]), strict=True))
    links = {entity: item for entity, item in pairs if entity is not None and item is not None}
    if blank := sum(entity is None or item is None for entity, item in pairs):
        logger.warning("%d of %d rows of %s have a blank and link nothing.", blank, len(pairs), table)
    if shared := sum(links.get(entity, item) != item for entity, item in pairs if item is not None):
        logger.warning(
            "%d of %d rows of %s link an entity that a later row links to another item; the last counts.",
            shared, len(pairs), table,
        )  # fmt: skip
    return links
