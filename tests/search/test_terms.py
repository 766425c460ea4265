from __future__ import annotations

import numpy as np
import pytest
import torch

from redif_ray.config import Config, load
from redif_ray.diffusion.noise import Stream
from redif_ray.diffusion.schedules import Times
from redif_ray.evaluation.random_features import RandomFeatures
from redif_ray.planning import factory
from redif_ray.planning.rounds import RoundPlan
from redif_ray.search.terms import FEATURES, TARGETS, score
from redif_ray.search.worker import SearchWorker


def test_the_objective_is_the_weighted_terms_and_the_distance_of_gaussians() -> None:
    random = np.random.default_rng(0)
    same = random.normal(size=(40_000, 2))
    terms = {"mse": np.array([-1.0, -3.0]), "clip": np.array([0.5, 0.5]), FEATURES: 2 * same + [3, 0], TARGETS: same}
    assert score(terms, {"mse": 2.0, "clip": 1.0}, 0.0) == pytest.approx(4 - 0.5)
    # |3|^2 + 2 (1 + 4 - 2 x 2)
    assert score(terms, {"mse": 0.0}, 0.1) == pytest.approx(0.1 * 11, rel=0.02)


def test_a_worker_adds_features_of_both_images_where_they_are_asked_for(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    config: Config = load("smoke", [f"run.root={tmp_path_factory.mktemp('runs')}", "search.frechet.weight=1"])
    worker = SearchWorker("search-0", config)
    plan = RoundPlan(config, factory.conditions(config, worker.teacher))
    (unit,) = plan.deploy(Stream.SEARCH, 4, size=4)
    _, targets = worker.targets(unit)
    _, terms = worker.terms(unit, Times((999.0, 500.0)), targets)
    images = worker._along(unit, Times((999.0, 500.0)))[0].numpy()
    encoder = RandomFeatures(images.shape[1:])
    for name, of in ((FEATURES, images), (TARGETS, targets)):
        assert np.allclose(terms[name], encoder.embedding(torch.from_numpy(of.copy())).numpy(), atol=1e-5)
    assert terms["mse"].shape == (4,)
