"""The parts that a run lost on its way, in words."""

from __future__ import annotations

from collections.abc import Mapping


def losses(counts: Mapping[str, int]) -> str:
    """Return the text for the numbers of lost workers, actors and work units by kind."""
    if not counts:
        return "nothing"
    return ", ".join(f"{n} {what}" for what, n in counts.items()) + "; started again, and no result has changed"
