"""KID against the definition written as loops, and its standard error against repeated sampling."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from redif_ray.diffusion import noise
from redif_ray.diffusion.noise import Stream
from redif_ray.evaluation import kid as module
from redif_ray.evaluation.kid import kid_to


def normals(n: int, d: int, seed: int, step: int = 0) -> np.ndarray:
    return noise.normal(n * d, Stream.RESAMPLE, seed=seed, step=step, round=98).reshape(n, d).astype(np.float64)


def by_loops(x: np.ndarray, y: np.ndarray) -> float:
    def k(a: np.ndarray, b: np.ndarray) -> float:
        return (sum(p * q for p, q in zip(a, b, strict=True)) / len(a) + 1) ** 3

    m, n = len(x), len(y)
    xx = sum(k(x[i], x[j]) for i, j in product(range(m), repeat=2) if i != j) / (m * (m - 1))
    yy = sum(k(y[i], y[j]) for i, j in product(range(n), repeat=2) if i != j) / (n * (n - 1))
    return xx + yy - 2 * sum(k(a, b) for a, b in product(x, y)) / (m * n)


@pytest.mark.parametrize("block", [4, 1000])
def test_equals_the_definition(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK", block)
    x, y = normals(13, 5, 0) + 0.3, 1.5 * normals(17, 5, 1)
    assert kid_to(y)(x)[0] == pytest.approx(by_loops(x, y), rel=1e-10)


def estimates(shift: float, m: int, n: int, repeats: int) -> tuple[np.ndarray, np.ndarray]:
    pairs = [kid_to(normals(n, 3, 3, i))(normals(m, 3, 2, i) + shift) for i in range(repeats)]
    values, errors = (np.array(column) for column in zip(*pairs, strict=True))
    return values, errors


def test_unbiased_for_one_law() -> None:
    values, errors = estimates(0.0, 30, 40, 400)
    assert abs(values.mean()) < 3 * values.std() / np.sqrt(len(values))
    assert values.std() < np.sqrt((errors**2).mean()) < 2 * values.std()  # said to be too large here, never too small


@pytest.mark.parametrize(("m", "n"), [(60, 200), (200, 60), (100, 100)])
def test_standard_error_is_calibrated(m: int, n: int) -> None:
    """It is the spread of the estimate over repeated draws of both sets."""
    values, errors = estimates(0.7, m, n, 400)
    assert np.sqrt((errors**2).mean()) == pytest.approx(values.std(ddof=1), rel=0.15)


def test_refuses_other_dimensions() -> None:
    with pytest.raises(ValueError, match="5-d, the reference 4-d"):
        kid_to(normals(6, 4, 0))(normals(6, 5, 0))
