"""Import of user code: a reward's function, a loss, a method or a family of models."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from operator import attrgetter
from pathlib import Path
from types import ModuleType
from typing import Any

from redif_ray.checkpoint import file_sha256
from redif_ray.user_code.errors import UserCodeError, failures_named, ours
from redif_ray.user_code.state import generators_seeded


def import_function(target: str) -> Callable[..., Any]:
    """Import the function or class named `package.module:name` or `path/to/file.py:name`. Raises `UserCodeError`.

    What the code draws at random while it is imported, such as weights, is the same in every process. The caller keeps
    the state of the process.
    """
    source, separator, name = target.rpartition(":")
    if not separator or not source or not name:
        raise UserCodeError("expected package.module:function or path/to/file.py:function")
    with generators_seeded(0), failures_named(f"cannot import {source}"):
        module = _load_file(Path(source)) if source.endswith(".py") else importlib.import_module(source)
    try:
        function = attrgetter(name)(module)
    except AttributeError:
        function = None
    if not callable(function):
        raise UserCodeError(f"{source} has no function {name!r}")
    return function


def source_sha256(*objects: Any) -> tuple[str, ...]:
    """Return the sha256 of each file outside of this package that defines one of these functions or classes, sorted."""
    files = {getattr(sys.modules.get(one.__module__), "__file__", None) for one in objects}
    return tuple(sorted(file_sha256(Path(f)) for f in files if f and not ours(f)))


def _load_file(path: Path) -> ModuleType:
    name = f"redif_file:{path.resolve()}"  # no import statement can spell this, so it hides no package
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None  # the name ends in .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickling look up their module here
    spec.loader.exec_module(module)
    return module
