"""Sections for the training of a student, and for the measurements during and after it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from redif_ray.config.base import ON_RESUME, Count, Fraction, Labels, Location, Positive, Resources, Strict, choice

NEIGHBOURS = 5  # nearest neighbours around each image that recall and precision use
UNCHOSEN = 4  # states or images at once where no number is given and no memory is known to choose one by
LossName = Annotated[str, choice("ppo_clip", "reinforce", "grpo_guard")]
AdvantageName = Annotated[str, choice("global_std", "group_std", "mean_only", "running", "batch")]
DivergenceName = Annotated[str, choice("none", "mse", "kl", "chi2", "renyi", "power", "js")]

LearningRates = Literal["constant", "cosine"]
JumpLoss = Annotated[
    Literal["l1", "huber", "mse"],
    Field(description="The loss of a jump: l1, huber or mse. Huber is less sensitive than mse to a few large errors."),
]
HuberDelta = Annotated[
    float,
    Field(
        gt=0,
        description="The error, in latent units and above 0, at which the huber loss turns from square to linear. "
        "Other losses ignore it.",
    ),
]


class Regulariser(Strict):
    """A divergence from the teacher that is added to the policy's loss."""

    kind: DivergenceName = Field(
        "none",
        description="The divergence from the teacher's step: kl, mse, chi2, renyi, power, js, or your own as "
        "path/to/file.py:name; none switches it off.",
    )
    weight: float = Field(
        1.0,
        ge=0,
        description="Factor of the divergence in the loss, from 0. Raise it where the student drifts from the teacher.",
    )
    order: float = Field(0.5, description="alpha of renyi or p of power, neither 0 nor 1. Other kinds ignore it.")
    tempered: bool = Field(
        True,
        description="Whether to average over the latent's dimensions in place of their sum, which overflows float32 "
        "above 88.",
    )


class Anchor(Strict):
    """A regression to the teacher's own jumps that is added to the policy's loss."""

    weight: float = Field(
        0.0,
        ge=0,
        description="Factor of the anchor in the loss, from 0; 0 switches it off. Raise it where recall falls.",
    )
    substeps: Positive = Field(
        3,
        description="M, the teacher's Euler steps in a jump, at least 1. More steps are closer to the teacher and "
        "cost more calls.",
    )
    loss: JumpLoss = "huber"
    delta: HuberDelta = 0.1
    gated: bool = Field(
        False,
        description="Whether to use the anchor only where the teacher's image scores higher than the student's (RATS).",
    )


class WarmStart(Strict):
    """The regression to the teacher's jumps before the policy phase."""

    rounds: int = Field(0, ge=0, description="Rounds of the warm start, from 0; 0 leaves it out.")
    groups: Positive = Field(48, description="Trajectories of a warm-start round, without siblings, at least 1.")
    lr: float = Field(2e-4, gt=0, description="Learning rate of AdamW in the warm start, above 0.")
    schedule: LearningRates = Field(
        "constant",
        description="Learning rate over the rounds of the warm start: constant, or cosine down to 0. Use cosine where "
        "the warm start is the whole training.",
    )
    minibatch: Positive = Field(
        192, description="(trajectory, step) pairs of an optimiser step in the warm start, at least 1."
    )
    substeps: Positive = Field(
        3,
        description="The teacher's steps in a jump, at least 1. More steps are closer to the teacher and cost more "
        "calls.",
    )
    solver: Literal["euler", "dpmpp_2m"] = Field(
        "euler",
        description="The solver of a jump: euler or dpmpp_2m. dpmpp_2m is of second order, so that as many calls end "
        "closer to the teacher; with one substep both are the same.",
    )
    loss: JumpLoss = "huber"
    delta: HuberDelta = 0.1
    ema: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Decay per round of the averaged student, from 0 to below 1. 0 keeps no average. Use "
        "0.99 or more for noisy updates.",
    )


