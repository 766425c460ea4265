"""The run folder: its files, its lock, and the checks of `--resume`."""

from __future__ import annotations

import json
import logging
import os
import shutil
import socket
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from redif_ray.checkpoint import MANIFEST, CheckpointError
from redif_ray.config import Config, ConfigError, UnknownKeyError, dump, read_yaml, validate
from redif_ray.config.changes import may_differ
from redif_ray.data.conditions import CONDITIONS, Conditions
from redif_ray.errors import Notice, UserError
from redif_ray.files import PARTIAL, atomic_file
from redif_ray.masking import masked
from redif_ray.runs.failed_start import TOKEN, failure_of_start, remove_start
from redif_ray.runs.lock import LOCK, Lock

log = logging.getLogger(__name__)
UPLOADED = "upload.json"  # state of the copies at `checkpoint.upload`: the last complete one, and the error since
SHOWN = 6  # differences of two configurations in an error; the others are counted


class RunError(UserError, RuntimeError):
    """A run folder cannot be used as asked; the message says what to do."""


class RunFinished(Notice):
    """The run, search or sweep in `folder` has its summary, so there is nothing to resume."""

    def __init__(self, folder: Path) -> None:
        super().__init__(f"{folder} is finished; its results are in {folder / 'report.md'}")
        self.folder = folder


class RunFolder:
    """The folder `<root>/<name>/` of a run, locked for this process while it is open."""

    def __init__(self, path: Path, lock: Lock) -> None:
        self.path, self._lock = path, lock

    @classmethod
    def open(cls, config: Config, *, resume: bool, finished: bool = False) -> RunFolder:
        """Create the folder of a new run, or open the folder of a run to resume.

        Nothing that exists is overwritten, but for a start that failed before it trained anything: it is replaced.
        finished: a finished run may be opened too, to add to it. Raises RunError, RunFinished and ConfigError.
        """
        path = cls.place(config, resume=resume)
        try:
            path.mkdir(parents=True, exist_ok=True)
            (path / "checkpoints").mkdir(exist_ok=True)
            folder = cls(path, _locked(path))
        except OSError as error:
            raise RunError(f"cannot write {path}: {error}; set run.root to a folder that can be written") from error
        try:
            if resume:
                folder._check(config, finished)
                folder.keep_failure(None)
            else:
                folder._clear()
                folder.write("config.yaml", dump(config))
        except BaseException:
            folder.close()
            raise
        return folder

    @staticmethod
    def place(config: Config, *, resume: bool) -> Path:
        """Return the folder's path. Raises RunError where a new run's folder exists, or a run to resume does not."""
        path = Path(config.run.root).resolve() / config.run.name
        if not resume and path.exists() and not _only_begun(path) and failure_of_start(path) is None:
            raise _taken(path)
        if resume and not (path / "config.yaml").exists():
            raise RunError(f"{path} holds no run to resume; leave --resume out to start it")
        return path

    def _clear(self) -> None:
        """Remove a failed start. Another process may have used the folder since `place`; now it is locked."""
        if (failure := failure_of_start(self.path)) is not None:
            log.warning("%s is started anew: it failed before it trained anything (%.200s)", self.path, failure)
            remove_start(self.path)
            (self.path / "checkpoints").mkdir()
        elif not _only_begun(self.path):
            raise _taken(self.path)

    @classmethod
    @contextmanager
    def reopen(cls, path: Path) -> Iterator[RunFolder]:
        """Open an existing folder in any state, locked for the length of a block."""
        folder = cls(path, _locked(path))
        try:
            yield folder
        finally:
            folder.close()

    def close(self) -> None:
        self._lock.close()

    def _check(self, config: Config, finished: bool) -> None:
        check_same(self.path, config)
        if not finished:
            check_unfinished(self.path)

    def write(self, name: str, text: str) -> None:
        """Write a file, which may lie in a folder of the run folder, whole or not at all. Raises RunError."""
        try:
            (self.path / name).parent.mkdir(exist_ok=True)
            with atomic_file(self.path / name) as partial:
                partial.write_text(text)
        except OSError as error:
            raise RunError(f"cannot write {self.path / name}: {error}; free space and try again") from error

    def keep_conditions(self, conditions: Conditions) -> None:
        """Store the conditions that the run draws. Raises RunError where a resumed run would draw other ones."""
        stored = self.conditions()
        if stored is None:
            self.write(CONDITIONS, conditions.to_json())
        elif stored != conditions:
            raise RunError(
                f"the conditions differ from those that {self.path} was started with, which are kept in {CONDITIONS}: "
                f"{len(conditions.training)} for training and {len(conditions.held_out)} held out now, "
                f"{len(stored.training)} and {len(stored.held_out)} then; restore conditions.source as it was"
            )

    def conditions(self) -> Conditions | None:
        """Return the stored conditions of the run, or None where none are stored yet. Raises RunError."""
        path = self.path / CONDITIONS
        try:
            return Conditions.from_json(path.read_text()) if path.exists() else None
        except (ValueError, KeyError, TypeError) as error:
            raise RunError(f"{path} is corrupt ({error}); start the run again under another run.name") from error

    @property
    def state(self) -> dict[str, Any]:
        """Return what a resume needs besides the checkpoint, such as the MLflow run and the calibration."""
        return stored_state(self.path)

    @contextmanager
    def token(self) -> Iterator[Path]:
        """Create a file, for the length of a block, by which workers check that their node sees this folder.

        The file has a new name each time, since a network file system may cache for a while that a name is missing.
        """
        for old in self.path.glob(f"{TOKEN}*"):  # left by a driver that was killed
            old.unlink(missing_ok=True)
        path = self.path / f"{TOKEN}{uuid.uuid4().hex}"
        try:
            path.touch()
        except OSError as error:
            raise RunError(f"cannot write {path}: {error}; free space and try again") from error
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)

    def keep_failure(self, error: BaseException | None) -> None:
        """Note, for `redif status`, the error that ended this start of the run. A full disk must not hide the error."""
        failure = None if error is None else masked(f"{type(error).__name__}: {error}")
        if self.state.get("failure") != failure:
            with suppress(RunError):
                self.update_state(failure=failure)

    def keep_progress(self, progress: Mapping[str, Any]) -> None:
        """Note, for `redif status`, how far the run is after its rounds. A full disk loses only the note."""
        with suppress(RunError):
            self.update_state(progress={**progress, "time": time.time()})

    def update_state(self, **values: Any) -> None:
        self.write("run.json", json.dumps({**self.state, **values}, indent=1) + "\n")


