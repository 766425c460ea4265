"""The whole configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import model_validator

from redif_ray.config.base import Strict
from redif_ray.config.conflicts import conflicts
from redif_ray.config.roles import Draft, Evaluation, Guard, Learner, Pipeline, Reward, Rollout, Validation, WarmStart
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


class Config(Strict):
    method: Literal["redif", "sfd", "draft"] = "redif"
    run: Run = Run()
    ray: Ray = Ray()
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
    validation: Validation = Validation()
    guard: Guard = Guard()
    evaluation: Evaluation = Evaluation()
    search: Search = Search()
    sweep: Sweep = Sweep()
    checkpoint: Checkpoint = Checkpoint()
    tracking: Tracking = Tracking()

    @property
    def tracking_uri(self) -> str | None:
        """The MLflow store: what `tracking.uri` names, SQLite at <root>/mlflow.db by default, None when off."""
        if self.tracking.uri == "off":
            return None
        return self.tracking.uri or f"sqlite:///{Path(self.run.root).resolve() / 'mlflow.db'}"

    @model_validator(mode="after")
    def _combinations(self) -> Config:
        for problem in conflicts(self):
            raise ValueError(problem)
        return self
