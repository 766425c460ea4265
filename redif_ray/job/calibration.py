"""Calibration of the rewards on real samples, without which a reward has no scale to compare it with."""

from __future__ import annotations

import logging
from dataclasses import replace

from rich.console import Console

from redif_ray.diffusion.noise import Stream
from redif_ray.job.session import Session
from redif_ray.rewards import calibration as rewards_calibration
from redif_ray.runs.deployed import INITIAL

log = logging.getLogger(__name__)
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
    console.print(
        "reward of the teacher's image with itself, with its image of another noise, and with the untrained student's; "
        "spread is the standard deviation of the last",
        soft_wrap=True,
    )
    console.print(rewards_calibration.table(result), highlight=False, soft_wrap=True)
    for name in rewards_calibration.blind(result):
        if run.config.reward.terms[name].weight:
            log.warning("reward.terms.%s gives all images the same value, so nothing can be learned from it yet", name)
    return result


def _measure(run: Session) -> Calibration:
    count = run.config.reward.calibration
    seen, _ = run.sample(Stream.CALIBRATION, count, INITIAL)
    units = run.plan.deploy(Stream.CALIBRATION, count)
    # The next groups of the stream have other noises; with the conditions of the first groups they are "other seeds".
    others = [replace(unit, groups=tuple(group + count for group in unit.groups)) for unit in units]
    rewards_calibration.check_range(seen.darkest)
    same, _ = run.see(units, units)
    other_seed, _ = run.see(units, others)
    return rewards_calibration.calibrate(same.terms, other_seed.terms, seen.terms)
