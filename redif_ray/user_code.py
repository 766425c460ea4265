"""Import of user code, a reward's function or a family of models, and protection of torch's settings from it.

Libraries that user code imports may set global state of torch. A default dtype of float64 or a disabled grad mode would
then change the results of everything else in the process, silently.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from operator import attrgetter
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from redif_ray.checkpoint import file_sha256
from redif_ray.errors import UserError


class UserCodeError(UserError, RuntimeError):
    """User code that cannot be imported or changes torch's settings; the caller adds the name of the code."""


def import_function(target: str) -> Callable[..., Any]:
    """Import the function or class named `package.module:name` or `path/to/file.py:name`. Raises `UserCodeError`."""
    source, separator, name = target.rpartition(":")
    if not separator or not source or not name:
        raise UserCodeError("expected package.module:function or path/to/file.py:function")
    try:
        module = _load_file(Path(source)) if source.endswith(".py") else importlib.import_module(source)
    except (Exception, SystemExit) as error:
        raise UserCodeError(f"cannot import {source}: {described(error)}") from error
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
    return tuple(sorted(file_sha256(Path(f)) for f in files if f and not _ours(f)))


def described(error: BaseException) -> str:
    """Return an error's text and its place in user code: a message from another process has no traceback."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.line and not _ours(f.filename)]
    where = "".join(f"\n  {f.filename}:{f.lineno}, in {f.name}: {f.line}" for f in frames)
    return f"{type(error).__name__}: {error}{where}"


def _ours(filename: str) -> bool:
    return filename == importlib.__file__ or Path(__file__).parent in Path(filename).parents


def _load_file(path: Path) -> ModuleType:
    name = f"redif_file:{path.resolve()}"  # no import statement can spell this, so it hides no package
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None  # the name ends in .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickling look up their module here
    spec.loader.exec_module(module)
    return module


def _set_default_device(device: torch.device) -> None:
    torch.set_default_device(None if device.type == "cpu" else device)  # "cpu" would add a mode to every call


def _set_cudnn(name: str) -> Callable[[bool], None]:
    return lambda value: setattr(torch.backends.cudnn, name, value)


SETTINGS: dict[str, tuple[Callable[[], Any], Callable[[Any], None]]] = {  # name: (read, write)
    "default dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "default device": (torch.get_default_device, _set_default_device),
    "grad mode": (torch.is_grad_enabled, torch.set_grad_enabled),
    "number of threads": (torch.get_num_threads, torch.set_num_threads),
    "float32 matmul precision": (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    "use of deterministic algorithms": (torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms),
    "cudnn.benchmark": (lambda: torch.backends.cudnn.benchmark, _set_cudnn("benchmark")),
    "cudnn.deterministic": (lambda: torch.backends.cudnn.deterministic, _set_cudnn("deterministic")),
}


@contextmanager
def settings_kept() -> Iterator[None]:
    """Restore torch's global settings after the block, and raise `UserCodeError` naming each one that it changed."""
    before = {name: read() for name, (read, _) in SETTINGS.items()}
    changed = []
    try:
        yield
    finally:
        for name, (read, write) in SETTINGS.items():
            if (after := read()) != before[name]:
                write(before[name])
                changed.append(f"{name} from {before[name]} to {after}")
    if changed:
        raise UserCodeError(
            f"it changed torch's {' and '.join(changed)} for the whole process; code of your own must leave global "
            "settings as they are: pass dtype= and device= to the calls that need them, use `with torch.no_grad():`, "
            "and put back what a library changes while it is imported"
        )
