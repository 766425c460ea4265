"""Sections for the workers of a run: rollout, reward, and how they and the learner overlap."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, JsonValue, ValidatorFunctionWrapHandler, field_validator

from redif_ray.config.base import ALWAYS, ON_EVALUATE, ON_RESUME, Count, Labels, Positive, Resources, Strict
from redif_ray.config.uris import guarded
from redif_ray.masking import SECRET_NAME, masked_uris


class Workers(Strict):
    """Settings of the roles rollout and reward, whose workers may join and leave."""

    max_workers: Count = Field(
        1, json_schema_extra=ALWAYS, description="Workers that the run uses at most, at least 1."
    )
    min_workers: Count | None = Field(
        None,
        json_schema_extra=ALWAYS,
        description="Workers without which the run neither starts nor goes on, from 1 to max_workers; the others join "
        "where there is room. null starts with all and goes on with one.",
    )
    threads: Count = Field(
        1,
        description="CPU threads of torch in each worker, at least 1. Raise it where cores are idle; more may change "
        "the last bits of results.",
    )
    cpus: float = Field(
        1,
        ge=0,
        json_schema_extra=ON_RESUME,
        description="Logical CPUs that Ray reserves for each worker, from 0. Raise it to keep other work off the same "
        "cores.",
    )
    gpus: float = Field(
        0,
        ge=0,
        json_schema_extra=ON_EVALUATE,
        description="GPUs that Ray reserves for each worker, from 0; a fraction shares one. 0 computes on the CPU.",
    )
    resources: Resources = Field(
        default_factory=dict,
        json_schema_extra=ALWAYS,
        description="Custom Ray resources of each worker, such as {hand: 1}, amounts above 0. Set them to place the "
        "role on certain nodes.",
    )
    labels: Labels = Field(
        default_factory=dict,
        json_schema_extra=ALWAYS,
        description="Node labels that the node of each worker must have, such as {ray.io/market-type: spot}. Set them "
        "to choose machines.",
    )

    @property
    def first(self) -> int:
        """Return the number of workers that a run starts with."""
        return self.min_workers or self.max_workers


class Rollout(Workers):
    """The workers that sample trajectories with the student, and the size of a round."""

    groups: Positive = Field(
        4,
        description="G, the groups of a policy round, at least 1; a group shares its start latent and condition. More "
        "groups give a less noisy update.",
    )
    siblings: Positive = Field(
        16,
        description="K, the trajectories of a group, at least 1. Advantages compare siblings, so 8 or more are usual.",
    )
    guided: int = Field(
        0,
        ge=0,
        description="Siblings of each group that take the teacher's jump as their mean, from 0 to siblings - 1.",
    )
    unit_groups: Count = Field(
        2,
        description="Groups of a work unit, a divisor of groups. Lower it to keep more workers busy, raise it for "
        "larger batches on a GPU.",
    )


class Term(Strict):
    """A term of the reward."""

    weight: float = Field(
        1.0, description="Factor of the term in the reward. 0 measures the term without training on it."
    )
    normalise: Literal["none", "std"] = Field(
        "none",
        description="std divides the term by its centred standard deviation over the round before it is weighted; "
        "none does not.",
    )
    options: dict[str, JsonValue] = Field(
        default_factory=dict,
        description="Arguments of the term, by name; a text env:NAME takes the value of an environment variable.",
    )

    @field_validator("options", mode="wrap")
    @classmethod
    def _guarded(cls, options: Any, check: ValidatorFunctionWrapHandler) -> Any:
        check(options)
        return guarded(options)


LEARNED = "discriminator"  # the reward term that is trained during a run


class RuntimeEnv(Strict):
    """Packages, modules and variables that reward workers have beyond their node's environment."""

    pip: tuple[str, ...] = Field(
        (), description="Packages that reward workers have on top of their node's, as pip takes them."
    )
    py_modules: tuple[str, ...] = Field(
        (),
        description="URIs of .zip or .whl files to import from, which every node can read, such as "
        "file:///shared/my.zip.",
    )
    env_vars: dict[str, str | None] = Field(
        default_factory=dict,
        description="Environment variables. A text is kept in the run's folder, MLflow and Ray's logs; null takes the "
        "driver's own value and is kept nowhere.",
    )

    @field_validator("env_vars", mode="before")
    @classmethod
    def _no_secrets(cls, given: Any) -> Any:
        """Refuse variables whose names are those of secrets; the message does not repeat their values either."""
        for name, value in given.items() if isinstance(given, Mapping) else ():
            if value is not None and (SECRET_NAME.search(str(name)) or masked_uris(str(value)) != str(value)):
                raise ValueError(
                    f"reward.runtime_env.env_vars.{name}: its name is that of a secret, and values given here are "
                    f"logged; expected null, with {name} set in the environment of the driver"
                )
        return given


class Reward(Workers):
    """The workers that sample the teacher and score images, and the terms of the reward."""

    terms: dict[str, Term] = Field(
        default_factory=lambda: {"mse": Term()},
        min_length=1,
        description="Reward terms by name, at least one. Naming any replaces the default.",
    )
    calibration: int = Field(
        64,
        gt=1,
        description="Groups on which each term is calibrated at the start, at least 2. Raise it where terms are noisy.",
    )
    runtime_env: RuntimeEnv | None = Field(
        None,
        description="The environment that reward workers have beyond their node's. null is the node's own; {} builds "
        "reward terms on the workers only.",
    )

    @property
    def weights(self) -> dict[str, float]:
        """Return the weight of each term by its name."""
        return {name: term.weight for name, term in self.terms.items()}

    @property
    def fixed(self) -> dict[str, Term]:
        """Return the terms that do not change during a run, by name."""
        return {name: term for name, term in self.terms.items() if name != LEARNED}


class Pipeline(Strict):
    """The overlap of rollout, rewards and the learner."""

    staleness: Literal[0, 1, 2] = Field(
        0,
        description="Rounds by which the weights of a rollout are older than the learner's: 0, 1 or 2. Above 0, "
        "rollout and update overlap.",
    )
    timeout_s: float = Field(
        600,
        gt=0,
        json_schema_extra=ON_RESUME,
        description="Seconds after which a worker that has not finished a work unit is killed and the unit is done "
        "again, above 0. A call of a reward of your own may take half of it.",
    )
    colocate: bool = Field(
        False,
        json_schema_extra=ON_RESUME,
        description="Whether workers and learner take turns on the GPUs that they share, waiting in host memory. Set "
        "it where one GPU cannot hold both.",
    )
