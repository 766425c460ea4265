"""A trial of the search: one schedule, scored on one rung of the bank after the other.

Tune reuses the trial's process for other trials, because starting a process takes longer than a trial's network calls.
"""

from __future__ import annotations

import math
from typing import Any

import ray
from ray.exceptions import RayTaskError
from ray.tune import Trainable

from redif_ray.diffusion.schedules import Times
from redif_ray.faults import cause


class Evaluation(Trainable):
    """A trial for Tune, whose every step scores the schedule on the next rung."""

    def setup(self, config: dict[str, Any], evaluator: Any, rungs: tuple[int, ...], weights: dict[str, float]) -> None:
        self.evaluator, self.rungs, self.weights = evaluator, rungs, weights
        self._take(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._take(new_config)
        return True

    def _take(self, config: dict[str, Any]) -> None:
        network_timesteps = config["network_timesteps"]
        self.times = Times(tuple(config["timesteps"]), None if network_timesteps is None else tuple(network_timesteps))

    def step(self) -> dict[str, Any]:
        rung = self.rungs[self.iteration]
        try:
            score = ray.get(self.evaluator.scores.remote(self.times, rung, self.weights))
        except RayTaskError as error:  # returned, because Tune reports a raised error only after it forgets the trial
            first = cause(error)
            return {"score": math.nan, "error": f"{type(first).__name__}: {first}"}
        return {"score": score}  # without "done", because Tune hides a trial's last result from the scheduler
