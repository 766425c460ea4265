"""A trial of the search: a schedule, scored on one rung after the other of the bank.

It is a class that Tune reuses: a process of its own would take longer than its network calls.
"""

from __future__ import annotations

import math
from typing import Any

import ray
from ray.exceptions import RayTaskError
from ray.tune import Trainable

from redif_ray.causes import cause
from redif_ray.diffusion.schedules import Times


class Evaluation(Trainable):
    """Each step scores the schedule on one rung more."""

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
        except RayTaskError as error:  # of this schedule; Tune would tell of it only after the trial is forgotten
            first = cause(error)
            return {"score": math.nan, "error": f"{type(first).__name__}: {first}"}
        return {"score": score}  # never that it is done: of a last result Tune tells no scheduler
