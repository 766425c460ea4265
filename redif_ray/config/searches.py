"""Sections for searches over many trials: of step schedules, and of settings of a recipe."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue, field_validator

from redif_ray.config.base import ON_RESUME, Location, Positive, Strict

Sampler = Annotated[
    Literal["tpe", "gp", "cmaes", "random", "grid"],
    Field(
        description="The sampler of proposals: tpe, gp (Gaussian process), cmaes, random or grid. gp needs the fewest "
        "trials; grid covers few settings evenly."
    ),
]


class Descent(Strict):
    """The search engine gradient: Adam on the levels of a schedule."""

    iterations: Positive = Field(80, description="Optimiser steps of Adam, at least 1.")
    batch: Positive = Field(32, description="Noises of an optimiser step, from 1 to the last of search.rungs.")
    lr: float = Field(
        0.05, gt=0, description="Learning rate of the logits of the increments and of the shifts, above 0."
    )
    network_timesteps: bool = Field(
        False,
        description="Whether to fit also the timesteps that the network is called with. Caption models do not take "
        "them.",
    )


class Frechet(Strict):
    """A Fréchet distance that is added to a search's objective."""

    weight: float = Field(
        0.0,
        ge=0,
        description="Factor, from 0, of the Fréchet distance to the teacher's images of the bank. 0 leaves it out.",
    )
    encoder: Location = Field(
        "random-features",
        description="Encoder of the distance: random-features, or a CLIP's folder or hub id. It must not be "
        "evaluation.judge.",
    )


class Adaptive(Strict):
    """Agents that choose the levels of each image (`redif search --adaptive`)."""

    prices: tuple[Annotated[float, Field(gt=0)], ...] | None = Field(
        None,
        min_length=1,
        description="Distances that a network call must save, each above 0, one agent for each. null takes the "
        "saving of the searched schedules around each N that has two neighbours.",
    )
    max_calls: int = Field(12, ge=2, le=64, description="Network calls after which an image is finished, from 2 to 64.")
    noises: Positive = Field(
        2048, description="Noises that the agents are trained on, each with the teacher's image, at least 1."
    )
    iterations: Positive = Field(60, description="Iterations of PPO, at least 1.")
    batch: int = Field(2048, ge=32, description="Steps of episodes in an iteration, at least 32.")
    envs: Positive = Field(64, description="Images that each worker works on at once, at least 1.")
    lr: float = Field(1e-3, gt=0, description="Learning rate of PPO, above 0.")


class Search(Strict):
    """The search for step schedules (`redif search`)."""

    steps: tuple[Annotated[int, Field(ge=2, le=64)], ...] | None = Field(
        None,
        min_length=1,
        description="Numbers of steps N for which to find a schedule, each from 2 to 64. null is student.steps.",
    )
    student: Location | None = Field(
        None, description="A run or an exported student to find the schedule for. null is the teacher."
    )
    solver: Literal["euler", "heun", "dpmpp_2m"] = Field(
        "euler", description="The solver of the schedule: euler, heun or dpmpp_2m. Students are deployed with euler."
    )
    engine: Literal["tune", "gradient", "both"] = Field(
        "tune", description="The engine: tune (trials), gradient (back-propagation to the levels) or both."
    )
    sampler: Sampler = "gp"
    bases: tuple[str, ...] | None = Field(
        None, min_length=1, description="Named schedules that trials warp, at least one. null is all."
    )
    shape_trials: Positive = Field(40, description="Trials of a base's tilt and bow, at each N, at least 1.")
    refine_trials: int = Field(60, ge=0, description="Trials of single increments around the best, at each N, from 0.")
    network_timestep_trials: int = Field(
        0,
        ge=0,
        description="Trials of the network's timesteps at the levels found, at each N, from 0. Caption models do not "
        "take them.",
    )
    rungs: tuple[Positive, ...] = Field(
        (64, 256),
        min_length=1,
        description="Noises that a trial has seen before each cut, rising multiples of unit_noises; the last is the "
        "whole bank.",
    )
    reduction: float = Field(
        3.0, gt=1, description="A cut leaves the best 1 in so many trials, above 1. Raise it to cut more."
    )
    concurrent: Positive = Field(
        1,
        description="Trials that run at once, at least 1. Each proposal knows only the trials that ended before. One "
        "trial is spread over all workers already.",
    )
    unit_noises: Positive = Field(
        32, description="Noises of a work unit, at least 1. Lower it to keep more workers busy."
    )
    descent: Descent = Descent()
    frechet: Frechet = Frechet()
    adaptive: Adaptive = Field(Adaptive(), json_schema_extra=ON_RESUME)


class Sweep(Strict):
    """Trials of settings over whole runs (`redif sweep`)."""

    space: dict[str, JsonValue] = Field(
        default_factory=dict,
        description="Settings to vary, by dotted key: uniform, loguniform or integer(low, high), choice(a, b) or a "
        "list.",
    )
    sampler: Sampler = "gp"
    scheduler: Literal["none", "asha", "pbt"] = Field(
        "none",
        description="none runs every trial to its end, asha cuts the worse ones, pbt moves settings between "
        "sweep.trials members.",
    )
    trials: Positive = Field(
        16, description="Runs beside the recipe as it is, at least 1; of pbt the members, at least 2."
    )
    metric: str = Field(
        "validation/reward",
        description="Metric by which trials are compared, higher is better: validation/reward, validation/recall or "
        "validation/TERM.",
    )
    rungs: tuple[Positive, ...] = Field(
        (), description="Rounds after which asha cuts trials, rising multiples of validation.every."
    )
    reduction: float = Field(
        3.0, gt=1, description="A cut of asha leaves the best 1 in so many trials, above 1. Raise it to cut more."
    )
    generations: Positive = Field(4, description="How often pbt compares its members, the end included, at least 1.")
    concurrent: Positive = Field(
        1,
        description="Trials that run at once, at least 1. Each proposal knows only the trials that ended before. "
        "Raise it where the cluster has room.",
    )
    repeats: int = Field(
        3, ge=0, description="Other seeds with which the best settings and the recipe are run again in the end, from 0."
    )

    @field_validator("space", mode="before")
    @classmethod
    def _flat(cls, space: Any) -> Any:
        """Turn nested keys, which dotted overrides give, into dotted ones."""
        return dict(_dotted(space)) if isinstance(space, dict) else space


def _dotted(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _dotted(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
