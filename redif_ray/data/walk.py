"""The files of a folder as people see them: hidden entries are left out and links are followed."""

from __future__ import annotations

import os
from pathlib import Path

from redif_ray.data.findings import Findings


def visible_files(folder: Path, findings: Findings) -> list[Path]:
    """Return the files below `folder`, sorted by their paths; what is left out is noted in `findings`.

    Raises OSError for a folder that cannot be listed.
    """
    found: list[Path] = []
    seen, ahead = {_identity(folder)}, [folder]
    while ahead:
        inner: list[Path] = []
        for entry in sorted(os.scandir(ahead.pop()), key=lambda entry: entry.name):
            path = Path(entry.path)
            name = str(path.relative_to(folder))
            if entry.name.startswith("."):
                findings.leave_out("hidden", name)
            elif entry.is_file():
                found.append(path)
            elif not entry.is_dir():
                findings.leave_out("broken links or special files", name)
            elif (identity := _identity(path)) in seen:  # a link to a folder above it, or to one that was read already
                findings.leave_out("links to folders that are read elsewhere", name)
            else:
                seen.add(identity)
                inner.append(path)
        ahead += reversed(inner)
    return sorted(found)


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino
