"""The report of a round, for whoever watches a run from Python."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class RoundReport:
    """A round that has ended.

    done, rounds: the number of rounds that have ended, and of all rounds of the run.
    phase: what the round trained, such as warm_start or policy.
    metrics: the round's line of `metrics.jsonl`.
    reward: the reward of the last validation, at eta 0, higher is better; None: there was none yet.
    seconds_left: the estimated time until the run is over, with its evaluation and report; None: not known yet.
    """

    done: int
    rounds: int
    phase: str
    metrics: Mapping[str, Any]
    reward: float | None
    seconds_left: float | None
