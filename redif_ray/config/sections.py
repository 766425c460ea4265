"""The sections of the configuration, without the checks across sections (`config.conflicts`)."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from redif_ray.config.base import ALWAYS, ON_RESUME, Strict, choice, may_change
from redif_ray.config.methods import Consistency, Contrast, DistributionMatching, Draft, Output, Progressive
from redif_ray.config.roles import Pipeline, Reward, Rollout
from redif_ray.config.run import (
    Checkpoint,
    Conditions,
    Exploration,
    Networks,
    Ray,
    Run,
    Student,
    Teacher,
    Tracking,
)
from redif_ray.config.searches import Search, Sweep
from redif_ray.config.training import (
    Evaluation,
    Guard,
    Learner,
    Validation,
    WarmStart,
)

BUILT_IN = (
    "redif",
    "output",
    "contrast",
    "sfd",
    "draft",
    "straight",
    "distribution_matching",
    "consistency",
    "progressive",
)


class Sections(Strict):
    method: Annotated[str, choice(*BUILT_IN)] = Field(
        "redif",
        description="What follows the warm start: redif (policy gradient at every step), output (policy gradient at "
        "the image), contrast (better of its own images against worse ones), sfd (nothing), draft (back-propagation "
        "through the reward), straight (the reward's gradient given to each step), distribution_matching (DMD2), "
        "consistency and progressive (all three without reward), or your own as path/to/file.py:MyPhase.",
    )
    run: Run = Run()
    ray: Ray = Field(Ray(), json_schema_extra=ALWAYS)
    teacher: Teacher = Teacher()
    student: Student = Student()
    networks: Networks = Networks()
    conditions: Conditions = Conditions()
    exploration: Exploration = Exploration()
    rollout: Rollout = Rollout()
    reward: Reward = Reward()
    warm_start: WarmStart = WarmStart()
    learner: Learner = Learner()
    pipeline: Pipeline = Pipeline()
    draft: Draft = Draft()
    output: Output = Output()
    contrast: Contrast = Contrast()
    distribution_matching: DistributionMatching = DistributionMatching()
    consistency: Consistency = Consistency()
    progressive: Progressive = Progressive()
    validation: Validation = Validation()
    guard: Guard = Guard()
    evaluation: Evaluation = Field(Evaluation(), json_schema_extra=may_change("evaluate"))
    search: Search = Search()
    sweep: Sweep = Sweep()
    checkpoint: Checkpoint = Field(Checkpoint(), json_schema_extra=ON_RESUME)
    tracking: Tracking = Tracking()
