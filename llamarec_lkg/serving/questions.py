"""What a recommender is asked, and what it answers, in dense ids."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..data.schema import RankingExample
from ..data.splits import EXCLUDED


@dataclass(frozen=True)
class Request:
    """A checked question to a [`Recommender`], in dense ids. Without candidates the retriever finds them, those of the
    history among them where `repeats` are allowed."""

    history: np.ndarray
    user: int
    candidates: np.ndarray | None
    repeats: str = EXCLUDED


@dataclass(frozen=True)
class Ranking:
    """A ranked list.

    Args:
        order (shape (C,)): indices into the candidates, best first.
        parts (shape (C, 3 + R)): what scores are the sum of: language model, retriever, popularity, and each relation.
        scores (shape (C,)): the sums of the parts, lowered in a long list so that they fall along the order.
        preferences (shape (R,), optional): the user's; None for a list of one, which is not scored.
    """

    example: RankingExample
    order: np.ndarray
    parts: np.ndarray
    scores: np.ndarray
    preferences: np.ndarray | None
