"""What is looked for over many trials: step schedules, and settings of a recipe."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue, field_validator

from redif_ray.config.base import ON_RESUME, Positive, Strict


class Descent(Strict):
    iterations: Positive = Field(80, description="optimiser steps (Adam)")
    batch: Positive = Field(32, description="noises a step")
    lr: float = Field(0.05, gt=0, description="of the logits of the increments, and of the shifts")
    network_timesteps: bool = Field(
        False, description="also fit the timesteps that the network is called with; not for captions"
    )


class Frechet(Strict):
    weight: float = Field(0.0, ge=0, description="of the Fréchet distance to the teacher's images of the bank")
    encoder: str = Field("random-features", description="its features: these, or a CLIP's folder or hub id")


class Adaptive(Strict):
    prices: tuple[Annotated[float, Field(gt=0)], ...] | None = Field(
        None, min_length=1, description="an agent each: the distance that a network call must save; None: what the "
        "searched schedules save around each N that has two neighbours"
    )
    max_calls: int = Field(12, ge=2, le=64, description="network calls after which an image is finished")
    noises: Positive = Field(2048, description="that the agents are trained on, with the teacher's image of each")
    iterations: Positive = Field(60, description="of PPO")
    batch: int = Field(2048, ge=32, description="steps of episodes an iteration")
    envs: Positive = Field(64, description="images at once on each worker")
    lr: float = Field(1e-3, gt=0)


class Search(Strict):
    steps: tuple[Annotated[int, Field(ge=2, le=64)], ...] | None = Field(
        None, min_length=1, description="each N to find a schedule for; None: student.steps"
    )
    student: str | None = Field(None, description="a run or an exported student to find it for; None: the teacher")
    solver: Literal["euler", "heun", "dpmpp_2m"] = Field("euler", description="euler is how students are deployed")
    engine: Literal["tune", "gradient", "both"] = Field("tune", description="gradient: back-propagate to the levels")
    sampler: Literal["tpe", "gp", "cmaes", "random", "grid"] = "gp"
    bases: tuple[str, ...] | None = Field(None, min_length=1, description="named schedules to warp; None: all")
    shape_trials: Positive = Field(40, description="trials of a base's tilt and bow, at each N")
    refine_trials: int = Field(60, ge=0, description="trials of single increments around the best, at each N")
    network_timestep_trials: int = Field(
        0, ge=0, description="trials of the network's timesteps at the levels found, at each N; not for captions"
    )
    rungs: tuple[Positive, ...] = Field((64, 256), min_length=1, description="noises a trial sees before each cut")
    reduction: float = Field(3.0, gt=1, description="a cut leaves the best 1 in so many")
    concurrent: Positive = Field(1, description="trials at once; one is spread over all workers, and knows all before")
    unit_noises: Positive = Field(32, description="noises a piece of work")
    descent: Descent = Descent()
    frechet: Frechet = Frechet()
    adaptive: Adaptive = Field(Adaptive(), json_schema_extra=ON_RESUME)


class Sweep(Strict):
    space: dict[str, JsonValue] = Field(
        default_factory=dict, description="by dotted key: uniform|loguniform|integer(low, high), choice(a, b) or a list"
    )
    sampler: Literal["tpe", "gp", "cmaes", "random", "grid"] = "gp"
    scheduler: Literal["none", "asha", "pbt"] = Field("none", description="pbt: sweep.trials members, settings move")
    trials: Positive = Field(16, description="runs beside the recipe as it is")
    metric: str = Field("validation/reward", description="or validation/recall, validation/TERM; higher is better")
    rungs: tuple[Positive, ...] = Field((), description="asha: rounds after which trials are cut")
    reduction: float = Field(3.0, gt=1, description="asha: a cut leaves the best 1 in so many")
    generations: Positive = Field(4, description="pbt: how often members are compared, the end included")
    concurrent: Positive = Field(1, description="trials at once, where the cluster has room")
    repeats: int = Field(3, ge=0, description="other seeds for the best settings and for the recipe, in the end")

    @field_validator("space", mode="before")
    @classmethod
    def _flat(cls, space: Any) -> Any:
        """Nested keys, as dotted overrides give them, become dotted ones."""
        return dict(_dotted(space)) if isinstance(space, dict) else space


def _dotted(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _dotted(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
