"""Class agreement: the log-probability that a classifier gives to the requested class."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor

from redif_ray.rewards.encoders import load_frozen_classifier
from redif_ray.rewards.term import OPTIONS, RewardError, RewardInputs, Setting


@dataclass(config=OPTIONS)
class ClassifierTerm:
    """ln p(condition | student's image) under a frozen classifier; in (-inf, 0].

    The log-probability has a gradient even where the probability is saturated.
    path: folder of a classifier; None: the shipped classifier A.
    Raises `RewardError` if the classifier and the teacher have different numbers of classes.
    """

    setting: Setting
    path: str | None = None
    name: ClassVar[str] = "classifier"
    differentiable: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"class"})

    def __post_init__(self) -> None:
        self._classifier = load_frozen_classifier(self.path, self.setting)
        classes, expected = len(self._classifier.classes), self.setting.num_classes
        if classes != expected:
            raise RewardError(
                f"the classifier has {classes} classes, the teacher {expected}; set option `path` to a "
                "classifier of the teacher's classes"
            )

    def __call__(self, inputs: RewardInputs) -> Tensor:
        return log_probability(self._classifier.logits(inputs.student), torch.tensor(list(inputs.conditions)))


def log_probability(logits: Tensor, labels: Tensor) -> Tensor:
    """Return ln p(label), [B], from logits [B, classes] and int64 labels [B]."""
    return logits.log_softmax(1).gather(1, labels.to(logits.device)[:, None]).squeeze(1)
