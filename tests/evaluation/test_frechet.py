"""Fréchet distance against scipy's matrix root, closed forms of Gaussians, and the theory of its floor."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.linalg import sqrtm

from redif_ray.diffusion import noise
from redif_ray.diffusion.noise import Stream
from redif_ray.evaluation.frechet import frechet, frechet_floor, frechet_to


def normals(n: int, d: int, seed: int) -> np.ndarray:
    return noise.normal(n * d, Stream.RESAMPLE, seed=seed, round=99).reshape(n, d).astype(np.float64)


def exact(mean: np.ndarray, cov: np.ndarray, seed: int, n: int = 200) -> np.ndarray:
    """Samples whose sample mean and covariance are `mean` and `cov`, to rounding."""
    x = normals(n, len(mean), seed)
    x -= x.mean(0)
    x = x @ np.linalg.inv(np.linalg.cholesky(np.cov(x, rowvar=False))).T
    return x @ np.linalg.cholesky(cov).T + mean


def by_sqrtm(x: np.ndarray, y: np.ndarray) -> float:
    c1, c2 = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    return float(((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(c1 + c2 - 2 * np.real(sqrtm(c1 @ c2))))


@pytest.mark.parametrize("n", [300, 40])
def test_equals_the_formula_with_scipys_root(n: int) -> None:
    x = normals(n, 12, 1) @ normals(12, 12, 2) + 0.5
    y = normals(250, 12, 3) @ normals(12, 12, 4)
    assert frechet(x, y) == pytest.approx(by_sqrtm(x, y), rel=1e-9)
    assert frechet(x, y) == pytest.approx(frechet(y, x), rel=1e-9)
    assert frechet_to(y)(x) == frechet(x, y)


def test_commuting_gaussians_have_a_closed_form() -> None:
    """Covariances with common axes: |m1 - m2|^2 + sum of (s1 - s2)^2."""
    axes, _ = np.linalg.qr(normals(4, 4, 5))
    s1, s2 = np.array([1.0, 2.0, 0.5, 3.0]), np.array([0.7, 2.5, 0.5, 1.0])
    m1, m2 = np.array([1.0, 0.0, -1.0, 2.0]), np.array([0.0, 0.5, -1.0, 1.0])
    x = exact(m1, axes @ np.diag(s1**2) @ axes.T, 6)
    y = exact(m2, axes @ np.diag(s2**2) @ axes.T, 7)
    assert frechet(x, y) == pytest.approx(((m1 - m2) ** 2).sum() + ((s1 - s2) ** 2).sum(), rel=1e-9)


def test_singular_covariances() -> None:
    """Fewer samples than dimensions; a set's distance to itself is 0, to itself moved it is the move's square."""
    x = normals(10, 30, 8)
    assert frechet(x, x) == pytest.approx(0, abs=1e-5)
    assert frechet(x + 2, x) == pytest.approx(4 * 30, rel=1e-6)


def test_floor_follows_theory() -> None:
    """For one law N(0, I): (1/n + 1/m) (d + d(d + 1)/4) to first order, from tr(S + I - 2 S^1/2) = tr(E^2)/4."""
    d, n, total = 6, 300, 900
    found = np.mean([frechet_floor(normals(total, d, 10 + i), n, seed=i) for i in range(60)])
    assert found == pytest.approx((1 / n + 1 / (total - n)) * (d + d * (d + 1) / 4), rel=0.08)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (np.zeros((5, 3)), np.zeros((5, 4)), "3-d, the reference 4-d"),
        (np.zeros((1, 3)), np.zeros((5, 3)), "at least two rows"),
        (np.full((5, 3), np.nan), np.zeros((5, 3)), "5 of 5 rows hold NaN"),
        (np.zeros(5), np.zeros((5, 3)), r"shape \(5,\)"),
    ],
)
def test_refuses_what_is_no_feature_set(x: np.ndarray, y: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        frechet(x, y)


def test_floor_refuses_the_whole_reference() -> None:
    with pytest.raises(ValueError, match="n=19 of 20"):
        frechet_floor(normals(20, 2, 0), 19, seed=0)
