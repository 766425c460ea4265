"""Where the workers of a run may be: what they ask of a cluster, and what is said where it has too little."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import ray
import torch

from redif_ray.cluster import connect, placement
from redif_ray.config import Config, ConfigError, load
from redif_ray.interrupt import Interrupted, StopRequest
from redif_ray.job import requirements
from redif_ray.job.evaluate import evaluated
from redif_ray.planning.memory import Footprint, Footprints
from redif_ray.planning.nodes import Node

PLACED = (
    "ray.address=auto",
    "rollout.max_workers=4",
    "rollout.gpus=0.5",
    "rollout.resources={rollout: 1, spot: 0.5}",
    "reward.max_workers=2",
    "reward.resources={reward: 1}",
    "rollout.groups=4",
    "learner.workers=2",
    "learner.gpus=1",
    "learner.cpus=3",
    "learner.resources={rollout: 2}",
)
ENOUGH = {"CPU": 12.0, "GPU": 4.0, "rollout": 8.0, "spot": 2.0, "reward": 2.0}
NODES = [
    {"Alive": True, "Labels": {"zone": "a", "ray.io/market-type": "spot"}},
    {"Alive": True, "Labels": {"zone": "b"}},
    {"Alive": False, "Labels": {"zone": "c"}},
]


def placed(*overrides: str) -> Config:
    found: Config = load(None, [*PLACED, *overrides])
    return found


@pytest.fixture
def up(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """What a cluster has, to be changed by a test."""
    have = dict(ENOUGH)
    monkeypatch.setattr(ray, "cluster_resources", lambda: have)
    monkeypatch.setattr(ray, "nodes", lambda: NODES)
    return have


def test_what_a_run_needs_is_added_up_by_name() -> None:
    assert connect.needed(placed()) == ENOUGH
    assert connect.needed(load(None)) == {"CPU": 3, "GPU": 0}


def test_enough_is_enough(up: dict[str, float]) -> None:
    connect._check(placed())


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("CPU", "lower the number of workers or their cpus, or join a larger cluster"),
        ("GPU", "lower the number of workers or their gpus, or join a larger cluster"),
        ("spot", "start nodes with `--resources='{\"spot\": N}'`"),
    ],
)
@pytest.mark.parametrize("have", [0.0, 1.5])
def test_what_is_missing_is_named(kind: str, said: str, have: float, up: dict[str, float]) -> None:
    up[kind] = have
    if not have:
        del up[kind]
    with pytest.raises(ConfigError) as caught:
        connect._check(placed())
    found = str(caught.value)
    assert found.startswith(f"this run needs {ENOUGH[kind]:g} of the resource {kind} (all its workers together)")
    assert f"the cluster has {have:g}; " in found and said in found and found.endswith("set ray.wait=true")


def test_nodes_on_their_way_are_waited_for(up: dict[str, float], caplog: pytest.LogCaptureFixture) -> None:
    up.clear()
    with caplog.at_level(logging.WARNING):
        connect._check(placed("ray.wait=true"))
    assert len(caplog.messages) == len(ENOUGH)
    assert "needs 2 of the resource spot (all its workers together) and the cluster has 0; waiting" in caplog.text


@pytest.mark.parametrize("labels", ["{zone: a, ray.io/market-type: spot}", "{zone: b}", "{}"])
def test_labels_of_a_node_that_is_up(labels: str, up: dict[str, float]) -> None:
    connect._check(placed(f"rollout.labels={labels}", "learner.labels={zone: b}"))


@pytest.mark.parametrize("labels", ["{zone: c}", "{zone: b, ray.io/market-type: spot}"])
def test_labels_that_no_node_has(labels: str, up: dict[str, float], caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ConfigError, match=r"reward.labels=.*no node of the cluster has them; .*set ray.wait=true$"):
        connect._check(placed(f"reward.labels={labels}"))
    with caplog.at_level(logging.WARNING):
        connect._check(placed(f"reward.labels={labels}", "ray.wait=true"))
    assert "no node of the cluster has them; waiting for nodes" in caplog.text


def test_what_a_run_starts_with_is_what_it_needs(up: dict[str, float]) -> None:
    config = placed("rollout.min_workers=1", "reward.min_workers=1")
    assert connect.needed(config) == {"CPU": 8, "GPU": 2.5, "rollout": 5, "spot": 0.5, "reward": 1}
    up |= connect.needed(config)
    connect._check(config)


def test_an_evaluation_needs_no_room_for_a_learner() -> None:
    config = load(
        "smoke",
        [
            "rollout.max_workers=2",
            "learner={workers: 2, cpus: 4, fsdp: true}",
            "ray.address=auto",
            "learner.resources.learner=1",
        ],
    )
    assert connect.needed(evaluated(config, ["reward.max_workers=3"])) == {"CPU": 5, "GPU": 0}
    with pytest.raises(ConfigError, match=r"learner\.lr=1: an evaluation may change"):
        evaluated(config, ["learner.lr=1"])


def test_an_evaluation_of_a_run_on_gpus(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """It computes on the CPUs of a machine that has no GPU, and where a cluster has GPUs, as it was run."""
    options = ("rollout.gpus=0.25", "reward.gpus=0.25", "learner.gpus=0.5", "networks.precision=bfloat16")
    for there, override, gpus, precision in (
        (False, "ray.address=local", 0, "float32"),
        (False, "ray.address=auto", 0.25, "bfloat16"),
        (True, "ray.address=local", 0.25, "bfloat16"),
        (True, "networks.precision=float32", 0.25, "float32"),
        (True, "rollout.gpus=0", 0, "bfloat16"),
    ):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        caplog.clear()
        found = evaluated(load("smoke", options), [override])
        assert (found.rollout.gpus, found.networks.precision) == (gpus, precision)
        assert ("has no GPU" in caplog.text) == (gpus == 0 and not there)


def test_what_a_run_waits_for_is_named() -> None:
    config = placed("rollout.min_workers=3", "rollout.labels={zone: a}")
    roles = {"rollout": config.rollout, "reward": config.reward}
    free = {"CPU": 4.0, "GPU": 8.0, "rollout": 3.0, "spot": 4.0}
    assert placement.lacking(roles, free) == (
        "5 of the resource CPU (3 rollout, 2 reward), of which 4 is free; "
        "2 of the resource reward (2 reward), of which 0 is free"
    )
    assert placement.lacking(roles, free | {"CPU": 5.0, "reward": 2.0}) == (
        "enough is free in total, but at least one of these fits on no node: 3 rollout with 1 CPU, 0.5 GPU, 1 rollout, "
        "0.5 spot, on a node with zone=a each; 2 reward with 1 CPU, 1 reward each"
    )


def test_a_worker_without_needs_has_no_bundle() -> None:
    config = placed("rollout.min_workers=2", "reward.cpus=0", "reward.resources={}", "reward.labels={zone: b}")
    asked = {"CPU": 1, "GPU": 0.5, "rollout": 1, "spot": 0.5}
    assert placement.bundles((config.rollout, config.reward)) == ([asked] * 2, [{}] * 2)
    places = placement.Places("group", {"rollout": 0, "reward": 2})
    assert places.options("reward", config.reward, 0) == {"label_selector": {"zone": "b"}}
    inside = places.options("rollout", config.rollout, 1)["scheduling_strategy"]
    assert (inside.placement_group, inside.placement_group_bundle_index) == ("group", 1)
    assert places.options("rollout", config.rollout, 2)["scheduling_strategy"].placement_group is None


@pytest.mark.slow
def test_doctor_counts_custom_resources(up: dict[str, float]) -> None:
    roles = dict.fromkeys(("rollout", "reward", "learner"), Footprint(1, 1, 1))
    del up["spot"]

    def rows(*overrides: str) -> dict[str, Any]:
        one = Node(up, {}, (("card", 80_000.0),), 64_000, 10_000)
        return {
            need.what: need for need in requirements.needs(placed(*overrides), Footprints(roles, 10, 10, 10, 10), [one])
        }

    found = rows()
    assert found["rollout"].met and found["GPUs"].met and found["spot"].needed == 2 and not found["spot"].met
    waited = rows("ray.wait=true")
    assert waited["spot"].available is None and waited["spot"].met and waited["rollout"].available == 8


@pytest.mark.cluster
def test_room_for_all_or_none(cluster: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Of 8 CPUs: others have 4, so that 6 workers wait for them and hold nothing, until they are told to stop."""

    class Counted(StopRequest):
        looks = 0

        def check(self) -> None:
            self.looks += 1
            super().check()

    monkeypatch.setattr(placement, "FIRST_SECONDS", 0)
    config = load(None, ["rollout.max_workers=3", "reward.max_workers=3"])
    roles, stop = {"rollout": config.rollout, "reward": config.reward}, Counted()
    other = ray.util.placement_group([{"CPU": 4}])
    assert other.wait(30)
    asked = threading.Timer(2, lambda: setattr(stop, "requested", True))
    asked.start()
    with pytest.raises(Interrupted), placement.reserved(roles, None, stop):
        pytest.fail("there was no room")
    assert "6 of the resource CPU (3 rollout, 3 reward), of which 4 is free" in caplog.text
    assert stop.looks < 10  # each look leaves something in Ray's head
    ray.util.remove_placement_group(other)
    with placement.reserved(roles, None, StopRequest()) as places:
        assert places.index == {"rollout": 0, "reward": 3}
        assert ray.util.placement_group_table(places.group)["state"] == "CREATED"
    assert {group["state"] for group in ray.util.placement_group_table().values()} == {"REMOVED"}


