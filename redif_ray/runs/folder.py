"""The run folder: what lies where, who may write it, and what `--resume` may change."""

from __future__ import annotations

import json
import os
import shutil
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from redif_ray.checkpoint import MANIFEST, CheckpointError
from redif_ray.config import Config, ConfigError, UnknownKeyError, dump, read_yaml, validate
from redif_ray.config.changes import may_differ
from redif_ray.data.conditions import CONDITIONS, Conditions
from redif_ray.errors import Notice, UserError
from redif_ray.files import PARTIAL, atomic_file
from redif_ray.runs.lock import LOCK, Lock

TOKEN = ".seen-"
UPLOADED = "upload.json"  # what `checkpoint.upload` holds of the run, and what went wrong since


class RunError(UserError, RuntimeError):
    """A run folder that cannot be used as asked; the message says what to do."""


class RunFinished(Notice):
    """There is nothing to resume: the run has its summary."""


class RunFolder:
    """`<root>/<name>/`, locked for this process while it is open."""

    def __init__(self, path: Path, lock: Lock) -> None:
        self.path, self._lock = path, lock

    @classmethod
    def open(cls, config: Config, *, resume: bool, finished: bool = False) -> RunFolder:
        """Create the folder, or take up an unfinished one; one that is `finished` too, where more is to be added.

        Raises RunError; nothing that exists is overwritten.
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
                folder.write("config.yaml", dump(config))
        except BaseException:
            folder.close()
            raise
        return folder

    @staticmethod
    def place(config: Config, *, resume: bool) -> Path:
        """Where the folder is or will be. Raises RunError for one that is in the way, or not there to be resumed."""
        path = Path(config.run.root).resolve() / config.run.name
        if not resume and path.exists() and not _only_begun(path):
            raise RunError(f"{path} exists; continue it with --resume, or choose another run.name")
        if resume and not (path / "config.yaml").exists():
            raise RunError(f"{path} holds no run to resume; leave --resume out to start it")
        return path

    @classmethod
    @contextmanager
    def reopen(cls, path: Path) -> Iterator[RunFolder]:
        """An existing folder, whatever its state, locked for the length of a block."""
        folder = cls(path, _locked(path))
        try:
            yield folder
        finally:
            folder.close()

    def close(self) -> None:
        self._lock.close()

    def _check(self, config: Config, finished: bool) -> None:
        if not finished and (self.path / "summary.json").exists():
            raise RunFinished(f"{self.path} is finished; its results are in {self.path / 'report.md'}")
        stored = stored_config(self.path)
        changed = [
            f"{key}: {old!r} then, {new!r} now"
            for key, old, new in _differences(stored.model_dump(), config.model_dump())
            if not may_differ(key, "resume")
        ]
        if changed:
            lines = "\n  ".join(changed)
            raise ConfigError(f"{self.path} was started with another configuration; resume it with that one\n  {lines}")

    def write(self, name: str, text: str) -> None:
        """Write a file whole or not at all. Raises RunError."""
        try:
            with atomic_file(self.path / name) as partial:
                partial.write_text(text)
        except OSError as error:
            raise RunError(f"cannot write {self.path / name}: {error}; free space and try again") from error

    def keep_conditions(self, conditions: Conditions) -> None:
        """Write down what the run draws, or find that a resumed run draws the same. Raises RunError."""
        known = self.conditions()
        if known is None:
            self.write(CONDITIONS, conditions.to_json())
        elif known != conditions:
            raise RunError(
                f"the conditions are not those that {self.path} was started with, which are kept in {CONDITIONS}: "
                f"{len(conditions.training)} for training and {len(conditions.held_out)} held out now, "
                f"{len(known.training)} and {len(known.held_out)} then; restore conditions.source as it was"
            )

    def conditions(self) -> Conditions | None:
        """What the run draws; None where nothing is written down yet."""
        path = self.path / CONDITIONS
        try:
            return Conditions.from_json(path.read_text()) if path.exists() else None
        except (ValueError, KeyError, TypeError) as error:
            raise RunError(f"{path} is corrupt ({error}); start the run again under another run.name") from error

    @property
    def state(self) -> dict[str, Any]:
        """What a resumed run must find again besides the checkpoint: the MLflow run and the calibration."""
        path = self.path / "run.json"
        try:
            return json.loads(path.read_text()) if path.exists() else {}
        except ValueError as error:
            raise RunError(f"{path} is corrupt ({error}); start the run again under another run.name") from error

    @contextmanager
    def token(self) -> Iterator[Path]:
        """A file by which workers find out, for the length of a block, whether their node sees this folder.

        Its name is new each time: a network file system may remember for a while that a name was not there.
        """
        for old in self.path.glob(f"{TOKEN}*"):  # of a driver that was killed
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
        """Say, to those who look, what error ended this start of the run. A full disk must not hide it."""
        told = None if error is None else f"{type(error).__name__}: {error}"
        if self.state.get("failure") != told:
            with suppress(RunError):
                self.update_state(failure=told)

    def update_state(self, **values: Any) -> None:
        self.write("run.json", json.dumps({**self.state, **values}, indent=1) + "\n")


def check_seen(token: Path) -> None:
    """Whether this node sees the run folder that the driver put `token` in. Raises RunError."""
    if not os.path.exists(token):  # noqa: PTH110  # Path.exists raises where a folder may not be read
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
    """What the run in a folder was started with. Raises RunError for the folder of an earlier version."""
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


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest `round-*` checkpoint, or None. Raises where the newest one has no manifest."""
    rounds = sorted(folder.glob("round-*"))
    if not rounds:
        return None
    if not (rounds[-1] / MANIFEST).exists():
        raise CheckpointError(f"{rounds[-1]} has no {MANIFEST}; move it away to resume from the checkpoint before it")
    return rounds[-1]


def round_of(checkpoint: Path) -> int:
    """Rounds that a `round-*` checkpoint is after."""
    return int(checkpoint.name.removeprefix("round-"))


def prune_checkpoints(folder: Path, keep: int) -> None:
    """Remove all but the newest `keep` round checkpoints."""
    for old in sorted(folder.glob("round-*"))[:-keep]:
        shutil.rmtree(old)
