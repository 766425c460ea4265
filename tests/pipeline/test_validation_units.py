from __future__ import annotations

from redif_ray.config import load
from redif_ray.pipeline.validate import reward_units

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
