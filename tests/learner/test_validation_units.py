from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from redif_ray.config import load
from redif_ray.evaluation.judge import judge_of_images
from redif_ray.learner import validation
from redif_ray.learner.validation import Validator, reward_units

CALIBRATION = {
    "mse": {"self": 0.0, "other_seed": -0.3, "init": -0.2, "spread": 0.05},
    "ssim": {"self": 1.0, "other_seed": 0.4, "init": 0.6, "spread": 0.1},
    "psnr": {"self": 50.0, "other_seed": 9.0, "init": 12.0, "spread": 0.0},
    "discriminator": {"self": 0.0, "other_seed": 0.0, "init": 0.0, "spread": 0.0},
}


def test_a_normalised_term_counts_from_the_untrained_student_in_its_spread() -> None:
    """One that is not normalised counts as it is, one without a spread too; a learned one does not count."""
    terms = "{mse: {normalise: std}, ssim: {weight: 2.0}, psnr: {normalise: std}, discriminator: {normalise: std}}"
    found = reward_units(load(None, [f"reward.terms={terms}"]), CALIBRATION)
    assert found == {"mse": (-0.2, 0.05), "ssim": (0.0, 1.0), "psnr": (0.0, 1.0)}


def test_the_validation_reward_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    images = np.random.default_rng(0).uniform(size=(12, 1, 8, 8)).astype(np.float32)
    terms: dict[str, Any] = {"mse": np.full(12, -0.1), "ssim": np.full(12, 0.7)}
    monkeypatch.setattr(validation, "collect", lambda _: SimpleNamespace(images=images, targets=images, terms=terms))
    config = load(None, ["reward.terms={mse: {weight: 3.0, normalise: std}, ssim: {weight: 2.0}}"])
    found, _ = Validator(config, CALIBRATION, judge_of_images("random-features", images))(None)  # type: ignore[arg-type]
    assert found["validation/reward"] == pytest.approx(3 * (-0.1 + 0.2) / 0.05 + 2 * 0.7)
    assert (found["validation/mse"], found["validation/ssim"]) == (pytest.approx(-0.1), pytest.approx(0.7))
