"""The model that a student starts as: its teacher, or the distilled model that `student.init` names."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from redif_ray.config import Teacher
from redif_ray.diffusion.levels import NoiseProcess
from redif_ray.models.edit import EditModel
from redif_ray.models.folder import student_settings, without_weights
from redif_ray.models.locate import single_file
from redif_ray.models.protocol import DiffusionModel, ModelError
from redif_ray.models.registry import check_finite, load_model, model_folder, teacher_folder
from redif_ray.models.text import TextModel
from redif_ray.models.vae import LatentModel

SHARED = ("process", "scheduler", "clip", "index", "family")  # fields that a student has from its teacher
STUDENT = "student"  # folder of a finished run that holds its exported student
SCHEDULE_ONLY = ("shift", "growth", "last")  # what a noise process says of schedules alone


def starting_model(
    teacher: DiffusionModel, settings: Teacher, init: str | None, *, check: bool = False
) -> DiffusionModel:
    """Return the model that a student of `teacher` starts as; the teacher itself where `init` is None.

    It predicts with the network of `init`, as that network was trained to (epsilon, v, ...), and has the teacher's
    noise process, text encoders and VAE. settings: the teacher's, for the family. check: for a teacher without weights,
    whether to compare the headers of the weight files with the network.
    Raises ModelError for a model that starts no student of this teacher.
    """
    if init is None:
        return teacher
    folder, hollow = init_folder(init, settings), teacher.device.type == "meta"
    with without_weights(check=check) if hollow else nullcontext():
        model = load_model(
            folder, family=settings.family, device=str(teacher.device), dtype=teacher.dtype, size=settings.size
        )
    _check(model, teacher, init)
    if not hollow:
        check_finite(model, "student.init")
    fields: dict[str, Any] = {name: getattr(teacher, name) for name in SHARED}
    if isinstance(teacher, LatentModel):
        fields["frozen"] = teacher.frozen
    if isinstance(teacher, TextModel):
        fields |= {"store": teacher.store, "known": teacher.known}
    if isinstance(teacher, EditModel):
        fields["pictures"] = teacher.pictures
    return replace(model, **fields)


def init_folder(init: str, teacher: Teacher) -> Path:
    """Return the folder of `student.init`: a model's, or the student of a finished run. Raises ModelError.

    teacher: gives what a checkpoint in one file does not hold.
    """
    run = Path(init)
    if (run / "config.yaml").is_file():
        if not (run / STUDENT).is_dir():
            raise ModelError(f"student.init={init} is a run without a student yet; let it end, or export a checkpoint")
        return run / STUDENT
    return model_folder(init, None if single_file(init) is None else teacher_folder(teacher))


def init_settings(init: str, teacher: Teacher) -> dict[str, Any] | None:
    """Return what `redif.json` says of the sampling of `student.init`; None for a model of another program."""
    return student_settings(init_folder(init, teacher))


def _check(model: DiffusionModel, teacher: DiffusionModel, init: str) -> None:
    for what in ("latent_shape", "image_shape", "num_classes", "component"):
        own, expected = getattr(model, what), getattr(teacher, what)
        if own != expected:
            raise ModelError(f"student.init={init}: its {what} is {own}; expected the teacher's, {expected}")
    if not _same_family(model, teacher):
        kinds = type(model).__name__, type(teacher).__name__
        raise ModelError(f"student.init={init} is a {kinds[0]}; expected a {kinds[1]} like the teacher")
    for what in ("embeds_guidance", "token_limits"):
        own, expected = getattr(model, what, None), getattr(teacher, what, None)
        if own != expected:
            raise ModelError(
                f"student.init={init}: its {what} is {own}, the teacher's is {expected}; the two cannot share the "
                "teacher's encoded captions"
            )
    if not _same_noise(model.process, teacher.process):
        raise ModelError(
            f"student.init={init} was trained with another noise process than the teacher; its predictions would mean "
            "something else at the teacher's levels"
        )


def _same_family(one: DiffusionModel, other: DiffusionModel) -> bool:
    """Tell whether one class loaded both; a user's file makes its class anew at each load."""
    if type(one) is type(other):
        return True
    files = [model.family.sha256 if model.family else None for model in (one, other)]
    return files[0] is not None and files[0] == files[1] and type(one).__qualname__ == type(other).__qualname__


def _same_noise(one: NoiseProcess, other: NoiseProcess) -> bool:
    """Tell whether a network of one process sees the same noise at each timestep of the other."""
    if type(one) is not type(other):
        return False
    numbers = [{k: torch.as_tensor(v) for k, v in vars(each).items()} for each in (one, other)]
    free = {*SCHEDULE_ONLY, "final_alpha_cumprod", "sigma_min", "sigma_max"}  # ends of sampling
    return all(torch.equal(numbers[0][k], numbers[1][k]) for k in numbers[0].keys() - free)
