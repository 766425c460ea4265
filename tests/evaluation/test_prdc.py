"""Precision, recall, density and coverage against the `prdc` package of their authors, by hand, and in expectation."""

from __future__ import annotations

import numpy as np
import prdc as authors
import pytest

from redif_ray.diffusion import noise
from redif_ray.diffusion.noise import Stream
from redif_ray.evaluation import prdc as module
from redif_ray.evaluation.prdc import K, ceiling, prdc


def normals(n: int, d: int, seed: int) -> np.ndarray:
    return noise.normal(n * d, Stream.RESAMPLE, seed=seed, round=97).reshape(n, d).astype(np.float64)


@pytest.mark.parametrize("block", [7, 500])
@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (0.6, 0.2), (1.4, 0.5)])
def test_equals_the_authors_package(block: int, scale: float, shift: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK", block)
    fake, real = scale * normals(90, 6, 1) + shift, normals(90, 6, 2)
    expected = authors.compute_prdc(real_features=real, fake_features=fake, nearest_k=K)
    assert prdc(fake, real) == pytest.approx({k: float(v) for k, v in expected.items()}, abs=1e-12)


def test_by_hand() -> None:
    """Reference 0..6 on a line: the balls of 0 to 6 reach 5, 4, 3, 3, 3, 4, 5."""
    real = np.arange(7.0)[:, None]
    fake = np.array([0.0, 0.01, 0.02, 0.03, 0.04, 0.05, 100.0])[:, None]
    found = prdc(fake, real)
    assert found["precision"] == pytest.approx(6 / 7)  # all but the one at 100
    assert found["density"] == pytest.approx((3 + 5 * 4) / (5 * 7))  # 0 lies on the rim of the ball of 3
    assert found["coverage"] == pytest.approx(4 / 7)  # 3 is 2.95 from a feature, 4 is 3.95
    assert found["recall"] == 1.0  # the stray one's ball reaches back to 0.01


def test_ceiling_of_coverage_is_known() -> None:
    """For identical laws E[coverage] = 1 - prod_{i<k} (n - 1 - i) / (2n - 1 - i) (Naeem et al., lemma 2)."""
    n = 60
    expected = 1 - np.prod([(n - 1 - i) / (2 * n - 1 - i) for i in range(K)])
    found = [ceiling(normals(2 * n, 4, 20 + i), n, seed=i) for i in range(80)]
    assert np.mean([f["coverage"] for f in found]) == pytest.approx(expected, abs=0.008)
    assert np.mean([f["density"] for f in found]) == pytest.approx(1, abs=0.03)


def test_refuses_unequal_or_few() -> None:
    with pytest.raises(ValueError, match="8 features and 9 reference rows"):
        prdc(normals(8, 2, 0), normals(9, 2, 1))
    with pytest.raises(ValueError, match="above k=5"):
        prdc(normals(5, 2, 0), normals(5, 2, 1))
    with pytest.raises(ValueError, match="n=11 of 20"):
        ceiling(normals(20, 2, 0), 11, seed=0)
