"""Ways to use several GPUs: the divisions by hand, memory by the roles together, and what `redif doctor` prints."""

from __future__ import annotations

from itertools import product

import pytest
from rich.console import Console

from redif_ray.config import Config, load, override, validate
from redif_ray.planning import split
from redif_ray.planning.memory import OVERHEAD_MB, Footprint
from redif_ray.planning.nodes import Node, share_cards

ROLES = {"rollout": Footprint(100, 0, 50), "reward": Footprint(300, 0, 100), "learner": Footprint(100, 200, 700)}
SECONDS = {"rollout": 3.0, "reward": 4.0, "learner": 6.0}


def config(*overrides: str) -> Config:
    found: Config = load(None, ["rollout.groups=24", *overrides])
    return found


def set_to(base: Config, way: split.Way) -> Config:
    tree = base.model_dump()
    for text in way.settings:
        override(tree, text)
    found: Config = validate(tree)
    return found


def ways(base: Config, number: int) -> dict[str, split.Way]:
    return {way.name: way for way in split.ways(base, ROLES, SECONDS, number)}


def test_memory_is_that_of_the_roles_on_a_gpu() -> None:
    found = ways(config(), 8)
    learner, others = 1000, 150 + 400
    assert found["shared"].memory_mb == learner + others + 3 * OVERHEAD_MB
    assert found["shared in turns"].memory_mb == learner + 3 * OVERHEAD_MB
    assert found["apart"].memory_mb == learner + OVERHEAD_MB


@pytest.mark.parametrize("number", [2, 3, 8, 64])
def test_each_way_is_a_configuration_with_that_many_gpus(number: int) -> None:
    found = ways(config(), number)
    assert list(found) == ["shared", "shared in turns", "apart"][: 2 + (number > 2)]
    for name, way in found.items():
        divided = set_to(config(), way)
        assert divided.rollout.groups % number == 0 or name == "apart"
        assert share_cards(divided) == (name != "apart")
        assert split.gpus(divided, []) == number


def test_the_best_division_is_that_of_a_search_by_hand() -> None:
    """The slowest role decides with staleness; the update follows rollout and rewards without it."""
    for staleness in (0, 1):
        base = config(f"pipeline.staleness={staleness}")
        best = min(
            max(3 / a, 4 / b, 6 / c) if staleness else max(3 / a, 4 / b) + 6 / c
            for a, b, c in product(range(1, 9), repeat=3)
            if a + b + c == 8 and 24 % c == 0
        )
        found = ways(base, 8)
        assert found["apart"].seconds == pytest.approx(best)
        assert found["shared"].seconds == pytest.approx(13 / 8)
        assert bool(found["shared in turns"].refused) == bool(staleness)


def test_more_groups_where_there_are_more_gpus_than_groups() -> None:
    found = ways(config(), 64)["shared"]
    assert "rollout.groups=64" in found.settings and found.seconds == pytest.approx(64 / 24 * 13 / 64)


@pytest.mark.slow
def test_work_of_a_round_is_counted() -> None:
    """A longer student takes more of the rollout, and nothing more of the teacher."""
    few, more = (split.work(load("fashion_mnist", [f"student.steps={n}", "warm_start.rounds=0"])) for n in (2, 4))
    assert few["rollout"] < more["rollout"] and few["learner"] <= more["learner"]
    assert few["reward"] == pytest.approx(more["reward"]) and min(few.values()) > 0


@pytest.mark.parametrize(
    ("memory", "proposed"), [(8000, "shared"), (5200, "shared in turns"), (3000, "apart"), (2000, "")]
)
def test_the_first_that_fits_is_proposed(memory: float, proposed: str) -> None:
    text = Console(width=200)
    with text.capture() as printed:
        text.print(split.table(list(ways(config(), 8).values()), 8, memory))
    lines = [line for line in printed.get().splitlines() if "proposed" in line]
    assert [line.strip().partition(",")[0] for line in lines] == ([proposed] if proposed else [])


def test_gpus_that_are_there_count_before_those_asked_for() -> None:
    asked = config("rollout={max_workers: 3, gpus: 0.5}", "reward.gpus=1", "learner.gpus=1")
    node = Node({"GPU": 8.0}, {}, (), 0, 0)
    assert split.gpus(asked, []) == 4 and split.gpus(asked, [node]) == 8
