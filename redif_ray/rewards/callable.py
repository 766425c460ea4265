"""A user's own Python function as a reward term."""

from __future__ import annotations

import importlib
import importlib.util
import math
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import ClassVar

from pydantic.dataclasses import dataclass
from torch import Tensor

from redif_ray.rewards.term import OPTIONS, RewardError, RewardInputs, Setting


@dataclass(config=OPTIONS)
class CallableTerm:
    """f(student, teacher, conditions) -> float tensor [B], higher is better; images are [B, C, H, W] in [0, 1].

    The function leaves its images and torch's global settings as they are, at import too; otherwise the run stops.
    callable: `package.module:function`, or `path/to/file.py:function`.
    differentiable: whether a gradient flows from the value to `student`; then it must, or the run stops.
    """

    setting: Setting
    callable: str
    differentiable: bool = False
    value_range: ClassVar[tuple[float, float]] = (-math.inf, math.inf)
    needs: ClassVar[frozenset[str]] = frozenset({"teacher"})

    def __post_init__(self) -> None:
        self._function = import_function(self.callable)

    @property
    def name(self) -> str:
        return self.callable

    def __call__(self, inputs: RewardInputs) -> Tensor:
        student = inputs.student if self.differentiable else inputs.student.detach()
        try:
            return self._function(student, inputs.teacher, inputs.conditions)
        except (Exception, SystemExit) as error:  # sys.exit would end a worker, or the run, without a word
            raise RewardError(f"{self.callable} failed: {_told(error)}") from error


def import_function(target: str) -> Callable[..., Tensor]:
    """The function named by `package.module:function` or `file.py:function`. Raises `RewardError`."""
    source, separator, name = target.rpartition(":")
    if not separator or not source or not name:
        raise RewardError(f"callable {target!r}: expected package.module:function or path/to/file.py:function")
    try:
        module = _load_file(Path(source)) if source.endswith(".py") else importlib.import_module(source)
    except (Exception, SystemExit) as error:
        raise RewardError(f"callable {target!r}: cannot import {source}: {_told(error)}") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise RewardError(f"callable {target!r}: {source} has no function {name!r}")
    return function


def _told(error: BaseException) -> str:
    """What was raised, and where: no traceback comes with the message from another process."""
    passed = {__file__, importlib.__file__}
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.line and f.filename not in passed]
    where = "".join(f"\n  {f.filename}:{f.lineno}, in {f.name}: {f.line}" for f in frames)
    return f"{type(error).__name__}: {error}{where}"


def _load_file(path: Path) -> ModuleType:
    name = f"redif_reward:{path.resolve()}"  # no import statement can name it, so it hides no package
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None  # the name ends in .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickling look their module up
    spec.loader.exec_module(module)
    return module
