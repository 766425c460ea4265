"""The private cluster of one process: on loopback, behind a token, in folders and a session of its own.

Ray leaves much of this to the machine, and has no public option for it. What is private of Ray here is tested on the
versions that pyproject.toml admits (`tests/job/test_private_cluster.py`).
"""

from __future__ import annotations

import fcntl
import logging
import os
import secrets
import select
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Container, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import ray
from ray._private import ray_constants, services, utils

from redif_ray.config import Config, ConfigError
from redif_ray.errors import LostError
from redif_ray.interrupt import noted

STARTUP = "timed out during startup"  # in the text of Ray's error on a machine that is too busy
LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"  # set to 0, it has Ray bind every port to loopback, on every system
RAYLET = "raylet"
DAEMONS = ("gcs_server", RAYLET)
AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")  # without which the raylet ends too
WATCH_SECONDS = 0.5
AGAIN = "what was saved is kept, so run the command again, with --resume if it has that option"
SOCKET_BYTES = 107  # the longest path of a socket on Linux
SOCKET = "session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store"  # the longest one below Ray's folder


def start(config: Config, cpus: int) -> None:
    """Start a private cluster of this process with that many logical CPUs.

    Its processes inherit this process's environment, so no `runtime_env` repeats it: Python would start twice for each
    worker. Raises ConfigError where Ray cannot start here.
    """
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # this machine is not preemptible
    ask_for_a_token()
    folder = ray_folder()
    try:
        with (
            _environment({LOOPBACK: "0", "TMPDIR": str(folder.parent)}),  # Python makes sockets below TMPDIR too
            signals_left_alone(),
            _replaced(ray_constants, "ENABLE_RAY_CLUSTER", False),  # Ray read LOOPBACK when it was imported
            _replaced(services, "ConsolePopen", partial(subprocess.Popen, start_new_session=True)),
        ):
            ray.init(
                address="local",
                num_cpus=cpus,
                object_store_memory=config.ray.object_store_mb and config.ray.object_store_mb * 10**6,  # None: Ray's
                include_dashboard=True,
                dashboard_host="127.0.0.1",
                log_to_driver=False,
                logging_level=logging.ERROR,
                _temp_dir=str(folder),
            )
    except Exception as error:
        if STARTUP in str(error):
            raise ConfigError(
                f"Ray did not start within 30 s: {error} Is this machine busy? Run the command again"
            ) from error
        if isinstance(error, ValueError | OSError) or type(error) is Exception:  # the latter has the end of a log
            last = str(error).strip().splitlines()[-1:]
            raise ConfigError(f"Ray cannot start on this machine: {''.join(last)}") from error
        raise


@contextmanager
def signals_left_alone() -> Iterator[None]:
    """Keep `ray.init` in the block from replacing this process's handler of SIGTERM by one that exits at once."""
    with _replaced(utils, "set_sigterm_handler", lambda _: None):
        yield


@contextmanager
def watched() -> Iterator[None]:
    """End this process, with a message, where a process dies in the block that its private cluster cannot do without.

    Ray leaves its callers waiting then: for a minute, or for ever. Nothing is left to do, since what a run has to keep
    is on disk; so the process ends at once, and Ray's other processes with it. The same goes for a process of Ray that
    dies once this one was sent a signal: a batch system then sends it to all.
    """
    own = {process: process.name() in DAEMONS for process in psutil.Process().children() if not _grouped(process)}
    sessions, over = {process.pid for process in own}, threading.Event()
    below = [each for process in own if process.name() == RAYLET for each in process.children()]
    own |= {process: True for process in below if process.name().startswith(AGENTS)}

    def look() -> None:
        for process in [process for process in own if _dead(process)]:
            # Ray's daemons take their time to leave; where the others are gone with a signal, so are its workers.
            if own.pop(process) or noted() is not None:
                _end(process.pid, sessions)

    told, tell = os.pipe()

    def watch() -> None:
        while not over.is_set():
            _wait_for_an_end(own, told, WATCH_SECONDS)
            look()

    thread = threading.Thread(target=watch, name="watch", daemon=True)
    thread.start()
    try:
        yield
    except BaseException:
        time.sleep(2 * WATCH_SECONDS)  # the error may be of a cluster that is about to die, which Ray would wait for
        raise
    finally:
        over.set()
        os.close(tell)
        thread.join()
        os.close(told)


