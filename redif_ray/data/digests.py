"""A cache of the sha256 of large files that all processes share: a folder of notes by path, size and time of change."""

from __future__ import annotations

import time
from pathlib import Path

from redif_ray.checkpoint import file_sha256
from redif_ray.data.targets import TargetStoreError, content_hash
from redif_ray.files import atomic_file

SETTLED_SECONDS = 2.0  # a file that changed less long ago may change again within one time stamp


class Digests:
    """A function that returns the sha256 of a file and keeps it in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, path: Path) -> str:
        """Return the sha256 of `path`. Raises TargetStoreError if the folder cannot be written."""
        path, status = path.resolve(), path.stat()
        note = self.folder / content_hash([str(path), status.st_size, status.st_ctime_ns])
        if note.is_file():
            return note.read_text()
        digest = file_sha256(path)
        if time.time() - status.st_ctime > SETTLED_SECONDS:
            self._keep(note, digest)
        return digest

    def _keep(self, note: Path, digest: str) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with atomic_file(note) as partial:
                partial.write_text(digest)
        except OSError as error:
            raise TargetStoreError(
                f"cannot write {note}: {error}; set teacher.store to a folder that can be written"
            ) from error
