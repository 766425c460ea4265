"""How a student is trained, what is measured on the way, and at the end."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from redif_ray.config.base import LABELS, ON_RESUME, Fraction, Labels, Positive, Resources, Strict, choice

NEIGHBOURS = 5  # that recall and precision look at around each image
LossName = Annotated[str, choice("ppo_clip", "reinforce", "grpo_guard")]
AdvantageName = Annotated[str, choice("global_std", "group_std", "mean_only", "running", "batch")]
DivergenceName = Annotated[str, choice("none", "mse", "kl", "chi2", "renyi", "power", "js")]


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
