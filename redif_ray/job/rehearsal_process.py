"""The process of a rehearsal: it imports the user's code and calls reward terms on a few images.

`python -m redif_ray.job.rehearsal_process FOLDER SECONDS` takes the configuration as JSON from its input. `rehearsal`
names the files in the folder. SECONDS: what each part may take, after which the process ends and leaves its stack in
the folder.
"""

from __future__ import annotations

import faulthandler
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch

from redif_ray.config import Config, validate
from redif_ray.errors import UserError
from redif_ray.files import atomic_file
from redif_ray.job.rehearsal import RESULT, STACK, STEP, last_step, own_names, own_terms
from redif_ray.learning.advantages import find_advantage
from redif_ray.learning.losses import find_loss
from redif_ray.learning.regularisers import find_divergence
from redif_ray.methods import phases_of
from redif_ray.models.protocol import DiffusionModel
from redif_ray.models.registry import teacher_outline
from redif_ray.planning import factory
from redif_ray.planning.paths import absolute
from redif_ray.rewards.base import RewardError, RewardInputs, Rewards
from redif_ray.types import Condition
from redif_ray.user_code.errors import UserCodeError, described

ROWS = (3, 1)  # images of each call: a length that does not follow the images differs from one of them
GRACE_SECONDS = 5.0  # for the limit that an interruptible call has itself


class Rehearsal:
    """The parts of a rehearsal, one after the other. stack: open file for the stack of a part that takes too long."""

    def __init__(self, config: Config, folder: Path, limit: float, stack: IO[str]) -> None:
        self.config, self.folder, self.limit, self.stack = absolute(config), folder, limit, stack

    def run(self) -> None:
        """Try the code in the order in which a run needs it. Raises UserError, or whatever the code raises."""
        names, terms = own_names(self.config), own_terms(self.config)
        finders: dict[str, Callable[[str], Any]] = {
            "method": lambda _: phases_of(self.config),
            "learner.loss": find_loss,
            "learner.advantage": find_advantage,
            "learner.regulariser.kind": find_divergence,
        }
        with self._trying(f"teacher.family={names['teacher.family']}" if "teacher.family" in names else None):
            teacher = teacher_outline(self.config.teacher)
        for key, find in finders.items():
            if key in names:
                with self._trying(f"{key}={names[key]}"):
                    find(names[key])
        conditions = factory.conditions(self.config, teacher).training if terms else ()
        for label, options in terms.items():
            with self._trying(f"reward.terms.{label} ({options.get('callable', options.get('url'))})"):
                self._score(label, teacher, conditions)

    @contextmanager
    def _trying(self, step: str | None) -> Iterator[None]:
        """Limit the time of a block that runs the code `step`; None: code of this package, without a limit."""
        if step is not None:
            (self.folder / STEP).write_text(step)
            faulthandler.dump_traceback_later(self.limit + GRACE_SECONDS, exit=True, file=self.stack)
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()

    def _score(self, label: str, teacher: DiffusionModel, conditions: Sequence[Condition]) -> None:
        """Build a reward term and score images of random pixels. Raises RewardError."""
        asked, reward = self.config, self.config.reward
        gpu = reward.gpus > 0 and torch.cuda.is_available()
        own = reward.model_copy(update={"terms": {label: reward.terms[label]}})
        # The run folder is not read: another start may have left one.
        nowhere = asked.run.model_copy(update={"root": str(self.folder)})
        asked = asked.model_copy(update={"reward": own, "run": nowhere})
        rewards = factory.rewards(asked, teacher, "cuda" if gpu else "cpu")
        if reward.gpus > 0 and not gpu:
            return  # the function may expect images on a GPU, which this machine lacks
        for rows in ROWS:
            images = torch.rand(2, rows, *teacher.image_shape, generator=torch.Generator().manual_seed(rows))
            student, target = images.to("cuda" if gpu else "cpu")
            student = student.clone().requires_grad_(rewards.terms[label].differentiable)
            _call(rewards, RewardInputs(student, target, [conditions[i % len(conditions)] for i in range(rows)]))


def _call(rewards: Rewards, inputs: RewardInputs) -> None:
    for label, value in rewards(inputs).items():
        if not rewards.terms[label].differentiable:
            continue
        (slope,) = torch.autograd.grad(value.sum(), inputs.student, allow_unused=True)
        if slope is None or not torch.isfinite(slope).all():
            what = "no gradient" if slope is None else "a gradient that is not finite"
            raise RewardError(f"reward term {label!r} declares itself differentiable, but its value carries {what}")


def main(folder: Path, limit: float) -> None:
    """Run the rehearsal and write its error, or none, to the folder."""
    result = {}
    with (folder / STACK).open("w") as stack:
        try:
            Rehearsal(validate(json.load(sys.stdin)), folder, limit, stack).run()
        except BaseException as error:  # also what is no `Exception`, since the driver is to say it
            kind, text = type(error), str(error)
            if not isinstance(error, UserError):
                kind, text = UserCodeError, f"{last_step(folder)}: {described(error)}"
            result = {"kind": f"{kind.__module__}:{kind.__qualname__}", "text": text}
    with atomic_file(folder / RESULT) as partial:
        partial.write_text(json.dumps(result))
    os._exit(0)  # whatever threads the user's code has left


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]))
