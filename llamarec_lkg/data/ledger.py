"""What is lost between a source and the sequences made of it, so that nothing goes in silence."""

from __future__ import annotations


EXACT_DUPLICATES = "that repeat user, item and time of another"


class Ledger:
    """Counts interactions that are left out, by reason.

    Args:
        read: interactions of the source.
    """

    def __init__(self, read: int) -> None:
        self.read = read
        self.lost: dict[str, int] = {}

    def lose(self, reason: str, count: int) -> None:
        if count:
            self.lost[reason] = self.lost.get(reason, 0) + count

    def describe(self, name: str) -> str:
        """One sentence: what was read, kept and left out."""
        kept = self.read - sum(self.lost.values())
        lost = "; ".join(f"{count:,} {reason}" for reason, count in self.lost.items())
        return f"{name}: of {self.read:,} interactions {kept:,} are kept. Left out: {lost or 'none'}."
