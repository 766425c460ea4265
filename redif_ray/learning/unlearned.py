"""Rounds that had nothing to learn from, because the reward does not tell the images of a group apart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MANY = 10  # such rounds in a row, after which a run warns


def unlearned(row: Mapping[str, Any]) -> bool:
    """Tell whether a round had nothing to learn from.

    row: the round's metrics. Siblings of every group scored alike, or the reward's gradient was 0.
    """
    return row.get("advantage/dead_group_fraction") == 1.0 or row.get("update/grad_norm") == 0.0


class Streak:
    """The number of rounds in a row that had nothing to learn from."""

    def __init__(self) -> None:
        self.rounds = 0

    def warning(self, row: Mapping[str, Any]) -> str | None:
        """Count one more round; return a text to warn with after `MANY` in a row, once for each streak."""
        self.rounds = self.rounds + 1 if unlearned(row) else 0
        if self.rounds != MANY:
            return None
        return (
            f"the last {MANY} rounds had nothing to learn from: the reward gives all images of a group the same value, "
            "or has no gradient there. Check that it tells images apart; a score that jumps needs more exploration "
            "(output.std, exploration.eta)"
        )
