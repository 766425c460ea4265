"""Calibration of the rewards on real samples, without which a reward has no scale to compare it with."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from rich.console import Console

from redif_ray.diffusion.noise import Stream
from redif_ray.job.session import INITIAL, Session
from redif_ray.learner.samples import parted
from redif_ray.rewards import calibration as rewards_calibration

Calibration = dict[str, dict[str, float]]


def calibration(run: Session, console: Console) -> Calibration:
    """Return {term: {"self", "other_seed", "init", "spread"}}, print it and keep it in the run folder.

    The teacher is compared with itself, with its images of other noises, and with the untrained student. A resumed run
    takes the stored values.
    """
    result = run.folder.state.get("calibration")
    if result is None:
        result = _measure(run)
        run.folder.update_state(calibration=result)
    console.print(rewards_calibration.table(result))
    return result


def _measure(run: Session) -> Calibration:
    count = run.config.reward.calibration
    samples = run.sample(Stream.CALIBRATION, count, INITIAL)
    first = run.plan.deploy(Stream.CALIBRATION, count)
    # The next groups of the stream have other noises; with the conditions of the first groups they are "other seeds".
    units = run.plan.deploy(Stream.CALIBRATION, 2 * count)
    by_group = dict(zip(range(count), samples.conditions, strict=True))
    others = [
        replace(s, groups=groups, conditions=tuple(by_group[g - count] for g in groups))
        for s in units
        if (groups := tuple(g for g in s.groups if g >= count))
    ]
    _, other = run.ask_reward("targets", [(unit,) for unit in others])
    rewards_calibration.check_range(samples.targets)
    targets = parted(samples.targets, first)
    same, _ = run.compared(first, targets, targets)
    other_seed, _ = run.compared(first, parted(np.concatenate(other), first), targets)
    return rewards_calibration.calibrate(same, other_seed, samples.terms)