@pytest.mark.cluster
def test_of_two_runs_one_has_room_for_its_learner_too(
    cluster: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Of 8 CPUs: workers of both fit, and no learner beside them. Each would wait for the other, if it held a part."""
    monkeypatch.setattr(placement, "FIRST_SECONDS", 0)
    monkeypatch.setattr(placement, "TELL_SECONDS", 1)
    config = load(None, ["rollout.max_workers=2", "reward.max_workers=1", "learner.cpus=3"])
    roles = {"rollout": config.rollout, "reward": config.reward}
    inside, seen, over = list[str](), list[list[str]](), threading.Event()

    def run(name: str) -> None:
        with placement.reserved(roles, config.learner, StopRequest()) as places:
            inside.append(name)
            seen.append(list(inside))
            places.let_learner_in()
            ranks = ray.util.placement_group([{"CPU": 3}])  # as Ray Train asks
            assert ranks.wait(30)
            over.wait(60)
            ray.util.remove_placement_group(ranks)
            inside.remove(name)

    runs = [threading.Thread(target=run, args=(name,), daemon=True) for name in ("one", "other")]
    for thread in runs:
        thread.start()
    time.sleep(placement.SPLIT_SECONDS + 2)
    assert len(seen) == 1 and "waiting for room for all that this run starts with: 6 of the resource CPU" in caplog.text
    over.set()
    for thread in runs:
        thread.join(60)
    assert [len(names) for names in seen] == [1, 1] and not inside
    assert {group["state"] for group in ray.util.placement_group_table().values()} == {"REMOVED"}


@pytest.mark.cluster
def test_a_learner_that_waits_is_told_of(cluster: None) -> None:
    learner = load(None, ["learner.workers=2", "learner.cpus=5"]).learner
    assert placement.learner_waits(learner) == ""
    asked = ray.util.placement_group([{"CPU": 5}] * 2)
    try:
        assert not asked.wait(1)
        assert placement.learner_waits(learner) == "10 of the resource CPU (10 learner), of which 8 is free"
        assert placement.learner_waits(learner.model_copy(update={"cpus": 4})) == ""
    finally:
        ray.util.remove_placement_group(asked)


@pytest.mark.cluster
def test_a_room_is_kept_where_the_learner_fits(cluster: None) -> None:
    config = load(None, ["rollout.max_workers=4", "learner.cpus=3"])
    roles = {"rollout": config.rollout, "reward": config.reward}
    with placement.reserved(roles, config.learner, StopRequest()) as places:
        table = ray.util.placement_group_table()
        made = [group["bundles"] for group in table.values() if group["state"] == "CREATED"]
        assert sorted(map(len, made)) == [1, 5] and places.index == {"rollout": 0, "reward": 4}
        assert ray.available_resources().get("CPU", 0) == 0


def test_workers_that_share_gpus_are_in_pairs() -> None:
    config = placed("rollout.max_workers=2", "rollout.gpus=0.2", "reward.gpus=0.2", "rollout.resources={}")
    pair = {"CPU": 2, "GPU": 0.4, "reward": 1}
    assert placement.shared_bundles((config.rollout, config.reward)) == ([pair] * 2, [{}] * 2)


@pytest.mark.cluster
@pytest.mark.long
def test_each_gpu_has_a_rank_and_a_worker_of_each_role() -> None:
    """The GPUs are numbers to Ray, so it places on them what it would place on cards."""
    script = Path(__file__).with_name("shared_cards.py")
    done = subprocess.run([sys.executable, script, "4"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["rollout"] == found["reward"] and found["left"] == []
    for role in ("rollout", "learner"):
        assert sorted(found[role]) == [[0], [1], [2], [3]]
