"""The judge of a run: loaded, or made of the teacher's own images where nothing was trained on such images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import ray

from redif_ray.config import Config
from redif_ray.evaluation.judge import Judge, load_judge, untrained_judge
from redif_ray.evaluation.random_features import NAME
from redif_ray.pipeline.accounting import Accounts


def judge_of(
    config: Config, coordinator: Any, count: int, accounts: Accounts, get: Callable[[Any], Any] = ray.get
) -> Judge:
    """The judge of `count` images, with as many reference images at least. get: the caller's way to wait."""
    if config.evaluation.judge != NAME:
        return load_judge(config.evaluation.judge)
    metas, references = get(coordinator.reference.remote(count))
    accounts.add_evaluation(metas)
    return untrained_judge(np.concatenate(get(references)))
