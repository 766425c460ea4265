"""What the evaluator has done again when it is lost. Its pool is a plain object."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest
from ray.exceptions import ObjectLostError, RayError

from redif_ray.config import load
from redif_ray.data.conditions import Conditions
from redif_ray.diffusion.schedules import Times
from redif_ray.faults import ATTEMPTS
from redif_ray.search.evaluator import Evaluator
from redif_ray.types import Meta, WorkUnit


class Calls:
    """A pool whose answers to `terms` are lost where they are made with the first `lost` sets of teacher's images."""

    def __init__(self, lost: int) -> None:
        self.lost, self.targets, self.terms = lost, 0, 0

    async def call(self, urgency: tuple[int, int], method: str, unit: WorkUnit, *given: Any) -> tuple[Meta, Any]:
        if method == "targets":
            self.targets += 1
            return Meta(unit, "worker", ()), self.targets
        self.terms += 1
        answer = asyncio.get_running_loop().create_future()
        if given[-1] <= self.lost:
            answer.set_exception(ObjectLostError("ab", None, ""))
        else:
            answer.set_result({"mse": np.full(unit.rows, float(unit.index))})
        return Meta(unit, "worker", ()), answer


def terms(pool: Calls) -> Any:
    config = load("smoke", ["search.rungs=[8]", "search.unit_noises=8", "search.descent.batch=8"])
    found = Evaluator(config, Conditions((0,), (0,)), [])
    found.pool = pool  # type: ignore[assignment]
    return asyncio.run(found.bank_terms(Times((999.0, 500.0)), 8))


def test_teacher_s_images_that_are_lost_are_made_again() -> None:
    pool = Calls(lost=2)
    assert terms(pool)["mse"].tolist() == [0.0] * 8
    assert (pool.targets, pool.terms) == (3, 3)


def test_what_is_lost_again_and_again_is_given_up() -> None:
    pool = Calls(lost=100)
    with pytest.raises(RayError, match=f"work unit 0 of SEARCH was lost {ATTEMPTS} times"):
        terms(pool)
    assert pool.terms == ATTEMPTS
