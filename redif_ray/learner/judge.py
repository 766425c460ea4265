"""The judge of a run, whose reference features the reward workers compute."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ray

from redif_ray.evaluation.judge import Judge
from redif_ray.faults import fetched
from redif_ray.learner.compute import Accounts


def judge_of(coordinator: Any, count: int, accounts: Accounts, get: Callable[[Any], Any] = ray.get) -> Judge:
    """Return the judge of `count` images; it has at least as many reference images.

    accounts: where the work for the reference is booked. get: the caller's substitute for `ray.get`.
    """
    data = fetched(lambda lost: coordinator.reference.remote(count, lost), get)
    accounts.add_evaluation(meta for metas in data.metas for meta in metas)
    return Judge.of([reference for (reference,) in data.parts.values()])
