"""Bootstrap intervals against normal theory and by their coverage over repeated experiments."""

from __future__ import annotations

import numpy as np
import pytest

from redif_ray.diffusion import noise
from redif_ray.diffusion.noise import Stream
from redif_ray.evaluation.bootstrap import captions_of, difference, interval
from redif_ray.evaluation.frechet import frechet_to


def normals(n: int, d: int, seed: int) -> np.ndarray:
    return noise.normal(n * d, Stream.RESAMPLE, seed=seed, round=96).reshape(n, d).astype(np.float64)


def mean(x: np.ndarray) -> float:
    return float(x.mean())


def test_interval_of_a_mean_is_the_normal_one() -> None:
    x = 3 + 2 * normals(400, 1, 0)[:, 0]
    low, high = interval(mean, [x], resamples=1500, seed=1)
    half = 1.96 * x.std() / np.sqrt(len(x))
    assert low == pytest.approx(x.mean() - half, abs=0.1 * half)
    assert high == pytest.approx(x.mean() + half, abs=0.1 * half)


def test_rows_of_all_arrays_go_together() -> None:
    x = normals(50, 1, 2)[:, 0]
    low, high = interval(lambda a, b: float((a - b).std()), [x, x], resamples=40, seed=0)
    assert low == high == 0


@pytest.mark.slow
def test_covers_the_expected_frechet_distance_at_this_n() -> None:
    """Nominal 95 %. Percentiles that are not moved miss it almost always here: the bias is several standard errors."""
    distance, n, d = frechet_to(normals(2000, 8, 3) + 0.3), 60, 8
    samples = [normals(n, d, 100 + i) for i in range(120)]
    expected = np.mean([distance(x) for x in samples])
    bounds = [interval(distance, [x], resamples=60, seed=i) for i, x in enumerate(samples)]
    assert 0.87 <= np.mean([low <= expected <= high for low, high in bounds]) <= 1


def test_difference_is_paired() -> None:
    """Arms that share their noise differ by far less than each varies: the interval is that of the row differences."""
    shared, own = normals(300, 1, 4)[:, 0], 0.05 * normals(300, 1, 5)[:, 0]
    estimate, low, high = difference(mean, [shared + own + 0.1], [shared], resamples=800, seed=2)
    half = 1.96 * own.std() / np.sqrt(300)
    assert estimate == pytest.approx(0.1 + own.mean())
    assert (high - low) / 2 == pytest.approx(half, rel=0.12)


@pytest.mark.slow
def test_rows_of_a_cluster_are_drawn_together() -> None:
    """Five equal rows a cluster are one observation: the interval is that of the clusters, sqrt(5) times the rows'."""
    x = normals(80, 1, 9)[:, 0].repeat(5)
    labels = [f"caption {i // 5}" for i in range(400)]
    (low, high), (close, far) = (interval(mean, [x], resamples=1500, seed=3, clusters=c) for c in (labels, None))
    half = 1.96 * x.std() / np.sqrt(80)
    assert (high - low) / 2 == pytest.approx(half, rel=0.08)
    assert (high - low) / (far - close) == pytest.approx(np.sqrt(5), rel=0.08)


def test_a_cluster_of_one_row_each_is_no_cluster() -> None:
    x = normals(30, 1, 6)[:, 0]
    bounds = [interval(mean, [x], resamples=50, seed=7, clusters=c) for c in (None, range(30))]
    assert bounds[0] == bounds[1]


def test_a_difference_is_resampled_by_cluster_too() -> None:
    shared = normals(60, 1, 11)[:, 0].repeat(4)
    first, second = shared + 0.1 * normals(240, 1, 12)[:, 0], 0.5 * shared
    labels = [i // 4 for i in range(240)]
    _, low, high = difference(mean, [first], [second], resamples=1000, seed=2, clusters=labels)
    means = (first - second).reshape(60, 4).mean(1)
    assert (high - low) / 2 == pytest.approx(1.96 * means.std() / np.sqrt(60), rel=0.1)


def test_captions_are_clusters_and_classes_are_not() -> None:
    assert captions_of(["a", "b", "a"]) == ["a", "b", "a"]
    assert captions_of([1, 2, 1]) is captions_of([None, "a"]) is captions_of([]) is None


def test_same_seed_same_interval() -> None:
    x = normals(30, 2, 6)
    first, again, other = (interval(mean, [x], resamples=50, seed=s) for s in (7, 7, 8))
    assert first == again != other


def test_refuses() -> None:
    with pytest.raises(ValueError, match=r"lengths \[3, 4\]"):
        interval(mean, [np.zeros(3), np.zeros(4)], resamples=50, seed=0)
    with pytest.raises(ValueError, match="resamples=10"):
        interval(mean, [np.zeros(3)], resamples=10, seed=0)
    with pytest.raises(ValueError, match="expected finite numbers"):
        interval(lambda x: float("nan"), [np.zeros(3)], resamples=50, seed=0)
