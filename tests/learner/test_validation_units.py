from __future__ import annotations

import numpy as np
import pytest
import torch

from redif_ray.config import load
from redif_ray.diffusion.noise import Stream
from redif_ray.evaluation.encoders import make_encoder
from redif_ray.evaluation.grids import tile
from redif_ray.evaluation.judge import Judge
from redif_ray.evaluation.seen import see
from redif_ray.faults import Fetched
from redif_ray.learner.validation import Validator, reward_units
from redif_ray.types import Scored, WorkUnit

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


def test_the_validation_reward_by_hand() -> None:
    images = torch.from_numpy(np.random.default_rng(0).uniform(size=(12, 1, 8, 8)).astype(np.float32))
    terms = {"mse": np.full(12, -0.1), "ssim": np.full(12, 0.7)}
    unit = WorkUnit(0, 0, "deploy", Stream.VALIDATION, tuple(range(12)), (None,) * 12)
    encoder = make_encoder("random-features", (1, 8, 8))
    seen = see(unit, images, images.flip(0), terms, encoder)
    config = load(None, ["reward.terms={mse: {weight: 3.0, normalise: std}, ssim: {weight: 2.0}}"])
    data = Fetched((), {0: (Scored(unit, {}, None, None, seen=seen),)}, 0.0, 0.0)
    found, picture = Validator(config, CALIBRATION, Judge("random-features", seen.judged))(data)
    assert found["validation/reward"] == pytest.approx(3 * (-0.1 + 0.2) / 0.05 + 2 * 0.7)
    assert (found["validation/mse"], found["validation/ssim"]) == (pytest.approx(-0.1), pytest.approx(0.7))
    expected = tile([images.flip(0).numpy()[:8], images.numpy()[:8]])
    assert np.array_equal(picture, expected)
