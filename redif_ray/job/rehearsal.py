"""A rehearsal of the user's own code and services, in a process of its own, before anything starts.

Code that ends its process, crashes or hangs then takes that process with it, and what it did last is known. The driver
imports no torch for it.
"""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from redif_ray.config import Config
from redif_ray.config.base import at_home
from redif_ray.config.uris import revealed
from redif_ray.errors import UserError
from redif_ray.interrupt import StopRequest
from redif_ray.user_code.deadline import ADVICE, time_limit
from redif_ray.user_code.errors import UserCodeError, ours

PROCESS = "redif_ray.job.rehearsal_process"
STEP, RESULT, STACK, OUTPUT = "step", "result.json", "stack", "output"
MOST_OUTPUT = 1000  # characters
POLL_SECONDS, NOTICE_SECONDS = 0.05, 20.0
Code = tuple[tuple[str, str, str], ...]  # the key, what identifies the code, and its options
log = logging.getLogger(__name__)
_rehearsed: set[Code] = set()  # by this process


def rehearse(config: Config, stop: StopRequest | None = None) -> None:
    """Import, and call on a few images, what the user hands over; nothing if there is none, or it was done before.

    Raises UserError that names the code where it fails, ends its process, crashes or hangs, and as `stop.check`.
    """
    code = _own_code(config)
    if not code or code in _rehearsed:
        return
    with tempfile.TemporaryDirectory(prefix="redif-") as name:
        folder = Path(name)
        ended = _run(folder, config, stop)
        if not (folder / RESULT).exists():
            raise UserCodeError(_death(folder, ended, time_limit(config.pipeline.timeout_s)))
        _raise_error(json.loads((folder / RESULT).read_text()))
    _rehearsed.add(code)


def own_terms(config: Config) -> dict[str, Mapping[str, Any]]:
    """Return the options of each reward term that is the user's own code or service and that the driver can build."""
    if config.reward.runtime_env is not None:
        return {}
    return {
        label: term.options for label, term in config.reward.terms.items() if {"callable", "url"} & term.options.keys()
    }


def own_names(config: Config) -> dict[str, str]:
    """Return the user's own code apart from reward terms: its import path by the key that names it."""
    learner, family = config.learner, config.teacher.family
    named = {
        "method": config.method,
        "learner.loss": learner.loss,
        "learner.advantage": learner.advantage,
        "learner.regulariser.kind": learner.regulariser.kind,
    }
    return ({"teacher.family": family} if family else {}) | {key: value for key, value in named.items() if ":" in value}


def _own_code(config: Config) -> Code:
    named: list[tuple[str, str, Mapping[str, Any]]] = [(key, target, {}) for key, target in own_names(config).items()]
    for label, options in own_terms(config).items():
        named.append((f"reward.terms.{label}", at_home(options.get("callable", "")), options))
    return tuple((key, _file(target), json.dumps({**options, "callable": None})) for key, target, options in named)


def _file(target: str) -> str:
    """Return what identifies the code of an import path: its file as it is now, or the path as it is written."""
    source, _, name = target.rpartition(":")
    path = Path(source)
    return f"{path.resolve()}:{name} of {path.stat().st_mtime_ns}" if path.is_file() else target


def _run(folder: Path, config: Config, stop: StopRequest | None) -> int:
    """Run the process to its end and return its exit status."""
    limit, told = time_limit(config.pipeline.timeout_s), False
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)  # noqa: PTH109  # "" in a notebook
    whole = json.dumps(revealed(config.model_dump(), ""), default=str)
    with (folder / OUTPUT).open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", PROCESS, str(folder), str(limit)],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            env={**os.environ, "PYTHONPATH": path},
            start_new_session=True,  # Ctrl-C is for the driver alone, which ends the process
        )
    try:
        assert process.stdin is not None
        with suppress(BrokenPipeError), process.stdin as pipe:  # so that no secret of it is in a file
            pipe.write(whole.encode())
        while process.poll() is None:
            if stop is not None:
                stop.check()
            if not told and (step := last_step(folder)) and _seconds(folder / STEP) > NOTICE_SECONDS:
                told = True
                log.warning("still trying %s, which may take %g s", step, limit)
            time.sleep(POLL_SECONDS)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)  # with the processes that the code has started
            process.wait()
    return process.returncode


def last_step(folder: Path) -> str:
    """Return the name of the code that ran last, or "" before any did."""
    return (folder / STEP).read_text() if (folder / STEP).exists() else ""


def _seconds(path: Path) -> float:
    """Return how long ago a file was written."""
    return time.time() - path.stat().st_mtime


def _raise_error(result: Mapping[str, str]) -> None:
    """Raise the error that ended the rehearsal as the class that it had; return where there is none."""
    if not result:
        return
    kind = resolve_name(result["kind"])
    raise (kind if issubclass(kind, UserError) else UserCodeError)(result["text"])


def _death(folder: Path, ended: int, limit: float) -> str:
    """Return what to say of a process that ended without a result."""
    step = last_step(folder) or "code of your own"
    if stack := (folder / STACK).read_text() if (folder / STACK).exists() else "":
        return f"{step}: it has not returned after {limit:g} s, {ADVICE}{_place(stack)}"
    by = f"signal {-ended} ({signal.strsignal(-ended)})" if ended < 0 else f"exit code {ended}"
    said = (folder / OUTPUT).read_text(errors="replace").strip()[-MOST_OUTPUT:]
    return f"{step}: its code ended the process, with {by}" + (f"; it wrote last:\n{said}" if said else "")


def _place(stack: str) -> str:
    """Return the lines of the user's files, the innermost last, in what `faulthandler` wrote of the main thread."""
    main = stack.rpartition("(most recent call first):")[2]
    libraries = tuple(sysconfig.get_path(kind) for kind in ("stdlib", "purelib", "platlib"))
    frames = re.findall(r'File "(.+)", line (\d+) in (.+)', main)
    own = [f for f in frames if not ours(f[0]) and not f[0].startswith((*libraries, "<"))]
    return "".join(f"\n  {file}:{line}, in {function}" for file, line, function in reversed(own))
