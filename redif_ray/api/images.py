"""Images of students and teachers from Python."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from redif_ray.api.results import DistilledRun
from redif_ray.config import Precision
from redif_ray.errors import UserError
from redif_ray.models.locate import local_folder

if TYPE_CHECKING:
    from PIL.Image import Image

    from redif_ray.sample import LoadedStudent


def load_student(
    student: str | Path | DistilledRun,
    /,
    *,
    schedule: str | Path | None = None,
    family: str | None = None,
    size: tuple[int, int] | None = None,
    device: str | None = None,
    precision: Precision | None = None,
) -> LoadedStudent:
    """Load the student of a run, or an exported one, to draw images with its method `sample`.

    student: a run, its folder, or the folder of an exported student.
    schedule: the `schedule.yaml` of a search; None: the student's own schedule.
    family: code that loads the model, as `teacher.family`; None: that of the run.
    size: (height, width) of images in pixels; None: the model's own. device: None: a GPU if there is one.
    precision: None: on a GPU 16 bits where the model's files have them or it is large, and float32 elsewhere.
    Raises UserError where it cannot be loaded, or is no student.
    """
    local_folder(_name(student))  # raises for a model that is not there, before torch is imported
    from redif_ray.sample import load

    loaded = load(
        _name(student),
        schedule=None if schedule is None else Path(schedule),
        family=family,
        size=size,
        device=device,
        precision=precision,
    )
    if not loaded.student:
        raise UserError(
            f"{student} is no student: it has no schedule of its own; sample_images(..., steps=20) draws a teacher"
        )
    return loaded


def sample_images(
    model: str | Path | DistilledRun,
    /,
    captions: str | Sequence[str] | None = None,
    *,
    count: int | None = None,
    label: int | None = None,
    picture: str | Path | None = None,
    seed: int = 0,
    guidance: float | None = None,
    steps: int = 20,
    schedule: str | Path | None = None,
    family: str | None = None,
    base: str | Path | None = None,
    size: tuple[int, int] | None = None,
    device: str | None = None,
    precision: Precision | None = None,
) -> list[Image]:
    """Draw images of a student, by its own schedule, or of a teacher.

    model: a run, its folder, an exported student, a diffusers folder, a checkpoint in one file or a shipped teacher.
    captions: what to draw, in turn. label: the only class to draw; None: the classes in turn.
    picture: the file of the picture that an editing model changes as the captions say.
    count: number of images; None: one for each caption or class, or one.
    guidance: classifier-free guidance; None: the student's own, or 1.
    steps: number of steps of a model that has no schedule of its own.
    base: what a checkpoint in one file was made from, as `teacher.base`. The other arguments are those of
        `load_student`.
    Raises UserError for conditions, guidance, sizes or devices that cannot be used.
    """
    local_folder(_name(model))
    from redif_ray.sample import load

    loaded = load(
        _name(model),
        steps=steps,
        schedule=None if schedule is None else Path(schedule),
        family=family,
        base=None if base is None else str(base),
        size=size,
        device=device,
        precision=precision,
    )
    return loaded.sample(captions, count=count, label=label, picture=picture, seed=seed, guidance=guidance)


def _name(model: str | Path | DistilledRun) -> str:
    return str(model.folder if isinstance(model, DistilledRun) else model)
