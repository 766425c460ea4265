"""An earlier student from which the student learns: its weights as they were, or an average of those it had."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from redif_ray.checkpoint import pack, unpack
from redif_ray.learning.ema import ExponentialAverage
from redif_ray.models.protocol import DiffusionModel
from redif_ray.models.student import trainable

NAME = "earlier_student"


class EarlierStudent:
    """The weights of an earlier student; the student's network computes with them for as long as a block lasts.

    decay: of the average, in [0, 1); 0 keeps the weights of the last `follow`.
    """

    def __init__(self, student: DiffusionModel, decay: float) -> None:
        self.student, self.average = student, ExponentialAverage(trainable(student), decay)

    def follow(self) -> None:
        """Average in the student's weights as they are now."""
        self.average.update(trainable(self.student))

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Give the student's network the earlier weights in this block."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        """Exchange the data of the student's parameters with the earlier ones, which copies nothing."""
        kept = self.average.average
        for name, parameter in trainable(self.student).items():
            parameter.data, kept[name] = kept[name], parameter.data

    def belongings(self) -> list[Any]:
        """Return the weights, which are on the learner's device."""
        return [self.average.average]

    def state(self) -> dict[str, Tensor]:
        """Return the tensors for a checkpoint."""
        return pack(NAME, self.average.state_dict())

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore `state` from the tensors of a whole checkpoint."""
        self.average.load_state_dict(unpack(NAME, tensors))
