"""The thread that copies checkpoints to `checkpoint.upload` while training goes on.

The learner's first rank hands each checkpoint over and does not wait; a thread copies it. One copy is on its way and
one waits at most: a newer one takes the place of one that waits, since it holds all that a resume needs. What is
handed over is linked aside first, so pruning and replacing go on meanwhile. At the end the driver does the rest.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import socket
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from redif_ray.checkpoint import file_sha256, find_checkpoint
from redif_ray.config import Config
from redif_ray.files import atomic_file
from redif_ray.runs.backup_store import FILES, WRITER, Copy, File, Remote, UploadError
from redif_ray.runs.folder import UPLOADED, latest_checkpoint, round_of

log = logging.getLogger(__name__)
ATTEMPTS = 4  # at a copy, before anybody hears of it
AGAIN_SECONDS = (1.0, 4.0, 16.0, 60.0)  # between them; the last for as long as it takes
STALLED_SECONDS = 120.0  # without a byte, after which nobody waits for an upload any longer
LEAVE_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Handed:
    """A checkpoint linked aside. ready: waits until the run folder's other files are as far as the checkpoint is."""

    folder: Path
    round: int
    finished: bool
    ready: Callable[[], object]


class Left(Exception):
    """The thread is to end in the middle of a copy."""


class Uploader:
    """connect: opens the remote, in the thread; run, writer: what `claim` gave; lost: called once an outage."""

    def __init__(
        self, connect: Callable[[], Remote], folder: Path, claim: tuple[str, str], keep: int,
        lost: Callable[[], object],
    ) -> None:  # fmt: skip
        self.connect, self.folder, self.keep, self.lost = connect, folder, keep, lost
        self.run, self.writer = claim
        self.remote: Remote | None = None
        self.aside = folder / ".upload"
        shutil.rmtree(self.aside, ignore_errors=True)  # of a process that was killed
        self.waiting: Handed | None = None
        self.current: Handed | None = None
        self.uploaded: dict[str, float] = {}  # round and time of the last whole copy
        self.sent: set[File] = set()
        self.failures, self.error, self.told = 0, "", False
        self.moved = time.monotonic()
        self.left = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="upload", daemon=True)
        self._thread.start()

    def hand(self, *, finished: bool = False, ready: Callable[[], object] = lambda: None) -> None:
        """Have the newest checkpoint copied, with best, warm start and the folder's other files; returns at once.

        finished: also what a finished run leaves. Where there are no links, the checkpoint is copied aside first.
        """
        checkpoints = self.folder / "checkpoints"
        newest = latest_checkpoint(checkpoints)
        if newest is None:
            return
        aside = self.aside / uuid.uuid4().hex
        try:
            for name in (newest.name, "best", "warm_start"):
                if (found := find_checkpoint(checkpoints / name)) is not None:
                    _link(found, aside / "checkpoints" / name)
        except OSError as error:
            ready = _raising(error)
        handed = Handed(aside, round_of(newest), finished, ready)
        with self._changed:
            replaced, self.waiting = self.waiting, handed
            self._changed.notify_all()
        if replaced is not None:
            shutil.rmtree(replaced.folder, ignore_errors=True)

    def wait(self) -> None:
        """Until all that was handed over is there. Raises UploadError where it cannot be brought there."""
        with self._changed:
            self.failures, self.moved = 0, time.monotonic()
            self._changed.notify_all()
            while self.current or self.waiting:
                if self.failures >= ATTEMPTS:
                    raise UploadError(self.error)
                if time.monotonic() - self.moved > STALLED_SECONDS:
                    raise UploadError(f"no byte was taken for {STALLED_SECONDS:.0f} s")
                self._changed.wait(0.2)

    def leave(self) -> None:
        """Let go of what is not there yet. A file system that hangs is left hanging."""
        with self._changed:
            self.left = True
            self._changed.notify_all()
        self._thread.join(LEAVE_SECONDS)
        if not self._thread.is_alive():
            shutil.rmtree(self.aside, ignore_errors=True)

    def _work(self) -> None:
        while (handed := self._next()) is not None:
            try:
                self._send(handed)
            except Left:
                return
            except Exception as error:  # whatever a file system raises, training goes on
                self._failed(handed, error)
            else:
                self._done(handed)

    def _next(self) -> Handed | None:
        with self._changed:
            self._changed.wait_for(lambda: self.left or self.waiting)
            self.current, self.waiting = (None if self.left else self.waiting), None
            return self.current

    def _send(self, handed: Handed) -> None:
        handed.ready()
        self.remote = remote = self.remote or self.connect()
        self._check_writer(remote)
        for path in self.folder.iterdir():
            if path.is_file() and not path.name.startswith(".") and path.name != UPLOADED:
                shutil.copyfile(path, handed.folder / path.name)  # lines are added to some of them
        if handed.finished:
            shutil.rmtree(handed.folder / "student", ignore_errors=True)  # of an attempt that was cut short
            _link(self.folder / "student", handed.folder / "student")
        files = {}
        for path in sorted(p for p in handed.folder.rglob("*") if p.is_file()):
            name, digest = path.relative_to(handed.folder).as_posix(), file_sha256(path)
            by_name = handed.finished and not name.startswith("checkpoints/")
            files[name] = file = File(digest, path.stat().st_size, name if by_name else f"{FILES}/{digest}")
            there = file in self.sent if by_name else remote.size(file.at) == file.bytes
            if not there:
                remote.put(path, file, self._block)
                self.sent.add(file)
            self._block()
        self._check_writer(remote)
        copy = Copy(handed.round, self.run, handed.finished, files)
        remote.write(copy.name, copy.to_json())
        self.uploaded = {"round": handed.round, "time": time.time()}
        remote.prune(self.keep)

    def _check_writer(self, remote: Remote) -> None:
        if remote.read(WRITER) != self.writer.encode():
            raise UploadError(
                f"{remote.uri}, as node {socket.gethostname()} sees it, is not what the driver of this run claimed: it "
                "is another disk, or another start of the run writes there now"
            )

    def _block(self) -> None:
        self.moved = time.monotonic()
        if self.left:
            raise Left

    def _done(self, handed: Handed) -> None:
        self.error = ""
        self._note()
        if self.told:
            log.warning("the upload goes on: the copy of round %d is whole", handed.round)
        self.told = False
        shutil.rmtree(handed.folder, ignore_errors=True)
        with self._changed:
            self.current, self.failures = None, 0
            self._changed.notify_all()

    def _failed(self, handed: Handed, error: Exception) -> None:
        """It waits again, unless a newer one does."""
        self.error = f"{type(error).__name__}: {error}"
        if self.failures + 1 >= ATTEMPTS and not self.told:
            self.told = True
            log.warning(
                "the checkpoint of round %d is not uploaded (%s); training goes on, checkpoints are in %s, and it is "
                "tried again", handed.round, self.error, self.folder,
            )  # fmt: skip
            self.lost()
            self._note()
        with self._changed:
            self.failures += 1
            self.current, newer = None, self.waiting is not None
            self.waiting = self.waiting or handed
            self._changed.notify_all()
        if newer:
            shutil.rmtree(handed.folder, ignore_errors=True)
        pause = AGAIN_SECONDS[min(self.failures, len(AGAIN_SECONDS)) - 1]
        with self._changed:
            self._changed.wait_for(lambda: self.left or not self.failures, pause)

    def _note(self) -> None:
        told = {"uri": self.remote.uri if self.remote else "", **self.uploaded, "error": self.error}
        with suppress(OSError), atomic_file(self.folder / UPLOADED) as partial:  # else an older state, with its time
            partial.write_text(json.dumps(told))


def _raising(error: OSError) -> Callable[[], object]:
    def ready() -> None:
        raise error

    return ready


def _link(source: Path, target: Path) -> None:
    """A copy of a folder that costs nothing, where the file system has hard links."""

    def link(file: str, to: str) -> None:
        try:
            os.link(file, to)
        except OSError:
            shutil.copyfile(file, to)

    shutil.copytree(source, target, copy_function=link)


def claimed(path: Path) -> dict[str, str]:
    """The run's id and the start of it that may write, as its folder has them; nothing before `upload.claim`."""
    kept = path / "run.json"
    found: dict[str, str] = json.loads(kept.read_text()).get("upload", {}) if kept.exists() else {}
    return found


def uploader(config: Config, folder: Path, lost: Callable[[], object]) -> Uploader | None:
    """Of the process that calls; None where nothing is uploaded."""
    if config.checkpoint.upload is None:
        return None
    kept = claimed(folder)
    return Uploader(lambda: Remote.connect(config), folder, (kept["run"], kept["writer"]), config.checkpoint.keep, lost)
