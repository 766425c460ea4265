"""The spaces of a search's stages (see `schedules.warp`).

shape:   z = tilt u + bow u^2 on the increments of a named schedule; these two numbers reach every published optimum for
         images to a few per cent, whatever N is
refine:  N - 1 free logits, of all increments but the last, around the best schedule so far
network timesteps: N shifts of the network's timesteps, at the best levels (`schedules.shifted`)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from redif_ray.diffusion import schedules
from redif_ray.diffusion.levels import NoiseProcess
from redif_ray.diffusion.schedules import Schedule
from redif_ray.trials.space import Choice, Params, Range, Space

FLOOR = 0.02  # least share of the span of half log-SNR for an increment, unless the base has a smaller one
TILT, BOW, LOGIT, SHIFT = (-1.5, 1.5), (-1.5, 2.5), (-0.8, 0.8), (-0.9, 0.9)


def shape_space(bases: Sequence[str], steps: int) -> Space:
    """Return the space of the shape stage; N = 2 has no bow, because u^2 is the same at both increments."""
    space: Space = {"base": Choice(tuple(bases)), "tilt": Range(*TILT)}
    return space if steps == 2 else space | {"bow": Range(*BOW)}


def refine_space(steps: int) -> Space:
    return {f"z{i}": Range(*LOGIT) for i in range(steps - 1)}


def shift_space(steps: int) -> Space:
    return {f"shift{i}": Range(*SHIFT) for i in range(steps)}


def shaped(process: NoiseProcess, steps: int, params: Params) -> Schedule:
    tilt, bow = float(params["tilt"]), float(params.get("bow", 0))
    return schedules.build(process, steps, str(params["base"]), tilt=tilt, bow=bow)


def refined(process: NoiseProcess, centre: Schedule, params: Params) -> Schedule:
    logits = [float(params[f"z{i}"]) for i in range(centre.steps - 1)]
    return schedules.warped(process, centre, torch.tensor([*logits, 0.0]), floor(process, centre))


def shifted(process: NoiseProcess, centre: Schedule, params: Params) -> Schedule:
    return schedules.shifted(process, centre, torch.tensor([float(params[f"shift{i}"]) for i in range(centre.steps)]))


def floor(process: NoiseProcess, centre: Schedule) -> float:
    """Return the least share of the span of half log-SNR that an increment of a schedule around `centre` keeps."""
    grid = centre.levels.half_log_snr.clamp(*process.span)
    return min(FLOOR, float((grid.diff() / (grid[-1] - grid[0])).min()))
