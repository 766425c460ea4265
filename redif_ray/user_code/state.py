"""Protection of what a whole process shares, the settings of torch, NumPy and Python, from code of the user's.

Libraries that user code imports set such state too. A default dtype of float64, a disabled grad mode or another working
directory would then change the results of everything else in the process, silently.
"""

from __future__ import annotations

import locale
import logging
import os
import random
import signal
import socket
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from redif_ray.user_code.errors import UserCodeError

log = logging.getLogger(__name__)
Setting = tuple[Callable[[], Any], Callable[[Any], object]]  # read, write


def _attribute(owner: Any, name: str) -> Setting:
    return lambda: getattr(owner, name), lambda value: setattr(owner, name, value)


def _set_default_device(device: torch.device) -> None:
    torch.set_default_device(None if device.type == "cpu" else device)  # "cpu" would add a mode to every call


def _matmul_precision() -> str:
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # set by torch.backends.cuda.matmul.fp32_precision, beside which torch refuses to answer
        return torch.backends.cuda.matmul.fp32_precision


def _flushes_denormal() -> bool:
    return sys.float_info.min / 2 == 0


def _directory() -> str | None:
    try:
        return os.getcwd()  # noqa: PTH109  # as text
    except OSError:  # it was removed
        return None


def _set_directory(path: str | None) -> None:
    if path is not None:
        os.chdir(path)


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _handler(number: signal.Signals) -> Setting:
    def write(handler: Any) -> None:
        if handler is not None and threading.current_thread() is threading.main_thread():
            signal.signal(number, handler)

    return lambda: signal.getsignal(number), write


HOOKS = [  # of all modules of a process: they change what others' networks compute
    hooks
    for name, hooks in vars(torch.nn.modules.module).items()
    if name.startswith("_global_") and isinstance(hooks, dict)
]


def _hooks() -> list[list[tuple[int, Any]]]:
    return [list(hooks.items()) for hooks in HOOKS]


def _set_hooks(before: list[list[tuple[int, Any]]]) -> None:
    for hooks, items in zip(HOOKS, before, strict=True):
        hooks.clear()
        hooks.update(items)


BACKENDS = torch.backends
PRECISIONS = {
    "torch.backends": BACKENDS,  # first, because it sets the others too
    "torch.backends.cudnn.conv": getattr(BACKENDS.cudnn, "conv", None),
    "torch.backends.cudnn.rnn": getattr(BACKENDS.cudnn, "rnn", None),
    "torch.backends.mkldnn.conv": getattr(BACKENDS.mkldnn, "conv", None),
}
SETTINGS: dict[str, Setting] = {
    "torch's default dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "torch's default device": (torch.get_default_device, _set_default_device),
    "torch's grad mode": (torch.is_grad_enabled, torch.set_grad_enabled),
    "torch's anomaly mode": (torch.is_anomaly_enabled, torch.set_anomaly_enabled),
    "torch's autocast on CPUs": (
        lambda: torch.is_autocast_enabled("cpu"),
        lambda v: torch.set_autocast_enabled("cpu", v),
    ),
    "torch's autocast on GPUs": (
        lambda: torch.is_autocast_enabled("cuda"),
        lambda v: torch.set_autocast_enabled("cuda", v),
    ),
    "torch's number of threads": (torch.get_num_threads, torch.set_num_threads),
    "torch's use of deterministic algorithms": (
        torch.get_deterministic_debug_mode,
        torch.set_deterministic_debug_mode,
    ),
    "torch's flushing of denormal numbers": (_flushes_denormal, torch.set_flush_denormal),
    **{
        f"{name}.fp32_precision": _attribute(o, "fp32_precision")
        for name, o in PRECISIONS.items()
        if hasattr(o, "fp32_precision")
    },
    "torch's float32 matmul precision": (_matmul_precision, torch.set_float32_matmul_precision),
    **{f"torch's cudnn.{name}": _attribute(BACKENDS.cudnn, name) for name in ("enabled", "benchmark", "deterministic")},
    "torch's mkldnn.enabled": _attribute(BACKENDS.mkldnn, "enabled"),
    **{
        f"torch's {kind} attention": (
            getattr(BACKENDS.cuda, f"{kind}_sdp_enabled"),
            getattr(BACKENDS.cuda, f"enable_{kind}_sdp"),
        )
        for kind in ("flash", "mem_efficient", "math", "cudnn")
    },
    "torch's hooks of all modules": (_hooks, _set_hooks),
    "NumPy's error handling": (np.geterr, lambda value: np.seterr(**value)),
    "the working directory": (_directory, _set_directory),
    "the umask": (_umask, os.umask),
    "the locale": (lambda: locale.setlocale(locale.LC_ALL), lambda value: locale.setlocale(locale.LC_ALL, value)),
    **{f"the handler of {n.name}": _handler(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)},
    "sys.stdout": _attribute(sys, "stdout"),
    "sys.stderr": _attribute(sys, "stderr"),
    "the time-out of sockets": (socket.getdefaulttimeout, socket.setdefaulttimeout),
    "the level of logging.disable": (lambda: logging.root.manager.disable, logging.disable),
}


@contextmanager
def state_kept() -> Iterator[None]:
    """Restore the settings after the block, and raise `UserCodeError` naming each one that it changed.

    Filters of warnings are restored without a word. What is added to `sys.path` is kept behind all other folders, so
    that it hides nobody's modules. New environment variables are kept with a warning, since libraries set some for
    themselves; variables that were there are settings.
    """
    before = {name: read() for name, (read, _) in SETTINGS.items()}
    variables, path = dict(os.environ), list(sys.path)
    try:
        with warnings.catch_warnings():
            yield
    finally:
        changed = [*_restored(before), *_restored_variables(variables)]
        sys.path[:] = [*path, *dict.fromkeys(entry for entry in sys.path if entry not in path)]
    if changed:
        raise UserCodeError(
            f"it changed {' and '.join(changed)} for the whole process; code of your own must leave global settings as "
            "they are: pass dtype= and device= to the calls that need them, use `with torch.no_grad():`, and put back "
            "what a library changes while it is imported"
        )


def _restored(before: dict[str, Any]) -> Iterator[str]:
    for name, (read, write) in SETTINGS.items():
        if (after := read()) != before[name]:
            write(before[name])
            yield f"{name} from {before[name]} to {after}"


def _restored_variables(before: dict[str, str]) -> Iterator[str]:
    for name in [name for name, value in before.items() if os.environ.get(name) != value]:
        os.environ[name] = before[name]
        yield f"the environment variable {name}"
    if added := sorted(name for name in os.environ if name not in before):
        log.warning("a reward, a model or its library set environment variables for the process: %s", ", ".join(added))


@contextmanager
def generators_seeded(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """Seed the global generators of torch, NumPy and Python for the block, and give them back as they were.

    So what user code draws does not depend on the process, nor on what was drawn before. device: the GPU whose
    generator is included; None, or a CPU: none.
    """
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng([device] if device is not None and device.type == "cuda" else []):
        torch.default_generator.manual_seed(seed)
        if device is not None and device.type == "cuda":
            torch.cuda.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
