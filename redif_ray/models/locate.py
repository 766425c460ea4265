"""Location of a model on disk, found without importing torch or diffusers, which takes seconds."""

from __future__ import annotations

import re
from pathlib import Path

from redif_ray.errors import UserError

INDEX = "model_index.json"
TEACHERS = Path(__file__).parent.parent / "assets" / "teachers"


class ModelError(UserError, ValueError):
    """A model that cannot be loaded or does not support a request; the message says what was expected."""


def local_folder(source: str | Path) -> Path | None:
    """Return the folder of a path or shipped teacher; None for a hub id (org/name or org/name@revision).

    Raises ModelError.
    """
    for folder in (Path(source), TEACHERS / source):
        if folder.is_dir():
            return folder
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*(@[\w-][\w./-]*)?", str(source)):
        raise ModelError(missing(source))
    return None


def missing(source: str | Path) -> str:
    """Return the message of an error for a model that does not exist."""
    shipped = ", ".join(sorted(p.name for p in TEACHERS.glob("*/"))) or "none"
    return (
        f"no model {str(source)!r}: expected a folder, a hub id (org/name), also with @revision, or a shipped "
        f"teacher ({shipped})"
    )
