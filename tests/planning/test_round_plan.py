from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from redif_ray.config import Config, load
from redif_ray.data.conditions import load_conditions
from redif_ray.diffusion.noise import Stream
from redif_ray.planning.rounds import RoundPlan
from redif_ray.types import WorkUnit


def config(*overrides: str) -> Config:
    """Two warm rounds of 10 groups, then five rounds of 6 groups with 4 siblings, in work units of 2 groups."""
    found: Config = load(
        None,
        [
            "warm_start.rounds=2",
            "warm_start.groups=10",
            "learner.rounds=5",
            "rollout.groups=6",
            "rollout.siblings=4",
            "rollout.unit_groups=2",
            "draft.groups=7",
            "evaluation.batch=5",
            *overrides,
        ],
    )
    return found


def plan(*overrides: str) -> RoundPlan:
    found = config(*overrides)
    drawn = load_conditions(found.conditions, num_classes=10, captions=False, seed=found.run.seed)
    return RoundPlan(found, drawn)


def groups(plan: RoundPlan, *rounds: int) -> list[int]:
    return [g for r in (rounds or range(plan.rounds)) for unit in plan.units(r) for g in unit.groups]


@pytest.mark.parametrize("method", ["redif", "draft", "sfd"])
def test_without_a_pool_every_group_is_new(method: str) -> None:
    found = plan(f"method={method}")
    count = {"redif": 2 * 10 + 5 * 6, "draft": 2 * 10 + 5 * 7, "sfd": 2 * 10}[method]
    assert groups(found) == list(range(count))
    assert found.rounds == (2 if method == "sfd" else 7)


def test_the_warm_start_and_the_policy_never_share_a_group() -> None:
    found = plan()
    assert not set(groups(found, 0, 1)) & set(groups(found, 2, 3, 4, 5, 6))


@pytest.mark.parametrize("pool", [1, 3, 7, 16, 50])
@pytest.mark.parametrize("rounds", [(0, 1), (2, 3, 4, 5, 6)])
def test_with_a_pool_each_epoch_is_a_permutation_of_it(pool: int, rounds: tuple[int, ...]) -> None:
    """In each phase anew."""
    order = groups(plan(f"conditions.pool={pool}"), *rounds)
    epochs = [order[i : i + pool] for i in range(0, len(order), pool)]
    whole = [epoch for epoch in epochs if len(epoch) == pool]
    assert all(sorted(epoch) == list(range(pool)) for epoch in whole)
    assert len(set(epochs[-1])) == len(epochs[-1]) and set(epochs[-1]) <= set(range(pool))
    if pool >= 7:
        assert len({tuple(epoch) for epoch in whole}) == len(whole)


@pytest.mark.parametrize(("pool", "units"), [(12, 6), (6, 3)])
def test_every_pass_over_a_pool_has_the_same_work_units(pool: int, units: int) -> None:
    """So that the teacher's images of a unit, which are one file, serve all passes."""
    found = plan(f"conditions.pool={pool}")
    cut = [unit.groups for round in range(2, 7) for unit in found.units(round)]
    assert len(cut) == 15 and len(set(cut)) == units
    assert len(set(cut[: pool // 2])) == pool // 2


def test_the_order_of_a_pool_depends_on_the_seed() -> None:
    assert groups(plan("conditions.pool=50")) != groups(plan("conditions.pool=50", "run.seed=1"))


@pytest.mark.parametrize(
    ("method", "round", "phase", "sizes", "siblings"),
    [
        ("redif", 0, "warm_start", [8, 2], 1),
        ("redif", 1, "warm_start", [8, 2], 1),
        ("redif", 2, "policy", [2, 2, 2], 4),
        ("redif", 6, "policy", [2, 2, 2], 4),
        ("draft", 1, "warm_start", [8, 2], 1),
        ("draft", 2, "draft", [7], 1),
        ("sfd", 1, "warm_start", [8, 2], 1),
    ],
)
def test_units_have_one_size_but_the_last(method: str, round: int, phase: str, sizes: list[int], siblings: int) -> None:
    units = plan(f"method={method}").units(round)
    assert [len(s.groups) for s in units] == [len(s.conditions) for s in units] == sizes
    assert [s.index for s in units] == list(range(len(sizes)))
    assert {(s.round, s.phase, s.stream, s.siblings) for s in units} == {(round, phase, Stream.TRAIN, siblings)}


def test_rows_are_group_major() -> None:
    unit = plan().units(2)[1]
    assert unit.groups == (22, 23) and unit.conditions == (2, 3)
    assert unit.per_row() == ([22] * 4 + [23] * 4, [0, 1, 2, 3] * 2, [2] * 4 + [3] * 4)
    assert unit.rows == 8


def test_deployed_sets_are_cut_alike_and_told_apart_by_their_stream() -> None:
    found = plan()
    held_out, validation = found.deploy(Stream.HELD_OUT, 12), found.deploy(Stream.VALIDATION, 12, round=4)
    assert [s.groups for s in held_out] == [tuple(range(5)), tuple(range(5, 10)), (10, 11)]
    for one, other in zip(held_out, validation, strict=True):
        assert one.groups == other.groups and one.conditions == other.conditions
        assert (one.stream, one.round) == (Stream.HELD_OUT, 0) and (other.stream, other.round) == (Stream.VALIDATION, 4)
        assert one.phase == other.phase == "deploy" and one.siblings == other.siblings == 1
    assert all(s.stream is Stream.TRAIN for r in range(found.rounds) for s in found.units(r))


def test_deployed_sets_do_not_depend_on_the_pool_or_the_seed() -> None:
    assert plan("conditions.pool=3", "run.seed=4").deploy(Stream.HELD_OUT, 12) == plan().deploy(Stream.HELD_OUT, 12)


def test_a_round_is_a_function_of_the_configuration_alone() -> None:
    """Asked in any order, any number of times, by another object: the same work units."""

    def all_rounds(order: list[int]) -> dict[int, list[WorkUnit]]:
        found = plan("conditions.pool=16")
        return {r: found.units(r) for r in order}

    forwards, backwards = all_rounds(list(range(7))), all_rounds([6, 3, 3, 0, 5, 4, 2, 1])
    assert forwards == backwards


@pytest.mark.parametrize("classes", [[0, 1, 2, 3, 4, 5, 6, 7, 8, 9], [7, 2, 5]])
@pytest.mark.parametrize("count", [9, 30, 64])
def test_sets_are_as_balanced_as_their_size_allows(classes: list[int], count: int) -> None:
    found = plan(f"conditions.classes={classes}").deploy(Stream.HELD_OUT, count)
    drawn = Counter(c for unit in found for c in unit.conditions)
    assert set(drawn) == set(classes[:count]) and max(drawn.values()) - min(drawn.values()) <= 1


def test_a_group_keeps_its_condition_when_the_pool_revisits_it() -> None:
    found = plan("conditions.pool=7")
    seen: dict[int, set[Any]] = {}
    for unit in (s for r in range(found.rounds) for s in found.units(r)):
        for group, condition in zip(unit.groups, unit.conditions, strict=True):
            seen.setdefault(group, set()).add(condition)
    assert set(seen) == set(range(7)) and all(len(conditions) == 1 for conditions in seen.values())
