"""Relations that say the same backwards: Freebase states most facts in both directions, under two names."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np


def merge_inverses(facts: Mapping[str, np.ndarray], overlap: float = 0.9) -> dict[str, np.ndarray]:
    """Join relations that state the same facts in opposite directions; the name that comes first stays.

    Args:
        facts: relation -> distinct (head, tail) pairs, shape (T, 2).
        overlap: share of the smaller relation's facts that must appear, reversed, in the larger.
    """
    merged: dict[str, np.ndarray] = {}
    keys: dict[str, set[tuple[int, int]]] = {}
    for relation, pairs in sorted(facts.items()):
        reversed_keys = {(tail, head) for head, tail in pairs.tolist()}
        twin = next(
            (
                other
                for other, known in keys.items()
                if len(reversed_keys & known) >= overlap * min(len(reversed_keys), len(known)) > 0
                and max(len(reversed_keys), len(known)) <= 2 * min(len(reversed_keys), len(known))
            ),
            None,
        )
        if twin is None:
            merged[relation] = pairs
            keys[relation] = {(head, tail) for head, tail in pairs.tolist()}
        else:
            merged[twin] = np.unique(np.concatenate([merged[twin], pairs[:, ::-1]]), axis=0)
            keys[twin] |= reversed_keys
    return merged
