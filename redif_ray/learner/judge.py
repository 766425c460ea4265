"""The judge of a run: loaded, or built from the teacher's images where no network was trained on such images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import ray

from redif_ray.config import Config
from redif_ray.evaluation.judge import Judge, judge_of_images, load_judge, needs_reference
from redif_ray.faults import fetched
from redif_ray.learner.compute import Accounts


def judge_of(
    config: Config,
    coordinator: Any,
    count: int,
    accounts: Accounts,
    get: Callable[[Any], Any] = ray.get,
    **options: Any,
) -> Judge:
    """Return the judge of `count` images; it has at least as many reference images.

    accounts: where the work for reference images is booked. get: the caller's substitute for `ray.get`.
    options: keyword arguments of the Judge.
    """
    if not needs_reference(config.evaluation.judge):
        return load_judge(config.evaluation.judge, **options)
    data = fetched(lambda lost: coordinator.reference.remote(count, lost), get)
    accounts.add_evaluation(meta for metas in data.metas for meta in metas)
    images = np.concatenate([images for (images,) in data.parts.values()])
    return judge_of_images(config.evaluation.judge, images, **options)