def _wait_for_an_end(processes: Iterable[psutil.Process], told: int, seconds: float) -> None:
    """Return once one of these processes is dead or the pipe `told` is closed, or else after so many seconds.

    Where the system tells of a death, it is known at once: Ray soon ends this process itself, without a word.
    """
    with ExitStack() as files, suppress(ProcessLookupError):
        poll = select.poll()
        poll.register(told)
        for process in processes if hasattr(os, "pidfd_open") else ():
            file = os.pidfd_open(process.pid)
            files.callback(os.close, file)
            poll.register(file, select.POLLIN)
        poll.poll(1000 * seconds)


def _grouped(process: psutil.Process) -> bool:
    """Tell whether a process is in this one's session, as those that Ray did not start are."""
    try:
        return os.getsid(process.pid) == os.getsid(0)
    except ProcessLookupError:
        return True


def _dead(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _end(pid: int, sessions: Container[int]) -> None:
    """End this process, since process `pid` of Ray is dead, and all processes of these sessions, which are Ray's."""
    for each in psutil.pids():
        with suppress(OSError):
            if os.getsid(each) in sessions:
                os.kill(each, signal.SIGKILL)
    number = noted()
    if number is None:
        what = f"error: process {pid} of Ray, which this command had started, is dead"
    else:
        what = "stopped at once, since Ray's processes were ended too"
    with suppress(OSError):
        os.write(2, f"\n{what}; {AGAIN}\n".encode())
    os._exit(LostError.exit_code if number is None else 128 + number)


def ray_folder() -> Path:
    """Return the folder for the logs and sockets of a private cluster, which only this user can enter.

    It lies below RAY_TMPDIR, or the folder for temporary files, or /tmp where the path of a socket would be too long.
    Raises ConfigError where none of them will do.
    """
    asked = os.environ.get("RAY_TMPDIR")
    reasons = []
    for place in (asked,) if asked else (tempfile.gettempdir(), "/tmp"):
        own = Path(place).absolute() / f"redif-{os.getuid()}"
        if len(os.fsencode(own / "ray" / SOCKET)) > SOCKET_BYTES:
            reasons.append(f"{place} is longer than Ray's sockets allow")
            continue
        try:
            own.mkdir(mode=0o700, parents=True, exist_ok=True)
            if own.is_symlink() or own.stat().st_uid != os.getuid():
                reasons.append(f"{own} belongs to another user")
                continue
            own.chmod(0o700)
            tempfile.TemporaryFile(dir=own).close()
        except OSError as error:
            reasons.append(str(error))
        else:
            return own / "ray"  # Ray opens its folder to all users, so there is a closed one around it
    raise ConfigError(
        f"Ray has no folder for its logs and sockets ({'; '.join(reasons)}); set RAY_TMPDIR to a path of at most "
        f"{SOCKET_BYTES - len(SOCKET) - len(f'/redif-{os.getuid()}/ray/')} bytes that can be written"
    )


def ask_for_a_token() -> None:
    """Have Ray admit only who knows the token, whatever the environment says of RAY_AUTH_MODE.

    The token is the user's own or, where the home folder cannot be written, one of this process and its children.
    """
    os.environ.pop("RAY_AUTH_MODE", None)  # `ray.init` turns tokens on where it is not set
    if "RAY_AUTH_TOKEN" in os.environ or "RAY_AUTH_TOKEN_PATH" in os.environ:
        return
    try:
        path = Path.home() / ".ray" / "auth_token"
        path.parent.mkdir(exist_ok=True)
        with open(path, "a", opener=partial(os.open, mode=0o600)) as file:
            os.fchmod(file.fileno(), 0o600)
            if file.tell() == 0:
                fcntl.flock(file, fcntl.LOCK_EX)  # many first runs may start at once, as an array of batch jobs does
                if os.fstat(file.fileno()).st_size == 0:
                    file.write(secrets.token_hex(32))
                    file.flush()
    except (OSError, RuntimeError):  # RuntimeError: there is no home folder
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set variables for the length of a block, for the processes that are started there; this one may do more later."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _replaced(module: Any, name: str, value: Any) -> Iterator[None]:
    """Give an attribute of a module another value for the length of a block. Raises AttributeError without it."""
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)
