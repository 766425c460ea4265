"""The account of a work unit's scores: its parts follow one another in time, as a timeline draws them."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from redif_ray.config import load
from redif_ray.loop import PlainLoop
from redif_ray.models.student import get_weights
from redif_ray.planning.paths import absolute


@pytest.mark.slow
def test_rewards_and_jumps_are_booked_one_after_the_other(tmp_path: Path) -> None:
    config = absolute(load("smoke", [f"run.root={tmp_path}", "tracking.uri=off", "learner.anchor.gated=true"]))
    loop = PlainLoop(config)
    unit = loop.plan.units(loop.plan.phases[-1].first_round)[0]
    _, trajectories, final = loop.rollout.rollout(unit, get_weights(loop.student), "policy-1")
    _, targets = loop.reward.sent_targets(unit)
    meta, _ = loop.reward.score(unit, final, trajectories, targets)
    parts = [(work.ended - work.seconds, work.ended) for work in meta.work]
    assert {work.component for work in meta.work} == {"rewards", "anchor"}
    assert all(end <= start + 1e-3 for (_, end), (start, _) in pairwise(parts))
    assert next(work.network_calls for work in meta.work if work.component == "anchor") > 0
