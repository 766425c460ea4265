"""One rank of the learner, as Ray Train calls it.

Ray Train's controller reads this file in a process of its own, so it imports neither torch nor diffusers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ray

from redif_ray.errors import UserError
from redif_ray.workers.lazy_import import imported


@dataclass(frozen=True, slots=True)
class Outcome:
    """How training ended: rounds done, whether it was asked to stop, what it cost, and the user error that ended it."""

    round: int
    stopped: bool
    ledger: dict[str, Any]
    error: UserError | FloatingPointError | None = None


def train_loop(job: dict[str, Any]) -> Outcome | None:
    """One rank's work, as Ray Train calls it; rank 0 answers. A user error is returned: retries would not mend it."""
    context = ray.train.get_context()
    learner = imported("redif_ray.learner.learner:Learner")(job, context.get_world_rank(), context.get_world_size())
    try:
        outcome = learner.run()
        learner.publisher.forget(before=learner.round + 1)
    except (UserError, FloatingPointError) as error:
        if learner.ranks.world > 1:  # other ranks wait in a collective; leaving quietly would hang them
            raise
        outcome = Outcome(learner.round, False, learner.accounts.ledger.state(), error)
    finally:
        learner.leave()
    return outcome if learner.ranks.first else None
