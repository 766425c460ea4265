"""Location of a model on disk, found without importing torch or diffusers, which takes seconds."""

from __future__ import annotations

import re
from pathlib import Path

from redif_ray.errors import UserError

INDEX = "model_index.json"
MODULAR_INDEX = "modular_model_index.json"
PICKLED = (".ckpt", ".pt", ".pth", ".bin")  # ends of names of checkpoints that run code where they are loaded
TEACHERS = Path(__file__).parent.parent / "assets" / "teachers"


class ModelError(UserError, ValueError):
    """A model that cannot be loaded or does not support a request; the message says what was expected."""


def local_folder(source: str | Path) -> Path | None:
    """Return the folder of a path or shipped teacher; None for a hub id (org/name or org/name@revision), or one file.

    A name without a revision whose first part is a folder here is a path. Raises ModelError.
    """
    if single_file(source) is not None:
        return None
    for folder in (Path(source), TEACHERS / source):
        if folder.is_dir():
            return folder
    parent, _, name = str(source).rpartition("/")
    if parent and "@" not in name and Path(parent).is_dir():
        raise ModelError(f"{missing(source)}; the folder {parent} has no {name}, and {source}@main is one of the hub")
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*(@[\w-][\w./-]*)?", str(source)):
        raise ModelError(missing(source))
    return None


def single_file(source: str | Path) -> Path | None:
    """Return the path of a checkpoint in one file; None for any other model.

    Raises ModelError for a file that does not exist, and for one that is not in safetensors' format.
    """
    path = Path(source)
    if path.is_dir():
        return None
    if path.suffix in PICKLED or (path.is_file() and path.suffix != ".safetensors"):
        raise ModelError(
            f"{path}: a file in this format may run code when it is loaded, and is not read; expected .safetensors"
        )
    if path.suffix == ".safetensors" and not path.is_file():
        raise ModelError(f"{path}: no such file; expected a checkpoint in one .safetensors file")
    return path if path.suffix == ".safetensors" else None


def missing(source: str | Path) -> str:
    """Return the message of an error for a model that does not exist."""
    shipped = ", ".join(sorted(p.name for p in TEACHERS.glob("*/"))) or "none"
    return (
        f"no model {str(source)!r}: expected a folder, a hub id (org/name), also with @revision, a "
        f".safetensors file, or a shipped teacher ({shipped})"
    )
