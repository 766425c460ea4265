"""Who does the work of a run, and how: workers, rewards, the learner, what is measured on the way."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue, field_validator

from redif_ray.config.base import (
    ALWAYS,
    LABELS,
    ON_RESUME,
    SECRET,
    Fraction,
    Labels,
    Positive,
    Resources,
    Strict,
    choice,
)

LossName = Annotated[str, choice("ppo_clip", "reinforce", "grpo_guard")]
AdvantageName = Annotated[str, choice("global_std", "group_std", "mean_only", "running", "batch")]
DivergenceName = Annotated[str, choice("none", "mse", "kl", "chi2", "renyi", "power", "js")]


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
NEIGHBOURS = 5  # that recall and precision look at around each image


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


class Regulariser(Strict):
    kind: DivergenceName = "none"
    weight: float = Field(1.0, ge=0)
    order: float = Field(0.5, description="alpha of renyi, p of power; neither 0 nor 1")
    tempered: bool = Field(True, description="mean instead of sum over dimensions; the sum overflows float32 above 88")


class Anchor(Strict):
    weight: float = Field(0.0, ge=0, description="0 switches it off")
    substeps: Positive = Field(3, description="M: teacher steps a jump")
    loss: Literal["l1", "huber", "mse"] = "huber"
    delta: float = Field(0.1, gt=0, description="huber: where it turns linear")
    gated: bool = Field(False, description="only where the teacher's image scores higher than the student's (RATS)")


class WarmStart(Strict):
    rounds: int = Field(0, ge=0)
    groups: Positive = Field(48, description="trajectories a round, without siblings")
    lr: float = Field(2e-4, gt=0)
    minibatch: Positive = Field(192, description="(trajectory, step) pairs an optimiser step")
    substeps: Positive = 3
    loss: Literal["l1", "huber", "mse"] = "huber"
    delta: float = Field(0.1, gt=0)
    ema: float = Field(0.0, ge=0, lt=1)


class Draft(Strict):
    last_steps: Positive | None = Field(None, description="back-propagate through the last k steps; None: all")
    groups: Positive = Field(48, description="trajectories a round")
    minibatch: Positive = Field(48, description="trajectories an optimiser step")


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


class Learner(Strict):
    workers: Positive = 1
    threads: Positive = 1
    rounds: int = Field(100, ge=0, description="rounds after the warm start")
    loss: LossName = "ppo_clip"
    advantage: AdvantageName = "global_std"
    advantage_clip: float = Field(5.0, gt=0)
    clip: float | None = Field(None, gt=0, description="None: 1e-4 sqrt(16384 / D)")
    step_weight: Literal["none", "std"] = Field("none", description="std: weight step k by S_k / mean(S)")
    inner_epochs: Positive = 1
    minibatch: Positive | None = Field(None, description="(trajectory, step) pairs an optimiser step; None: the round")
    lr: float = Field(1e-5, gt=0)
    schedule: Literal["constant", "cosine"] = "constant"
    weight_decay: float = Field(1e-4, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    ema: float = Field(0.0, ge=0, lt=1, description="decay of the averaged student; 0 deploys the raw weights")
    microbatch: Positive = Field(64, description="states a forward and backward pass: memory, not mathematics")
    activation_checkpointing: bool = Field(
        False, description="compute activations again in the backward pass: memory for time"
    )
    fsdp: bool = Field(
        False, description="a rank holds its share of weights, gradients and moments: for a student that fits no GPU"
    )
    regulariser: Regulariser = Regulariser()
    anchor: Anchor = Anchor()
    cpus: float = Field(1, ge=0, json_schema_extra=ON_RESUME)
    gpus: float = Field(0, ge=0, description="of one rank; several ranks need whole ones")
    resources: Resources = Field(
        default_factory=dict, description="custom resources of one rank, as {learner: 1}", json_schema_extra=ON_RESUME
    )
    labels: Labels = Field(default_factory=dict, description=LABELS, json_schema_extra=ON_RESUME)

    @property
    def first(self) -> int:
        """How many ranks a run starts with: all, for none comes later."""
        return self.workers


class Validation(Strict):
    every: Positive = Field(10, description="rounds")
    groups: int = Field(64, gt=NEIGHBOURS, description="noises, disjoint from training and held-out")


class Guard(Strict):
    ratio_tolerance: float | None = Field(
        None, gt=0, description="|log ratio| allowed on a fresh round at the behaviour weights; None: 1e-4, and 0.05 "
        "in 16 bits and on GPUs, where a network rounds otherwise in other batches",
    )  # fmt: skip
    recall_floor: Fraction = Field(0.5, description="stop when validation recall falls below this share of the start's")


class Evaluation(Strict):
    held_out: int = Field(2000, gt=NEIGHBOURS, description="noises that nothing was chosen by")
    search: Positive = Field(256, description="noises on which the teacher's best schedule at N is chosen")
    batch: Positive = 50
    judge: str = Field(
        "fashion-mnist", description="a shipped judge or its folder; random-features asks for no data and no classes"
    )
    bootstrap: int = Field(500, ge=40, description="resamples of each interval")