class Learner(Strict):
    """The ranks that train the student, and the policy's update."""

    workers: Count = Field(1, description="Ranks that train the student together, a divisor of rollout.groups.")
    threads: Count = Field(
        1,
        description="CPU threads of torch in each rank, at least 1. Raise it where cores are idle; more may change "
        "the last bits of results.",
    )
    rounds: int = Field(100, ge=0, description="Rounds after the warm start, from 0.")
    loss: LossName = Field(
        "ppo_clip",
        description="The policy's surrogate: ppo_clip, reinforce (on fresh data only), grpo_guard, or your own as "
        "path/to/file.py:name.",
    )
    advantage: AdvantageName = Field(
        "global_std",
        description="The baseline and scale of rewards: global_std, group_std and mean_only compare siblings; running "
        "and batch also work with one sibling; or your own as path/to/file.py:name.",
    )
    advantage_clip: float = Field(
        5.0, gt=0, description="Largest absolute advantage, above 0. Lower it where a few images dominate the update."
    )
    clip: float | None = Field(
        None,
        gt=0,
        description="Clip range of the ratio, above 0. It acts where learner.inner_epochs is above 1, in minibatches "
        "and on stale rounds. null is 1e-4 sqrt(16384 / D) for D latent dimensions.",
    )
    step_weight: Literal["none", "std"] = Field(
        "none",
        description="Weight of a step's loss: none weighs all steps alike, std by the scale of their exploration "
        "noise.",
    )
    inner_epochs: Positive = Field(
        1, description="Passes over a round, at least 1. More passes learn faster from a round and clip more."
    )
    minibatch: Positive | None = Field(
        None,
        description="(trajectory, step) pairs of an optimiser step, at least 1. null takes the whole round at once.",
    )
    lr: float = Field(
        1e-5,
        gt=0,
        description="Learning rate of AdamW after the warm start, above 0. Lower it where reward or recall falls.",
    )
    schedule: LearningRates = Field(
        "constant", description="Learning rate over the rounds: constant, or cosine down to 0."
    )
    optimizer: Literal["adamw", "adamw_8bit"] = Field(
        "adamw",
        description="adamw, or adamw_8bit, whose moments take 2 bytes a weight in place of 8 and which needs the "
        "package bitsandbytes. Set it where a student that is trained whole fills a GPU.",
    )
    weight_decay: float = Field(1e-4, ge=0, description="Weight decay of AdamW, from 0.")
    max_grad_norm: float = Field(1.0, gt=0, description="Norm to which the gradient is clipped, above 0.")
    ema: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Decay per round of the averaged student, from 0 to below 1. 0 keeps no average. Use "
        "0.99 or more for noisy updates. The average is deployed.",
    )
    microbatch: Positive | None = Field(
        None,
        description="States of one forward and backward pass, at least 1. null chooses the largest power of two up to "
        "32 that fits, when a run starts, and keeps it. Results of other numbers differ by rounding only.",
    )
    activation_checkpointing: bool | None = Field(
        None,
        description="Whether to compute activations again in the backward pass, which saves memory and costs a third "
        "more time. null is true where the microbatch, or 2 states where none is given, does not fit without.",
    )
    fsdp: bool = Field(
        False,
        description="Whether each rank holds only its share of weights, gradients and moments (FSDP2). Set it for a "
        "student that fits no GPU.",
    )
    regulariser: Regulariser = Regulariser()
    anchor: Anchor = Anchor()
    cpus: float = Field(
        1,
        ge=0,
        json_schema_extra=ON_RESUME,
        description="Logical CPUs that Ray reserves for each rank, from 0. Raise it to keep other work off the same "
        "cores.",
    )
    gpus: float = Field(
        0,
        ge=0,
        description="GPUs that Ray reserves for each rank, from 0; 0 computes on the CPU. One rank may share a GPU by "
        "a fraction; several need 1 each, or more than half of one that each shares with a worker of each role.",
    )
    resources: Resources = Field(
        default_factory=dict,
        json_schema_extra=ON_RESUME,
        description="Custom Ray resources of each rank, such as {learner: 1}, amounts above 0. Set them to place the "
        "role on certain nodes.",
    )
    labels: Labels = Field(
        default_factory=dict,
        json_schema_extra=ON_RESUME,
        description="Node labels that the node of each rank must have, such as {ray.io/market-type: spot}. Set them "
        "to choose machines.",
    )

    @property
    def first(self) -> int:
        """Return the number of ranks that a run starts with: all of them, since no rank joins later."""
        return self.workers

    @property
    def trains_every_step(self) -> bool:
        """Tell whether each step has a loss, and not only those that explore."""
        return self.anchor.weight > 0 or self.regulariser.kind == "mse"

    @property
    def states_at_once(self) -> int:
        """Return `microbatch`, or a small number where none is chosen yet."""
        return self.microbatch or UNCHOSEN


class Validation(Strict):
    """The measurements of the student during training."""

    every: Positive = Field(10, description="Rounds between validations, at least 1.")
    groups: int = Field(
        64,
        gt=NEIGHBOURS,
        description="Noises of a validation, above 5, which neither training nor the final evaluation uses.",
    )


class Guard(Strict):
    """Conditions that stop a run."""

    ratio_tolerance: float | None = Field(
        None,
        gt=0,
        description="Largest |log ratio| of a fresh round at the weights that made it, above 0. null is 1e-4, and "
        "0.05 in 16 bits and on GPUs, which round otherwise in other batches.",
    )
    recall_floor: Fraction = Field(
        0.5,
        description="Share of the untrained student's validation recall, from 0 to 1, below which a run is stopped. 0 "
        "never stops it.",
    )


class Diversity(Strict):
    """The distances between images of one condition, for the teacher and for the student."""

    encoder: Location | None = Field(
        None,
        description="Folder or hub id of the DINOv2 or DINOv3 in whose features distances are taken, such as "
        "facebook/dinov2-base. null measures none. Set it to see whether the student's images of a caption resemble "
        "each other more than the teacher's; no reward should look through it.",
    )
    conditions: int = Field(
        32,
        gt=1,
        description="Conditions that are measured, above 1, in turn. More give a smaller standard error.",
    )
    noises: int = Field(
        4,
        gt=1,
        description="Noises of a condition, above 1 and at most evaluation.batch. Every two of their images are "
        "compared.",
    )

    @property
    def count(self) -> int:
        """Return the number of images that the student, and the teacher, make for it; 0 without an encoder."""
        return self.conditions * self.noises if self.encoder is not None else 0


class Evaluation(Strict):
    """The measurements at the end of a run."""

    held_out: int = Field(
        2000,
        gt=NEIGHBOURS,
        description="Noises of the final evaluation, above 5, by which nothing was chosen. More give narrower "
        "intervals.",
    )
    search: Positive = Field(
        256, description="Noises on which the teacher's best schedule at N steps is chosen, at least 1."
    )
    batch: Count | None = Field(
        None,
        description="Images that a worker makes at once in evaluations and for the calibration, at least 1. null "
        "chooses the largest power of two up to 32 that fits, when a run starts, and keeps it.",
    )
    judge: Location = Field(
        "fashion-mnist",
        description="The judge of images: a shipped one, its folder, or random-features, which needs no data and no "
        "classes.",
    )
    bootstrap: int = Field(500, ge=40, description="Bootstrap resamples of each interval, at least 40.")
    diversity: Diversity = Diversity()

    @property
    def images_at_once(self) -> int:
        """Return `batch`, or a small number where none is chosen yet."""
        return self.batch or UNCHOSEN
