"""The student on one rank, with all that is trained along with it: the same in `loop.py` and in a run on Ray."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from redif_ray.config import Config
from redif_ray.learner.ranks import Ranks
from redif_ray.learner.train_state import load_trained, trained
from redif_ray.learning.advantages import RunningStatistics
from redif_ray.learning.ema import ExponentialAverage
from redif_ray.learning.round_update import Learning, Round
from redif_ray.learning.step import make_optimizer
from redif_ray.methods import Phase
from redif_ray.models.protocol import DiffusionModel
from redif_ray.models.sharding import whole
from redif_ray.models.student import trainable
from redif_ray.planning import factory
from redif_ray.workers.offload import Belonging


class Trainee:
    """The student, and the optimiser, average and companion of the phase that trains it; `start` begins a phase.

    teacher: None where no regulariser pulls towards it and it need not stay.
    """

    phase: Phase
    learning: Learning

    def __init__(self, config: Config, student: DiffusionModel, teacher: DiffusionModel | None, ranks: Ranks) -> None:
        self.config, self.student, self.teacher, self.ranks = config, student, teacher, ranks
        self.parameters, self.running = trainable(student), RunningStatistics()

    def start(self, phase: Phase) -> None:
        """Begin a phase, with an optimiser, an average of the weights and a companion of its own."""
        self.phase, config, student = phase, self.config, self.student
        self.average = ExponentialAverage(self.parameters, phase.ema) if phase.ema else None
        self.learning = Learning(
            config,
            student,
            make_optimizer(self.parameters.values(), config.learner),
            factory.student_schedule(student, config.student),
            self.teacher,
            self.running,
            lambda: factory.rewards(config, student, student.device),
            self.ranks.rank,
            self.ranks.world,
            self.ranks.all_reduce,
        )
        self.learning = replace(self.learning, companion=phase.companion(self.learning))

    def update(self, round: Round) -> dict[str, float]:
        """Train on a round; return its metrics."""
        if self.average is not None and self.phase.begins_anew(round.number):
            self.average.restart(self.parameters)
        metrics = self.phase.update(self.learning, round)
        if self.average is not None:
            self.average.update(self.parameters)
        return metrics

    def deployed(self, *, keep: bool = True) -> dict[str, Tensor]:
        """Return the weights that a deployment would use: the average where the phase keeps one.

        Every rank must call this; one with keep=False gets an empty dict.
        """
        return whole(self.average.average if self.average is not None else self.parameters, keep=keep)

    def belongings(self) -> list[Belonging]:
        """Return everything that is on the rank's device and moves to host memory between its turns."""
        models = [self.student, *([] if self.teacher is None else [self.teacher])]
        networks = [network for model in models for network in (model.network, *model.parts.values())]
        average = [] if self.average is None else [self.average.average]
        companion = self.learning.companion
        beside = [] if companion is None else companion.belongings()
        return [*networks, self.learning.optimizer, *average, *beside]

    def state(self, *, keep: bool = True) -> dict[str, Tensor]:
        """Return the tensors for a checkpoint. Every rank must call this; one with keep=False gets an empty dict."""
        tensors = trained(self.student, self.learning.optimizer, self.average, keep=keep)
        companion = self.learning.companion
        return tensors | (companion.state() if keep and companion is not None else {})

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore `state` in its phase, from the tensors of a whole checkpoint."""
        load_trained(self.student, self.learning.optimizer, self.average, tensors)
        if self.learning.companion is not None:
            self.learning.companion.load(tensors)
