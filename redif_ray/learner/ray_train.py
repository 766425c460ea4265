"""The function that Ray Train calls on each rank of the learner.

Ray Train's controller imports this file in a process of its own, so the file imports neither torch nor diffusers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ray

from redif_ray.errors import UserError
from redif_ray.user_code.errors import exits_named
from redif_ray.workers.lazy_import import imported


@dataclass(frozen=True, slots=True)
class Outcome:
    """The end of training: rounds done, whether a stop was asked for, the compute ledger, and the user error if any."""

    round: int
    stopped: bool
    ledger: dict[str, Any]
    error: UserError | FloatingPointError | None = None


def train_loop(job: dict[str, Any]) -> Outcome | None:
    """Train as one rank; return the outcome on rank 0, else None.

    A user error is returned in the outcome instead of raised, because Ray Train would retry and fail again.
    """
    with exits_named():  # Ray Train would take it for the end of the training
        return _train(job)


def _train(job: dict[str, Any]) -> Outcome | None:
    context = ray.train.get_context()
    learner = imported("redif_ray.learner.learner:Learner")(job, context.get_world_rank(), context.get_world_size())
    try:
        with exits_named():
            outcome = learner.run()
        learner.publisher.forget(before=learner.round + 1)
    except (UserError, FloatingPointError) as error:
        if learner.ranks.world > 1:  # other ranks wait in a collective; if this one returned, they would hang
            raise
        outcome = Outcome(learner.round, False, learner.accounts.ledger.state(), error)
    finally:
        learner.leave()
    return outcome if learner.ranks.first else None
