"""Validation of the student as deployed: reward at eta 0, recall, and a picture beside the teacher's."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from redif_ray.config import Config
from redif_ray.errors import UserError
from redif_ray.evaluation.features import Draw, shuffled
from redif_ray.evaluation.grids import tile
from redif_ray.evaluation.judge import Judge
from redif_ray.evaluation.prdc import prdc
from redif_ray.evaluation.seen import joined
from redif_ray.faults import Fetched

Calibration = dict[str, dict[str, float]]
GRID = 8


class GuardError(UserError):
    """The guard stopped a run because the student loses modes while its reward rises."""


class Validator:
    """Scores the samples of `Coordinator.deploy` on the validation noises.

    `start_recall` is the recall of the untrained student, in [0, 1].
    """

    def __init__(self, config: Config, calibration: Calibration, judge: Judge) -> None:
        self.config, self.calibration = config, calibration
        self.judge = judge
        self.start_recall = 0.0

    def __call__(self, data: Fetched) -> tuple[dict[str, float], np.ndarray]:
        """Return ({"validation/reward", "validation/recall", "validation/<term>"}, picture [H, W, C] uint8)."""
        seen = joined([scored.seen for (scored,) in data.parts.values()])
        means = {name: float(values.mean()) for name, values in seen.terms.items()}
        reward = deployed_reward(self.config, self.calibration, means)
        features, reference = seen.judged, self.judge.reference
        chosen = reference[shuffled(len(reference), Draw.REFERENCE, self.config.run.seed)[: len(features)]]
        scores = {"validation/reward": reward, "validation/recall": prdc(features, chosen)["recall"]}
        scores |= {f"validation/{name}": value for name, value in means.items()}
        return scores, tile([seen.teacher_pictures[:GRID], seen.pictures[:GRID]])

    def collapsed(self, scores: Mapping[str, float], after: int) -> GuardError | None:
        """Return an error if, after `after` rounds, recall is below the guard's fraction of the untrained student's."""
        floor = self.config.guard.recall_floor * self.start_recall
        if scores["validation/recall"] >= floor:
            return None
        return GuardError(
            f"validation recall fell to {scores['validation/recall']:.3f} at round {after}, below {floor:.3f} "
            f"(guard.recall_floor={self.config.guard.recall_floor} of the untrained student's "
            f"{self.start_recall:.3f}): the student is losing modes while its reward rises. Lower learner.lr, raise "
            "learner.anchor.weight, or add a reward term; the last checkpoint is kept"
        )


def deployed_reward(config: Config, calibration: Calibration, means: Mapping[str, float]) -> float:
    """Return the reward of images whose raw terms have these means by name, as validation adds them up."""
    units = reward_units(config, calibration)
    return sum(config.reward.fixed[name].weight * (means[name] - zero) / unit for name, (zero, unit) in units.items())


def reward_units(config: Config, calibration: Calibration) -> dict[str, tuple[float, float]]:
    """Return (zero, unit) of each fixed reward term at deployment, where there are no siblings to normalise over.

    It is (0, 1), or for a normalised term the untrained student's mean and its spread over images. A learned term has
    none, because it changes from round to round and so cannot tell which of two rounds was better.
    """
    units = {}
    for name, term in config.reward.fixed.items():
        point = calibration[name]
        normal = term.normalise == "std" and point["spread"] > 0
        units[name] = (point["init"], point["spread"]) if normal else (0.0, 1.0)
    return units
