"""The files that an export copies from the teacher's folder: the parts that its pipeline takes, and the licence."""

from __future__ import annotations

import inspect
import json
import logging
import shutil
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from redif_ray.models.folder import INDEX
from redif_ray.models.foreign import LICENCES, is_known, is_name, resolved
from redif_ray.models.headers import other_weights, variant_of, without_variant
from redif_ray.models.protocol import DiffusionModel, ModelError
from redif_ray.models.text import TextModel
from redif_ray.models.vae import VAE, LatentModel

SCHEDULER = "scheduler"
DTYPES = {"dtype", "torch_dtype"}  # keys of transformers, new and old
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Carried:
    """A file to copy.

    name: path relative to the teacher's folder and to the export. source: path of the file's content, no link.
    size: bytes.
    """

    name: str
    source: Path
    size: int


def carried(student: DiffusionModel, folder: Path) -> list[Carried]:
    """List the files of the teacher's `folder` that an export of `student` copies; log the parts that it leaves out.

    Raises ModelError for a part that the index lists and the folder lacks, and for a key of the index or a link that
    leads out of the folder.
    """
    taken, left = _parts(student)
    if left:
        log.warning(
            "%s lists the parts %s, which %s does not take; the export leaves them out",
            folder / INDEX,
            ", ".join(left),
            student.index.get("_class_name", "the pipeline"),
        )
    licences = [path for path in (folder / name for name in LICENCES) if path.is_file() or path.is_symlink()]
    files = [_file(path, folder) for path in licences]
    written = {student.component, SCHEDULER, *_changed(student)}  # the export writes the student's own
    for name in taken:
        if name not in written:
            files += _part(folder, name)
    return files


def save_changed_parts(student: DiffusionModel, out: Path) -> None:
    """Write the text encoders that a LoRA file of the teacher changes, with the change, into the folder `out`."""
    if isinstance(student, TextModel):
        for name in sorted(student.frozen.changed):
            student.part(name).save_pretrained(out / name, safe_serialization=True)


def _changed(student: DiffusionModel) -> frozenset[str]:
    return student.frozen.changed if isinstance(student, TextModel) else frozenset()


def copy(files: Sequence[Carried], out: Path) -> None:
    """Copy `files` into the folder `out`."""
    for file in files:
        path = out / file.name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file.source, path)


def load_as_float32(student: DiffusionModel, out: Path) -> None:
    """Name float32 in the configuration of each part of transformers in the exported folder `out`.

    Without a dtype of the caller's, diffusers loads its own networks in float32, and transformers loads a network in
    the dtype that its config.json names: parts of two dtypes, which do not combine.
    """
    if is_elsewhere(student):
        return
    for name, value in student.index.items():
        path = out / name / "config.json"
        if _is_part(value) and value[0] == "transformers" and path.is_file():
            config = _float32(json.loads(path.read_text()))
            if not DTYPES & config.keys():
                config["dtype"] = "float32"
            path.write_text(json.dumps(config, indent=2) + "\n")


def _float32(config: Any) -> Any:
    """Return a configuration in which all dtypes are float32, also those of the configurations in it."""
    if not isinstance(config, dict):
        return config
    return {key: "float32" if key in DTYPES and value else _float32(value) for key, value in config.items()}


def exported_index(student: DiffusionModel) -> dict[str, Any]:
    """Return the teacher's index without the parts that an export leaves out. Raises ModelError as `carried` does."""
    _, left = _parts(student)
    return {name: value for name, value in student.index.items() if name not in left}


def is_elsewhere(student: DiffusionModel) -> bool:
    """Tell whether another package added the student's family."""
    return type(student).__module__.partition(".")[0] != __name__.partition(".")[0]


def _parts(student: DiffusionModel) -> tuple[list[str], list[str]]:
    """Return the names of the index's parts: first the parts that the pipeline takes, then the others."""
    names = [name for name, value in student.index.items() if _is_part(value)]
    for name in names:
        if not is_name(name):
            raise ModelError(
                f"{INDEX} lists the part {name!r}, which is no name of a folder beside it; rename the "
                "folder and the key, or remove the key"
            )
    takes = _takes(student)
    taken = [name for name in names if takes is None or name in takes]
    return taken, [name for name in names if name not in taken]


def _is_part(value: Any) -> bool:
    """Tell whether `value` is [library, class], as of a part; an absent part is [null, null]."""
    return isinstance(value, list) and len(value) == 2 and all(isinstance(v, str) for v in value)


def _takes(student: DiffusionModel) -> Collection[str] | None:
    """Return the names of the parts that this family's pipeline takes; None: all, for a family of another package."""
    if is_elsewhere(student):
        return None
    if isinstance(student, TextModel):
        return set(inspect.signature(student.pipeline_kind.__init__).parameters) - {"self"}
    return {student.component, SCHEDULER, *([VAE] if isinstance(student, LatentModel) else [])}


def _part(folder: Path, name: str) -> Iterator[Carried]:
    if not (folder / name).is_dir():
        raise ModelError(
            f"{folder} has no folder {name}, which its {INDEX} lists; copy the folder again, or write "
            f'"{name}": [null, null] if the pipeline works without it'
        )
    resolved(folder / name, folder, cache=False)
    variant = variant_of(folder / name)
    others = other_weights(folder / name)
    for file in _files(folder / name, folder):
        path = Path(file.name)
        if folder / path in others:
            continue
        yield replace(file, name=path.with_name(without_variant(path.name, variant)).as_posix())


def _files(path: Path, folder: Path) -> Iterator[Carried]:
    for entry in sorted(path.iterdir()):
        if entry.is_dir() and entry.is_symlink() and not entry.suffix:
            raise ModelError(
                f"{entry} is a link to a folder, {entry.resolve()}, and an export follows none; put a copy in "
                "place of the link, or remove the link"
            )
        if entry.is_dir() and not entry.is_symlink() and not entry.name.startswith("."):
            yield from _files(entry, folder)
        elif is_known(entry):
            yield _file(entry, folder)


def _file(path: Path, folder: Path) -> Carried:
    source = resolved(path, folder)
    if not source.is_file():
        raise ModelError(f"{path} cannot be copied; expected a regular file")
    return Carried(path.relative_to(folder).as_posix(), source, source.stat().st_size)
