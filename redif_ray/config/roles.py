"""The workers of a run: who samples trajectories, who scores them, and how they and the learner overlap."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, JsonValue, field_validator

from redif_ray.config.base import ALWAYS, LABELS, ON_RESUME, SECRET, Labels, Positive, Resources, Strict


class Workers(Strict):
    """What the roles have in common whose workers come and go."""

    max_workers: Positive = Field(1, description="as many as a run uses at most", json_schema_extra=ALWAYS)
    min_workers: Positive | None = Field(
        None, description="without which it neither starts nor goes on; the others join when there is room. None: all "
        "to start, one to go on", json_schema_extra=ALWAYS,
    )
    threads: Positive = 1
    cpus: float = Field(1, ge=0, json_schema_extra=ON_RESUME)
    gpus: float = Field(0, ge=0)
    resources: Resources = Field(
        default_factory=dict, description="custom resources of one worker, as {hand: 1}", json_schema_extra=ALWAYS
    )
    labels: Labels = Field(default_factory=dict, description=LABELS, json_schema_extra=ALWAYS)

    @property
    def first(self) -> int:
        """How many of them a run starts with."""
        return self.min_workers or self.max_workers


class Rollout(Workers):
    groups: Positive = Field(4, description="G: groups a round of the policy phase")
    siblings: Positive = Field(16, description="K: trajectories a group")
    guided: int = Field(0, ge=0, description="siblings of each group that take the teacher's jump as their mean")
    unit_groups: Positive = Field(2, description="groups a work unit; results do not depend on who does which")


class Term(Strict):
    weight: float = 1.0
    normalise: Literal["none", "std"] = Field(
        "none", description="std: divide by the round's centred std before weighting"
    )
    options: dict[str, JsonValue] = Field(default_factory=dict, description="arguments of the term")


LEARNED = "discriminator"  # the reward term that is trained in the course of a run


class RuntimeEnv(Strict):
    """What reward workers have beyond their node's environment."""

    pip: tuple[str, ...] = Field((), description="packages for them alone, on top of the node's, as pip takes them")
    py_modules: tuple[str, ...] = Field((), description="URIs of a .zip or .whl to import from, file:///shared/my.zip")
    env_vars: dict[str, str | None] = Field(
        default_factory=dict,
        description="a text is in the run's folder, MLflow and Ray's logs; null is the driver's own value, in none",
    )

    @field_validator("env_vars", mode="before")
    @classmethod
    def _no_secrets(cls, given: Any) -> Any:
        """Their values are not in the message either."""
        for name, value in given.items() if isinstance(given, Mapping) else ():
            if value is not None and SECRET.search(str(name)):
                raise ValueError(
                    f"reward.runtime_env.env_vars.{name}: its name is that of a secret, and what stands here is "
                    f"logged; expected null, with {name} set in the environment of the driver"
                )
        return given


class Reward(Workers):
    terms: dict[str, Term] = Field(
        default_factory=lambda: {"mse": Term()}, min_length=1, description="by name; naming any replaces the default"
    )
    calibration: int = Field(64, gt=1, description="groups on which each term is calibrated at start")
    runtime_env: RuntimeEnv | None = Field(
        None, description="what reward workers have that others lack; if only by their nodes, {}. Terms are built there"
    )

    @property
    def weights(self) -> dict[str, float]:
        """Return the weight of each term by its name."""
        return {name: term.weight for name, term in self.terms.items()}

    @property
    def fixed(self) -> dict[str, Term]:
        """The terms that mean the same throughout a run."""
        return {name: term for name, term in self.terms.items() if name != LEARNED}


class Pipeline(Strict):
    staleness: Literal[0, 1, 2] = Field(
        0, description="round r is rolled out with the weights after r - staleness rounds, while the learner updates"
    )
    timeout_s: float = Field(
        600, gt=0, description="a worker that takes longer for a work unit is killed; the unit is done again",
        json_schema_extra=ON_RESUME,
    )
    colocate: bool = Field(
        False, description="workers and learner take turns on the GPU that they share; who waits is in host memory",
        json_schema_extra=ON_RESUME,
    )
