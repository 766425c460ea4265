"""The thread that copies checkpoints to `checkpoint.upload` while training goes on.

The learner's first rank hands each checkpoint to the thread and does not wait. At most one copy is being made and one
checkpoint waits; a newer checkpoint replaces the waiting one, since the newest holds all that a resume needs. Each
handed checkpoint has hard links in a folder of its own until it is copied, because training replaces `best` and prunes
old checkpoints meanwhile. At the end of the run the driver uploads the rest.
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
from redif_ray.masking import masked
from redif_ray.runs.backup_store import WRITER, Copy, Remote, UploadError
from redif_ray.runs.folder import UPLOADED, latest_checkpoint, round_of, stored_state

log = logging.getLogger(__name__)
ATTEMPTS = 4  # failures in a row before an outage is reported
AGAIN_SECONDS = (1.0, 4.0, 16.0, 60.0)  # pauses between attempts; the last one repeats
STALLED_SECONDS = 120.0  # `Uploader.wait` gives up after this time without progress
LEAVE_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Handed:
    """A checkpoint to copy. folder: holds it with `best` and `warm_start`; error: why the folder could not be filled.

    finished: the run is finished; ready: waits until the other files of the run folder have caught up with `round`.
    """

    folder: Path
    round: int
    finished: bool
    ready: Callable[[], object]
    error: OSError | None


class Left(Exception):
    """The uploader was told to leave while a copy was being made."""


class Uploader:
    """The thread that uploads one run folder.

    connect: opens the remote, called in the thread; claim: (run id, writer id) of `backup.claim`; keep: number of
    rounds whose copies stay; lost: called once for each outage.
    """

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
        shutil.rmtree(self.aside, ignore_errors=True)  # left by a process that was killed
        self.pending: Handed | None = None  # the newest checkpoint, until it is uploaded
        self.sending: Handed | None = None  # the checkpoint being copied: the pending one or an older one
        self.uploaded: dict[str, float] = {}  # round and time, in seconds since 1970, of the last complete copy
        self.failures, self.error, self.reported = 0, "", False
        self.moved = time.monotonic()
        self.left = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="upload", daemon=True)
        self._thread.start()

    def hand(self, *, finished: bool = False, ready: Callable[[], object] = lambda: None) -> None:
        """Queue the newest checkpoint with `best`, `warm_start` and the other files of the run folder, without waiting.

        finished: the run is finished, so that its student is copied too; ready: see `Handed`. The checkpoint is hard
        linked, or copied where the file system has no hard links.
        """
        checkpoints = self.folder / "checkpoints"
        newest = latest_checkpoint(checkpoints)
        if newest is None:
            return
        aside, failed = self.aside / uuid.uuid4().hex[:8], None
        try:
            for name in (newest.name, "best", "warm_start"):
                if (checkpoint := find_checkpoint(checkpoints / name)) is not None:
                    shutil.copytree(checkpoint, aside / "checkpoints" / name, copy_function=_link)
        except OSError as error:
            failed = error
        with self._changed:
            if self.pending is not self.sending:
                self._drop(self.pending)
            self.pending = Handed(aside, round_of(newest), finished, ready, failed)
            self._changed.notify_all()

    def wait(self) -> None:
        """Wait until all that was handed over is uploaded. Raises UploadError after repeated failures or a stall."""
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
        """Stop the thread and drop what is not uploaded yet. A thread that hangs in the file system is left behind."""
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
            except Exception as failure:  # training goes on whatever the file system raises
                error = masked(f"{type(failure).__name__}: {failure}")
            self._report(handed, error)
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
        same_round = [copy for copy in remote.copies() if copy.round == handed.round]
        if not any(copy.finished or not handed.finished for copy in same_round):  # else there is such a copy already
            copy = Copy(f"round-{handed.round:06d}-{handed.folder.name}", handed.round, self.run, handed.finished, {})
            for name, path in self._files(handed):
                copy.sha256[name] = remote.put(path, f"{copy.name}/{name}", self._block)
                self._block()
            self._check_writer(remote)
            remote.finish(copy)
        self.uploaded = {"round": handed.round, "time": time.time()}
        remote.prune(self.keep)

    def _files(self, handed: Handed) -> list[tuple[str, Path]]:
        """Return the files of a copy, sorted: path in the run folder, and path of the content on disk."""
        for path in self.folder.iterdir():
            if path.is_file() and not path.name.startswith(".") and path.name != UPLOADED:
                shutil.copyfile(path, handed.folder / path.name)  # rows may be appended to the original meanwhile
        files = [(path, handed.folder) for path in handed.folder.rglob("*")]
        if handed.finished:
            files += [(path, self.folder) for path in (self.folder / "student").rglob("*")]
        return sorted((path.relative_to(root).as_posix(), path) for path, root in files if path.is_file())

    def _check_writer(self, remote: Remote) -> None:
        if remote.read(WRITER) != self.writer.encode():
            raise UploadError(
                f"{remote.uri}, as node {socket.gethostname()} sees it, lacks the claim of this run's driver: the node "
                "sees another disk, or another start of the run writes there now"
            )

    def _block(self) -> None:
        self.moved = time.monotonic()
        if self.left:
            raise Left

    def _report(self, handed: Handed, error: str) -> None:
        """Note the result of an attempt in the run folder; log the start and the end of an outage."""
        self.error = error
        if not error:
            self._note()
            if self.reported:
                log.warning("the upload works again: the copy of round %d is complete", handed.round)
            self.reported = False
        elif self.failures + 1 >= ATTEMPTS and not self.reported:
            self.reported = True
            log.warning(
                "the checkpoint of round %d is not uploaded (%s); training goes on, checkpoints are in %s, and the "
                "upload is tried again",
                handed.round,
                error,
                self.folder,
            )
            self.lost()
            self._note()

    def _settle(self, handed: Handed, error: str) -> None:
        """Drop `handed` if it is copied or outdated, and pause after an error before the next attempt."""
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
        state = {"uri": self.remote.uri if self.remote else "", **self.uploaded, "error": self.error}
        with suppress(OSError), atomic_file(self.folder / UPLOADED) as partial:  # the older state, with its time, stays
            partial.write_text(json.dumps(state))


def _link(file: str, to: str) -> None:
    """Give a file a second name or, where the file system has no hard links, copy it."""
    try:
        os.link(file, to)
    except OSError:
        shutil.copyfile(file, to)


def claimed(path: Path) -> dict[str, str]:
    """Return {"run": id of the run, "writer": id of the start that may write}, or {} before `backup.claim`."""
    claim: dict[str, str] = stored_state(path).get("upload", {})
    return claim


def uploader(config: Config, folder: Path, lost: Callable[[], object]) -> Uploader | None:
    """Return a new uploader of the run folder `folder`, or None where `checkpoint.upload` is unset."""
    if config.checkpoint.upload is None:
        return None
    kept = claimed(folder)
    return Uploader(lambda: Remote.connect(config), folder, (kept["run"], kept["writer"]), config.checkpoint.keep, lost)