def _taken(path: Path) -> RunError:
    """Return the error of a new run whose folder holds another one."""
    if (path / "summary.json").exists():
        return RunError(f"{path} holds a finished run; read its report.html, or choose another run.name")
    return RunError(f"{path} exists; continue it with --resume, or choose another run.name")


def check_same(path: Path, config: Config) -> None:
    """Raise ConfigError where the run in `path` was started with another configuration than a resume may have.

    config: with absolute paths and the numbers of `job.batches`, as a run folder keeps it.
    """
    changed = [
        f"{key}: {old!r} then, {new!r} now"
        for key, old, new in _differences(stored_config(path).model_dump(), config.model_dump())
        if not may_differ(key, "resume")
    ]
    if changed:
        more = [f"and {len(changed) - SHOWN} more"] if len(changed) > SHOWN else []
        lines = "\n  ".join([*changed[:SHOWN], *more])
        nothing = failure_of_start(path) is not None
        other = " or, since it trained nothing, leave --resume out" if nothing else ", or choose another run.name"
        raise ConfigError(f"{path} was started with another configuration; resume it with that one{other}\n  {lines}")


def check_unfinished(path: Path) -> None:
    """Raise RunFinished where the run in `path` is finished."""
    if (path / "summary.json").exists():
        raise RunFinished(path)


def check_seen(token: Path) -> None:
    """Raise RunError where this node does not see the file `token`, which the driver put into the run folder."""
    if not os.path.exists(token):  # noqa: PTH110  # Path.exists raises for an unreadable folder
        folder = token.parent
        raise RunError(
            f"node {socket.gethostname()} does not see the run folder {folder}: run.root={folder.parent} is not "
            "shared with it; set run.root to a folder that every node of the cluster has at the same path, such as a "
            "network file system"
        )


def _only_begun(path: Path) -> bool:
    """Tell whether `path` holds no more than a start that was cut short before its configuration was written."""
    return path.is_dir() and all(p.name in (LOCK, "checkpoints") or p.suffix == PARTIAL for p in path.iterdir())


def _locked(path: Path) -> Lock:
    try:
        return Lock(path)
    except BlockingIOError as error:
        raise RunError(f"{path} is in use by another process; wait for it, or choose another run.name") from error


def _differences(old: Any, new: Any, prefix: str = "") -> list[tuple[str, Any, Any]]:
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            difference
            for key in sorted({*old, *new})
            for difference in _differences(old.get(key), new.get(key), f"{prefix}.{key}".lstrip("."))
        ]
    return [] if old == new else [(prefix, old, new)]


def stored_config(path: Path) -> Config:
    """Return the configuration of the run in `path`. Raises RunError for no run, or a folder of an older version."""
    if not (path / "config.yaml").is_file():
        raise RunError(f"{path} is not a run folder: it has no config.yaml")
    try:
        config: Config = validate(read_yaml(path / "config.yaml"))
    except UnknownKeyError as error:
        raise RunError(
            f"{path} was made by an earlier version of redif-ray: its config.yaml has {str(error).splitlines()[0]}; "
            "use that version, or start the run again under another run.name"
        ) from error
    return config


def stored_state(path: Path) -> dict[str, Any]:
    """Return `RunFolder.state` of the run in `path`, which is kept in `run.json`; {} without one. Raises RunError."""
    if not (path / "run.json").is_file():
        return {}
    try:
        state: dict[str, Any] = dict(json.loads((path / "run.json").read_text()))
    except (ValueError, TypeError) as error:
        raise RunError(f"{path / 'run.json'} is corrupt ({error}); start again under another run.name") from error
    return state


def latest_checkpoint(folder: Path) -> Path | None:
    """Return the newest `round-*` checkpoint, or None. Raises CheckpointError where the newest has no manifest."""
    rounds = sorted(folder.glob("round-*"))
    if not rounds:
        return None
    if not (rounds[-1] / MANIFEST).exists():
        raise CheckpointError(f"{rounds[-1]} has no {MANIFEST}; move it away to resume from the checkpoint before it")
    return rounds[-1]


def round_of(checkpoint: Path) -> int:
    """Return the number of rounds done before a `round-*` checkpoint."""
    return int(checkpoint.name.removeprefix("round-"))


def prune_checkpoints(folder: Path, keep: int) -> None:
    """Remove all but the newest `keep` round checkpoints."""
    for old in sorted(folder.glob("round-*"))[:-keep]:
        shutil.rmtree(old)
