"""A user's own Python function as a reward term."""

from __future__ import annotations

from typing import ClassVar

from pydantic.dataclasses import dataclass
from torch import Tensor

from redif_ray.rewards.term import OPTIONS, RewardError, RewardInputs, Setting
from redif_ray.user_code import UserCodeError, described, import_function


@dataclass(config=OPTIONS)
class CallableTerm:
    """f(student, teacher, conditions) -> float tensor [B], higher is better; images are [B, C, H, W] in [0, 1].

    The function must not alter its images or torch's global settings, at import neither; otherwise the run stops.
    callable: the function, as `package.module:function` or `path/to/file.py:function`.
    differentiable: True: a gradient must flow from the value to `student`, otherwise the run stops; False: the function
        gets `student` without a gradient.
    """

    setting: Setting
    callable: str
    differentiable: bool = False
    needs: ClassVar[frozenset[str]] = frozenset({"teacher"})

    def __post_init__(self) -> None:
        try:
            self._function = import_function(self.callable)
        except UserCodeError as error:
            raise RewardError(f"callable {self.callable!r}: {error}") from error

    def __call__(self, inputs: RewardInputs) -> Tensor:
        student = inputs.student if self.differentiable else inputs.student.detach()
        try:
            return self._function(student, inputs.teacher, inputs.conditions)
        except (Exception, SystemExit) as error:  # sys.exit would end the worker or the run without a message
            raise RewardError(f"{self.callable} failed: {described(error)}") from error
