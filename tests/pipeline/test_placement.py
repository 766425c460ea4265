"""Where the workers of a run may be: what they ask of a cluster, and what is said where it has too little."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import ray

from redif_ray.config import Config, ConfigError, load
from redif_ray.pipeline import cluster, fit
from redif_ray.pipeline.footprint import Footprint, Footprints

PLACED = (
    "ray.address=auto", "rollout.workers=4", "rollout.gpus=0.5", "rollout.resources={rollout: 1, spot: 0.5}",
    "reward.workers=2", "reward.resources={reward: 1}", "rollout.groups=4", "learner.workers=2", "learner.gpus=1",
    "learner.cpus=3", "learner.resources={rollout: 2}",
)  # fmt: skip
ENOUGH = {"CPU": 12.0, "GPU": 4.0, "rollout": 8.0, "spot": 2.0, "reward": 2.0}


def placed(*overrides: str) -> Config:
    found: Config = load(None, [*PLACED, *overrides])
    return found


@pytest.fixture
def up(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """What a cluster has, to be changed by a test."""
    have = dict(ENOUGH)
    monkeypatch.setattr(ray, "cluster_resources", lambda: have)
    monkeypatch.setattr(fit, "resources", lambda _: have)
    return have


def test_what_a_run_needs_is_added_up_by_name() -> None:
    assert cluster.needed(placed()) == ENOUGH
    assert cluster.needed(load(None)) == {"CPU": 3, "GPU": 0}


def test_enough_is_enough(up: dict[str, float]) -> None:
    cluster._check(placed())


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("CPU", "lower workers or cpus, or join a larger cluster"),
        ("GPU", "lower workers or gpus, or join a larger cluster"),
        ("spot", "start nodes with `--resources='{\"spot\": N}'`"),
    ],
)
@pytest.mark.parametrize("have", [0.0, 1.5])
def test_what_is_missing_is_named(kind: str, said: str, have: float, up: dict[str, float]) -> None:
    up[kind] = have
    if not have:
        del up[kind]
    with pytest.raises(ConfigError) as caught:
        cluster._check(placed())
    found = str(caught.value)
    assert found.startswith(f"this run needs {ENOUGH[kind]:g} of the resource {kind} (all its workers together)")
    assert f"the cluster has {have:g}; " in found and said in found and found.endswith("set ray.wait=true")


def test_nodes_on_their_way_are_waited_for(up: dict[str, float], caplog: pytest.LogCaptureFixture) -> None:
    up.clear()
    with caplog.at_level(logging.WARNING):
        cluster._check(placed("ray.wait=true"))
    assert len(caplog.messages) == len(ENOUGH)
    assert "needs 2 of the resource spot (all its workers together) and the cluster has 0; waiting" in caplog.text


def test_doctor_counts_custom_resources(up: dict[str, float]) -> None:
    roles = dict.fromkeys(("rollout", "reward", "learner"), Footprint(1, 1, 1))
    del up["spot"]

    def rows(*overrides: str) -> dict[str, Any]:
        return {need.what: need for need in fit.needs(placed(*overrides), Footprints(roles, 10, 10))}

    found = rows()
    assert found["rollout"].met and found["GPUs"].met and found["spot"].needed == 2 and not found["spot"].met
    waited = rows("ray.wait=true")
    assert waited["spot"].available is None and waited["spot"].met and waited["rollout"].available == 8
