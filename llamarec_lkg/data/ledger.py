"""What is lost between a source and the sequences made of it, so that nothing goes in silence."""

from __future__ import annotations

from dataclasses import dataclass, field


EXACT_DUPLICATES = "that repeat user, item and time of another"


@dataclass
class Ledger:
    """Counts interactions by what became of them.

    Args:
        read (`int`): how many the source has.
        left_out (`dict[str, int]`): by reason; each interaction counts once.
        changed (`dict[str, int]`): of those that are read, by what is not as it came.
    """

    read: int = 0
    left_out: dict[str, int] = field(default_factory=dict)
    changed: dict[str, int] = field(default_factory=dict)

    def leave_out(self, reason: str, count: int) -> None:
        if count:
            self.left_out[reason] = self.left_out.get(reason, 0) + count

    def describe(self) -> str:
        """What was read, kept, left out and changed, in one or two sentences."""
        kept = self.read - sum(self.left_out.values())
        told = f"of {self.read:,} interactions {kept:,} are kept. Left out: {_listed(self.left_out)}."
        return f"{told} Not as they came: {_listed(self.changed)}." if self.changed else told


def _listed(counts: dict[str, int]) -> str:
    return "; ".join(f"{count:,} {reason}" for reason, count in counts.items()) or "none"
