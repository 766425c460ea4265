"""Calibration of the rewards on real samples: without it a reward number means nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from rich.console import Console

from redif_ray.diffusion.noise import Stream
from redif_ray.pipeline import build
from redif_ray.pipeline.session import INITIAL, Session
from redif_ray.rewards import calibration as rewards_calibration
from redif_ray.rewards.base import RewardInputs

Calibration = dict[str, dict[str, float]]


def calibration(run: Session, console: Console) -> Calibration:
    """Each term for teacher against itself, against its other seeds, and the untrained student; printed and kept."""
    known = run.folder.state.get("calibration")
    if known is None:
        known = _measure(run)
        run.folder.update_state(calibration=known)
    console.print(rewards_calibration.table(known))
    return known


def _measure(run: Session) -> Calibration:
    count = run.config.reward.calibration
    samples = run.sample(Stream.CALIBRATION, count, INITIAL)
    # The next groups of the stream start from other noises; with the conditions of the first they are "another seed".
    shards = run.plan.deploy(Stream.CALIBRATION, 2 * count)
    by_group = dict(zip(range(count), samples.conditions, strict=True))
    others = [
        replace(s, groups=groups, conditions=tuple(by_group[g - count] for g in groups))
        for s in shards
        if (groups := tuple(g for g in s.groups if g >= count))
    ]
    answers: list[Any] = [
        run.reward[i % len(run.reward)].targets.options(num_returns=2).remote(shard) for i, shard in enumerate(others)
    ]
    other = torch.from_numpy(np.concatenate(run.get([data for _, data in answers])))
    teacher, student = torch.from_numpy(samples.targets), torch.from_numpy(samples.images)
    conditions = samples.conditions
    return rewards_calibration.calibrate(
        build.rewards(run.config, run.teacher, "cpu"),
        RewardInputs(teacher, teacher, conditions),
        RewardInputs(other, teacher, conditions),
        RewardInputs(student, teacher, conditions),
    )
