"""What every process of a run builds from the configuration alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from redif_ray.config import LEARNED, Config, Reward, Student
from redif_ray.data.conditions import Conditions, load_conditions
from redif_ray.data.digests import Digests
from redif_ray.data.targets import TargetStore
from redif_ray.diffusion import schedules
from redif_ray.diffusion.schedules import Schedule
from redif_ray.models.protocol import DiffusionModel
from redif_ray.models.registry import fingerprint, load_model
from redif_ray.models.student import autocast_weights, make_student
from redif_ray.models.text import TextModel
from redif_ray.rewards.base import Rewards, build_terms
from redif_ray.rewards.discriminator import DiscriminatorTerm


def device(gpus: float) -> str:
    """Where a role computes: the GPU that Ray gave it, or the CPU."""
    if gpus and not torch.cuda.is_available():
        raise RuntimeError(f"this role asks for {gpus} GPUs but its process sees no CUDA device; set its gpus to 0")
    return "cuda" if gpus else "cpu"


def teacher(config: Config, where: str) -> DiffusionModel:
    """The teacher of a worker on the device `where`."""
    return _compiled(model(config, config.teacher.model, where), config)


def model(config: Config, source: str, where: str) -> DiffusionModel:
    """The model at `source` in the run's precision, which shares encoded captions with all processes of the run."""
    dtype = getattr(torch, config.networks.precision)
    found = load_model(source, family=config.teacher.family, device=where, dtype=dtype)
    if isinstance(found, TextModel):
        found.keep_encodings(_stores(config) / "captions", digests(config))
    return found


def student(config: Config, teacher: DiffusionModel) -> DiffusionModel:
    return _compiled(make_student(teacher, config.student.lora), config)


def travelling_dtypes(config: Config, student: DiffusionModel) -> dict[str, torch.dtype]:
    """Those that trained weights travel in to the workers, by name, where float32 would give the same rollouts.

    None where networks are compiled: a compiler may leave out autocast's rounding, which float32 weights would show.
    """
    return {} if config.networks.compile else dict.fromkeys(autocast_weights(student), student.dtype)


def _compiled(model: DiffusionModel, config: Config) -> DiffusionModel:
    if config.networks.compile:
        model.network.compile()
    return model


def student_schedule(model: DiffusionModel, student: Student) -> Schedule:
    if student.levels is not None:
        return schedules.explicit(model.process, student.levels, network_timesteps=student.network_timesteps)
    return schedules.build(model.process, student.steps, student.schedule, tilt=student.tilt, bow=student.bow)


def teacher_schedule(model: DiffusionModel, config: Config) -> Schedule:
    return schedules.build(model.process, config.teacher.steps, config.teacher.schedule)


def conditions(config: Config, model: DiffusionModel, captions: Sequence[str] | None = None) -> Conditions:
    """captions: instead of those that the configuration names."""
    return load_conditions(
        config.conditions,
        num_classes=model.num_classes,
        captions=model.takes_captions,
        seed=config.run.seed,
        given=captions,
    )


def rewards(config: Config, model: DiffusionModel, where: str) -> Rewards:
    channels, height, width = model.image_shape
    return build_terms(
        config.reward.terms,
        num_classes=model.num_classes or 0,
        image_shape=(channels, height, width),
        device=where,
        captions=model.takes_captions,
        seed=config.run.seed,
    )


def learned_reward(config: Config, model: DiffusionModel, where: str) -> DiscriminatorTerm | None:
    """The learned term alone, at version 0; None for a run without one."""
    terms = {name: term for name, term in config.reward.terms.items() if name == LEARNED}
    return rewards(config.model_copy(update={"reward": Reward(terms=terms)}), model, where).learned if terms else None


def target_store(config: Config, teacher: DiffusionModel) -> TargetStore:
    t = config.teacher
    identity: dict[str, Any] = {
        "format": 1,
        "teacher": fingerprint(teacher, digests(config)),
        "solver": t.solver,
        "steps": t.steps,
        "schedule": t.schedule,
        "guidance": t.guidance,
        "seed": config.run.seed,
    }
    return TargetStore(_stores(config), identity)


def digests(config: Config) -> Digests:
    """Checksums of a model's files, for the names of stores."""
    return Digests(_stores(config) / "files")


def _stores(config: Config) -> Path:
    return Path(config.teacher.store) if config.teacher.store else Path(config.run.root) / ".targets"
