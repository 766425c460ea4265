"""Sections for the methods that follow the warm start; the policy gradient at every step has sections of its own."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from redif_ray.config.base import Positive, Strict
from redif_ray.config.run import Lora


class Draft(Strict):
    """The method draft: back-propagation of the reward through the student's steps."""

    last_steps: Positive | None = Field(
        None,
        description="The last steps through which draft back-propagates, from 1 to student.steps. null is all; fewer "
        "need less memory.",
    )
    recompute: bool = Field(
        True,
        description="Whether the activations of a step are computed again in the backward pass, so that those of one "
        "step are held at a time. false holds those of all steps and makes a quarter fewer network calls; set it for a "
        "small network.",
    )
    groups: Positive = Field(48, description="Trajectories of a draft round, at least 1.")
    minibatch: Positive = Field(48, description="Trajectories of an optimiser step of draft, at least 1.")


class Output(Strict):
    """The methods output, a policy gradient whose single action is the student's image, and straight."""

    groups: Positive = Field(
        8,
        description="Groups of a round, at least 1. More give a less noisy update; 8 follow a warm start well, 16 to "
        "64 an untrained student.",
    )
    samples: int = Field(
        64,
        ge=2,
        multiple_of=2,
        description="Images around each final latent that are scored, an even number from 2 to twice the latent's "
        "dimensions. More give a less noisy gradient and cost reward scorings, but no network call.",
    )
    std: float = Field(
        0.1,
        gt=0,
        description="S, the distance of these images from the final latent in each dimension, in latent units, above "
        "0. Raise it for a reward with steps, such as a rounded or compressed one, until it crosses some.",
    )
    directions: Literal["white", "teacher"] = Field(
        "white",
        description="Where these images lie. white: in random directions, so that the estimate has no bias. teacher: "
        "the first pair towards the teacher's image and away from it, so that 4 images are enough where that is a "
        "sensible guess of what raises the reward; the others are random.",
    )
    sampled: bool = Field(
        False,
        description="Whether to estimate the gradient of differentiable reward terms from scores too, as of all other "
        "terms. true compares estimators; false is exact and needs no scores.",
    )


class Contrast(Strict):
    """The method contrast: better of the student's own images against worse ones of the same condition."""

    groups: Positive = Field(128, description="Images of a round, a multiple of contrast.noises.")
    noises: int = Field(
        16,
        ge=2,
        description="Images of each condition, whose rewards are compared, at least 2. Raise it where high rewards are "
        "rare.",
    )
    draws: Positive = Field(
        4, description="Optimiser steps of a round, at least 1, each on new noise on the round's images."
    )
    decay: float = Field(
        0.8,
        ge=0,
        lt=1,
        description="Decay per round of the averaged student that holds the student back, from 0 to below 1. Raise it "
        "where images degrade.",
    )


class DistributionMatching(Strict):
    """The method distribution_matching."""

    groups: Positive = Field(48, description="Trajectories of a round of distribution matching, at least 1.")
    fake_steps: Positive = Field(
        5,
        description="Optimiser steps of the fake score before each of the student's, at least 1. Raise it where the "
        "student's images lose variety.",
    )
    fake_lr: float = Field(
        1e-4,
        gt=0,
        description="Learning rate of the fake score, above 0. Raise it where the student moves faster than the fake "
        "score can follow.",
    )
    reward_weight: float = Field(
        0.0,
        ge=0,
        description="Factor of the reward's gradient at the student's image beside the way to the teacher's "
        "distribution; 0 asks for no reward. Raise it where the reward should gain more, at the cost of likeness.",
    )
    lora: Lora = Field(
        Lora(), description="Adapters of the fake score; rank 0 trains a copy of the teacher, which needs more memory."
    )


class OnImages(Strict):
    """A method that trains on noised images of the teacher."""

    groups: Positive = Field(48, description="Images of a round, at least 1.")
    draws: Positive = Field(
        8,
        description="Optimiser steps of a round, at least 1, each on new noise on the round's images. Raise it where "
        "the teacher's images cost more than the update.",
    )


class Consistency(OnImages):
    """The method consistency: multistep consistency distillation, without reward."""

    substeps: Positive = Field(
        8,
        description="Steps into which the teacher divides each of the student's, at least 1, which teaches its "
        "guidance alone. More are more exact and take longer to learn.",
    )
    decay: float = Field(
        0.95,
        ge=0,
        lt=1,
        description="Decay per optimiser step of the averaged student that is learned from, from 0 to below 1. Raise "
        "it where the loss swings.",
    )


class Progressive(OnImages):
    """The method progressive: progressive distillation, without reward."""

    halvings: int = Field(
        3,
        ge=1,
        le=10,
        description="Stages, from 1 to 10, each of which halves the steps: the first one learns from student.steps "
        "times 2 to this power. The rounds are divided evenly among them.",
    )
