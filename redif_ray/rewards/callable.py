"""A user's own Python function as a reward term."""

from __future__ import annotations

import inspect
import zlib
from collections.abc import Callable
from typing import ClassVar

from pydantic.dataclasses import dataclass
from torch import Tensor

from redif_ray.rewards.isolation import check_unaltered, copied
from redif_ray.rewards.term import OPTIONS, RewardError, RewardInputs, Setting
from redif_ray.user_code.deadline import within
from redif_ray.user_code.errors import UserCodeError, failures_named
from redif_ray.user_code.importing import import_function
from redif_ray.user_code.state import generators_seeded


@dataclass(config=OPTIONS)
class CallableTerm:
    """f(student, teacher, conditions) -> float tensor [B], higher is better; images are [B, C, H, W] in [0, 1].

    A function with a parameter `metadata`, or with `**kwargs`, gets the columns `conditions.metadata` by that name, a
    mapping for each row.

    The function gets copies of the images and must not alter them. Neither it nor its import may change global
    settings, end the process or take longer than half of `pipeline.timeout_s`; otherwise the run stops. Before each
    call the images seed the global random generators.
    callable: the function, as `package.module:function` or `path/to/file.py:function`.
    teacher: whether it reads the teacher's images; False: it gets None in their place, and training makes none where no
        other term reads them either.
    differentiable: True: a gradient must flow from the value to `student`, otherwise the run stops; False: the function
        gets `student` without a gradient.
    """

    setting: Setting
    callable: str
    teacher: bool = True
    differentiable: bool = False
    needs: ClassVar[frozenset[str]] = frozenset({"teacher"})

    def __post_init__(self) -> None:
        try:
            with within(self.setting.patience_s):
                self._function = import_function(self.callable)
        except UserCodeError as error:
            raise RewardError(f"callable {self.callable!r}: {error}") from error
        takes, needs = _takes(self._function, "metadata")
        self._gets_metadata = takes and self.setting.metadata is not None
        if needs and self.setting.metadata is None:
            raise RewardError(
                f"callable {self.callable!r} takes metadata; name the columns of the captions' source by "
                "conditions.metadata, or remove the parameter"
            )

    def __call__(self, inputs: RewardInputs) -> Tensor:
        given = copied(inputs)
        student = given.student if self.differentiable else given.student.detach()
        told = {"metadata": self.setting.metadata_of(inputs.conditions)} if self._gets_metadata else {}
        seeded = generators_seeded(_seed(inputs), student.device)
        with within(self.setting.patience_s, self.callable), seeded, failures_named(f"{self.callable} failed"):
            value = self._function(student, given.teacher if self.teacher else None, given.conditions, **told)
        check_unaltered(given, inputs)
        return value.detach() if isinstance(value, Tensor) and not self.differentiable else value


def _takes(function: Callable[..., object], name: str) -> tuple[bool, bool]:
    """Return whether a function can be called with the argument `name`, and whether it must be."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):  # a function of C without a signature
        return False, False
    if name in parameters:
        return True, parameters[name].default is inspect.Parameter.empty
    return any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values()), False


def _seed(inputs: RewardInputs) -> int:
    """Return a number that the images decide, so that every worker draws the same for them."""
    return zlib.crc32(inputs.student[0].detach().cpu().numpy().tobytes())
