"""Structural similarity (Wang, Bovik, Sheikh & Simoncelli, IEEE Transactions on Image Processing 13(4), 2004)."""

from __future__ import annotations

from typing import ClassVar

from pydantic.dataclasses import dataclass
from torch import Tensor

from redif_ray.rewards.gaussian import gaussian_window, smooth
from redif_ray.rewards.term import OPTIONS, RewardInputs, Setting

SIGMA, SIZE = 1.5, 11
C1, C2 = 0.01**2, 0.03**2  # (K L)^2 with a dynamic range L of 1


@dataclass(frozen=True, config=OPTIONS)
class Ssim:
    """Mean over positions and channels of

        (2 mu_x mu_y + C1) (2 sigma_xy + C2) / ((mu_x^2 + mu_y^2 + C1) (sigma_x^2 + sigma_y^2 + C2))

    with moments under a Gaussian window of 11 pixels, sigma 1.5, that lies wholly inside the image; in [-1, 1].
    For an image less than 11 pixels wide or high the window has the largest odd size that fits.
    """

    setting: Setting
    name: ClassVar[str] = "ssim"
    differentiable: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"teacher"})

    def __call__(self, inputs: RewardInputs) -> Tensor:
        x, y = inputs.student, inputs.teacher
        edge = min(SIZE, *x.shape[2:])
        window = gaussian_window(edge - (edge + 1) % 2, SIGMA, x)
        mu_x, mu_y = smooth(x, window), smooth(y, window)
        var_x, var_y = smooth(x * x, window) - mu_x**2, smooth(y * y, window) - mu_y**2
        cov = smooth(x * y, window) - mu_x * mu_y
        luminance = (2 * mu_x * mu_y + C1) / (mu_x**2 + mu_y**2 + C1)
        structure = (2 * cov + C2) / (var_x + var_y + C2)
        return (luminance * structure).mean((1, 2, 3))
