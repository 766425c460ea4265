"""The files of a folder as people see them: hidden entries are left out and links are followed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from redif_ray.data.findings import Findings


def visible_files(folder: Path, findings: Findings) -> list[Path]:
    """Return the files below `folder`, sorted by their paths; what is left out is noted in `findings`.

    Raises OSError for a folder that cannot be listed.
    """
    return sorted(_files(folder, folder, {_identity(folder)}, findings))


def _files(folder: Path, root: Path, seen: set[tuple[int, int]], findings: Findings) -> Iterator[Path]:
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        path = folder / entry.name
        name = str(path.relative_to(root))
        if entry.name.startswith("."):
            findings.leave_out("hidden", name)
        elif entry.is_dir():
            identity = _identity(path)
            if identity in seen:  # a link to a folder above it, or to one that was read already
                findings.leave_out("links to folders that are read elsewhere", name)
                continue
            seen.add(identity)
            yield from _files(path, root, seen, findings)
        elif entry.is_file():
            yield path
        else:
            findings.leave_out("broken links or special files", name)


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino
