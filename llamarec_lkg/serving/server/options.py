"""What a server allows, and how it gathers."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from ...utils.errors import LKGError


@dataclass(frozen=True)
class ServerOptions:
    """Bounds of a server. What is beyond one of them is refused before anything is computed for it.

    Args:
        batch_size (`int`): lists in one forward pass.
        batch_wait (`float`): seconds that a batch waits for as many lists as the one before it had. A client that
            is alone never waits.
        queue_size (`int`): lists that may wait; further ones are answered 429.
        timeout (`float`): seconds for an answer, reading the body included; then 504.
        max_body (`int`): bytes.
        max_history, max_candidates, max_k, max_reasons (`int`): of one request.
    """

    batch_size: int = 32
    batch_wait: float = 0.005
    queue_size: int = 512
    timeout: float = 30.0
    max_body: int = 1 << 20
    max_history: int = 1000
    max_candidates: int = 500
    max_k: int = 100
    max_reasons: int = 10

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            least = "0 or more" if field.name in ("batch_wait", "max_reasons") else "more than 0"
            if not (0 < value < math.inf or (value == 0 and least == "0 or more")):
                raise LKGError(
                    f"{field.name} is {value!r}; it is a finite number, {least}. Leave it out for {field.default!r}."
                )
