"""Where a model is, as far as can be seen without torch or diffusers, which take seconds to import."""

from __future__ import annotations

import re
from pathlib import Path

from redif_ray.errors import UserError

TEACHERS = Path(__file__).parent.parent / "assets" / "teachers"


class ModelError(UserError, ValueError):
    """A model that cannot be loaded, or is asked for what it cannot do; the message says what was expected."""


def local_folder(source: str | Path) -> Path | None:
    """A local folder, or that of a shipped teacher; None for an "org/name" of the hub. Raises ModelError."""
    for folder in (Path(source), TEACHERS / source):
        if folder.is_dir():
            return folder
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", str(source)):
        raise ModelError(missing(source))
    return None


def missing(source: str | Path) -> str:
    shipped = ", ".join(sorted(p.name for p in TEACHERS.glob("*/"))) or "none"
    return f"no model {str(source)!r}: expected a folder, a hub id (org/name), or a shipped teacher ({shipped})"
