"""The thread that copies checkpoints to `checkpoint.upload` while training goes on.

The learner's first rank hands each checkpoint over and does not wait; a thread copies it. One copy is on its way and
one waits at most: a newer one takes the place of one that waits, since it holds all that a resume needs. What is
handed over keeps a second name until it is copied, for `best` is replaced and old checkpoints are pruned meanwhile. At
the end the driver does the rest.
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

from redif_ray.checkpoint import find_checkpoint
from redif_ray.config import Config
from redif_ray.files import atomic_file
from redif_ray.runs.backup_store import WRITER, Copy, Remote, UploadError
from redif_ray.runs.folder import UPLOADED, latest_checkpoint, round_of

log = logging.getLogger(__name__)
ATTEMPTS = 4  # at a copy, before anybody hears of it
AGAIN_SECONDS = (1.0, 4.0, 16.0, 60.0)  # between them; the last for as long as it takes
STALLED_SECONDS = 120.0  # without a byte, after which nobody waits for an upload any longer
LEAVE_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Handed:
    """A checkpoint to copy, which is with best and warm start in `folder`, or is not, for `error`.

    ready: waits until the run folder's other files are as far as the checkpoint is.
    """

    folder: Path
    round: int
    finished: bool
    ready: Callable[[], object]
    error: OSError | None


class Left(Exception):
    """The thread is to end in the middle of a copy."""


class Uploader:
    """connect: opens the remote, in the thread; run, writer: what `claim` gave; lost: called once an outage."""

    def __init__(
        self,
        connect: Callable[[], Remote],
        folder: Path,
        claim: tuple[str, str],
        keep: int,
        lost: Callable[[], object],
    ) -> None:
        self.connect, self.folder, self.keep, self.lost = connect, folder, keep, lost
        self.run, self.writer = claim
        self.remote: Remote | None = None
        self.aside = folder / ".upload"
        shutil.rmtree(self.aside, ignore_errors=True)  # of a process that was killed
        self.pending: Handed | None = None  # the newest, until it is there
        self.sending: Handed | None = None  # it or an older one
        self.uploaded: dict[str, float] = {}  # round and time of the last whole copy
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
        aside, failed = self.aside / uuid.uuid4().hex[:8], None
        try:
            for name in (newest.name, "best", "warm_start"):
                if (found := find_checkpoint(checkpoints / name)) is not None:
                    shutil.copytree(found, aside / "checkpoints" / name, copy_function=_link)
        except OSError as error:
            failed = error
        with self._changed:
            if self.pending is not self.sending:
                self._drop(self.pending)
            self.pending = Handed(aside, round_of(newest), finished, ready, failed)
            self._changed.notify_all()

    def wait(self) -> None:
        """Until all that was handed over is there. Raises UploadError where it cannot be brought there."""
        with self._changed:
            self.failures, self.moved = 0, time.monotonic()
            self._changed.notify_all()
            while self.pending:
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
            error = ""
            try:
                self._send(handed)
            except Left:
                return
            except Exception as failure:  # whatever a file system raises, training goes on
                error = f"{type(failure).__name__}: {failure}"
            self._tell(handed, error)
            self._settle(handed, error)

    def _next(self) -> Handed | None:
        with self._changed:
            self._changed.wait_for(lambda: self.left or self.pending)
            self.sending = None if self.left else self.pending
            return self.sending

    def _send(self, handed: Handed) -> None:
        if handed.error is not None:
            raise handed.error
        handed.ready()
        self.remote = remote = self.remote or self.connect()
        self._check_writer(remote)
        there = [copy for copy in remote.copies() if copy.round == handed.round]
        if not any(copy.finished or not handed.finished for copy in there):  # else it is handed over once more
            copy = Copy(f"round-{handed.round:06d}-{handed.folder.name}", handed.round, self.run, handed.finished, {})
            for name, path in self._files(handed):
                copy.sha256[name] = remote.put(path, f"{copy.name}/{name}", self._block)
                self._block()
            self._check_writer(remote)
            remote.finish(copy)
        self.uploaded = {"round": handed.round, "time": time.time()}
        remote.prune(self.keep)

    def _files(self, handed: Handed) -> list[tuple[str, Path]]:
        """Return what belongs to a copy: paths in the run folder, and where the content lies."""
        for path in self.folder.iterdir():
            if path.is_file() and not path.name.startswith(".") and path.name != UPLOADED:
                shutil.copyfile(path, handed.folder / path.name)  # lines are added to some of them
        found = [(path, handed.folder) for path in handed.folder.rglob("*")]
        if handed.finished:
            found += [(path, self.folder) for path in (self.folder / "student").rglob("*")]
        return sorted((path.relative_to(root).as_posix(), path) for path, root in found if path.is_file())

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

    def _tell(self, handed: Handed, error: str) -> None:
        """Say how an attempt ended, in the run folder and, at the start and the end of an outage, in the log."""
        self.error = error
        if not error:
            self._note()
            if self.told:
                log.warning("the upload goes on: the copy of round %d is whole", handed.round)
            self.told = False
        elif self.failures + 1 >= ATTEMPTS and not self.told:
            self.told = True
            log.warning(
                "the checkpoint of round %d is not uploaded (%s); training goes on, checkpoints are in %s, and it is "
                "tried again",
                handed.round,
                error,
                self.folder,
            )
            self.lost()
            self._note()

    def _settle(self, handed: Handed, error: str) -> None:
        """Take up the newest next: after a pause where there was an error."""
        with self._changed:
            self.sending = None
            if self.pending is handed and not error:
                self.pending = None
            if self.pending is not handed:
                self._drop(handed)
            self.failures = self.failures + 1 if error else 0
            self._changed.notify_all()
            if error:
                pause = AGAIN_SECONDS[min(self.failures, len(AGAIN_SECONDS)) - 1]
                self._changed.wait_for(lambda: self.left or not self.failures, pause)

    def _drop(self, handed: Handed | None) -> None:
        if handed is not None:
            shutil.rmtree(handed.folder, ignore_errors=True)

    def _note(self) -> None:
        told = {"uri": self.remote.uri if self.remote else "", **self.uploaded, "error": self.error}
        with suppress(OSError), atomic_file(self.folder / UPLOADED) as partial:  # else an older state, with its time
            partial.write_text(json.dumps(told))


def _link(file: str, to: str) -> None:
    """Give a file a second name or, where the file system has no hard links, copy it."""
    try:
        os.link(file, to)
    except OSError:
        shutil.copyfile(file, to)


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
