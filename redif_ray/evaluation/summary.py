"""`summary.json`: the result of a run in one file, for programs. Its JSON Schema is `summary.schema.json`.

Rewrite the schema after a change: python -m redif_ray.evaluation.summary > redif_ray/evaluation/summary.schema.json
"""

from __future__ import annotations

import json
from typing import Any, Literal

from pydantic import ConfigDict, Field

from redif_ray.config import Fraction, Positive, Strict

AGREEMENT = ("pixel_mse", "pixel_psnr", "judge_cosine")  # in `Arm.paired`; what else is there is a reward term


class Arm(Strict):
    """One way to make images from the held-out noises. Lower distances to the judge's reference images are better."""

    nfe: Positive = Field(description="network calls per image; a guided step is two calls")
    frechet: float = Field(description="squared Fréchet distance in the judge's features; not FID")
    frechet_ci: tuple[float, float] = Field(description="95 % bootstrap interval at this number of images")
    kid: float = Field(description="unbiased squared MMD, cubic kernel")
    kid_se: float = Field(ge=0, description="standard error of kid")
    precision: Fraction
    recall: Fraction
    density: float = Field(ge=0)
    coverage: Fraction
    class_accuracy: Fraction | None = Field(
        description="share of images that the judge puts into their condition's class; null: no classes"
    )
    caption_cosine: float | None = Field(
        None, description="mean cosine of image and caption by the judge; null: no captions"
    )
    paired: dict[str, float] = Field(description="means over pairs with the full teacher's image of the same noise")


class Arms(Strict):
    teacher_full: Arm = Field(description="the target: the teacher with its own steps and solver")
    teacher_few: Arm = Field(
        description="the untrained student: the teacher, or student.init, at the student's steps and schedule"
    )
    teacher_best: Arm | None = Field(None, description="the teacher's best named schedule and solver at the same NFE")
    warm_start: Arm | None = Field(description="after regression, before reinforcement; null: no warm start")
    student: Arm


class Calibration(Strict):
    """The values of one reward term on pairs of images that need no training."""

    self: float = Field(description="teacher against itself")
    other_seed: float = Field(description="teacher against the teacher's image of another noise, same condition")
    init: float = Field(description="untrained student against teacher")
    spread: float | None = Field(None, ge=0, description="standard deviation of init over images")


class Spent(Strict):
    seconds: float = Field(ge=0)
    nfe: float = Field(ge=0, description="network calls of single images")
    flops: float = Field(ge=0, description="2 x multiply-adds")


class Limits(Strict):
    """The scores of some of the judge's own reference images against others of them; a judge without any has none."""

    count: Positive | None = Field(None, description="images in the place of an arm's; null: an earlier version")
    frechet: float
    precision: Fraction
    recall: Fraction
    density: float
    coverage: Fraction
    class_accuracy: Fraction | None = Field(None, description="of all reference images; null: they have no classes")


class Diversity(Strict):
    """The mean distance, 1 - cosine of class tokens, of two images of one condition and different noises."""

    encoder: str
    conditions: Positive
    noises: Positive = Field(description="of each condition, of which every two are compared")
    student: float
    teacher: float
    change_se: float = Field(ge=0, description="standard error, over conditions, of the student's less the teacher's")


class Mlflow(Strict):
    tracking_uri: str
    run_id: str


class Summary(Strict):
    model_config = ConfigDict(title="redif-ray summary")

    format: Literal[1] = Field(alias="schema")
    name: str
    student_steps: Positive
    seed: int = Field(ge=0)
    held_out: Positive = Field(description="images per arm")
    size: tuple[Positive, Positive] | None = Field(
        None, description="height and width of the images in pixels; null: an earlier version did not note it"
    )
    judge: str
    reference: Literal["real", "teacher"] = Field("real", description="images that the judge compares with")
    arms: Arms
    limits: Limits | None = None
    diversity: Diversity | None = Field(None, description="null: it was not asked for")
    calibration: dict[str, Calibration]
    compute: dict[str, Spent]
    policy_version: int = Field(ge=0)
    weights_sha256: str = Field(pattern="^[0-9a-f]{64}$")
    mlflow: Mlflow | None = Field(None, description="null: tracking was off")
    notes: dict[str, Any] | None = Field(None, description="further facts; `workers`: {worker: {busy, units}}")


def schema() -> dict[str, Any]:
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Summary.model_json_schema(by_alias=True)}


if __name__ == "__main__":
    print(json.dumps(schema(), indent=2, ensure_ascii=False))
