"""Objects that every process of a run builds from the configuration alone."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from redif_ray.config import LEARNED, Config, Reward, Student
from redif_ray.data.captions import Metadata
from redif_ray.data.conditions import CONDITIONS, Conditions, load_conditions
from redif_ray.data.digests import Digests
from redif_ray.data.pictures import PictureStore
from redif_ray.data.targets import TargetStore
from redif_ray.diffusion import schedules
from redif_ray.diffusion.schedules import Schedule
from redif_ray.models.edit import EditModel
from redif_ray.models.protocol import DiffusionModel
from redif_ray.models.quantization import quantize
from redif_ray.models.registry import fingerprint, load_teacher
from redif_ray.models.start import starting_model
from redif_ray.models.student import autocast_weights, make_student
from redif_ray.models.text import TextModel
from redif_ray.rewards.base import Rewards, build_terms
from redif_ray.rewards.discriminator import DiscriminatorTerm
from redif_ray.user_code.deadline import time_limit


def device(gpus: float) -> str:
    """Return the torch device of a worker: "cuda" (the GPU that Ray gave it), or "cpu" for 0. Raises RuntimeError."""
    if gpus and not torch.cuda.is_available():
        raise RuntimeError(f"this role has gpus={gpus:g} but its process sees no CUDA device; set its gpus to 0")
    return "cuda" if gpus else "cpu"


def teacher(config: Config, where: str) -> DiffusionModel:
    """Return the teacher on the device `where`, compiled if the configuration says so."""
    return _compiled(model(config, None, where), config)


def frozen(config: Config, where: str) -> DiffusionModel:
    """Return the teacher as the student's frozen base: `teacher`, quantized if the configuration says so."""
    kind = config.networks.quantize
    if kind == "none":
        return teacher(config, where)
    base = model(config, None, "cpu")  # so that the device never holds the weights in whole precision
    quantize(base, kind)
    return base.to(where)


def model(config: Config, source: str | None, where: str) -> DiffusionModel:
    """Return the teacher, or its student at `source`, in the run's precision; all processes share encoded captions."""
    dtype = getattr(torch, config.networks.precision)
    loaded = load_teacher(config.teacher, source, device=where, dtype=dtype)
    if isinstance(loaded, TextModel):
        loaded.keep_encodings(stores(config) / "captions", digests(config))
    if isinstance(loaded, EditModel):
        loaded.pictures = pictures(config)
    return loaded


def start(config: Config, teacher: DiffusionModel, *, check: bool = False) -> DiffusionModel:
    """Return the model that the student starts as: the teacher, or the model that `student.init` names."""
    return starting_model(teacher, config.teacher, config.student.init, check=check)


def student(config: Config, teacher: DiffusionModel) -> DiffusionModel:
    """Return a new student of the `frozen` teacher, compiled if the configuration says so."""
    first, kind = start(config, teacher), config.networks.quantize
    if first is not teacher and kind != "none":
        quantize(first, kind)
        first.to(teacher.device)
    return _compiled(make_student(first, config.student.lora, in_place=first is not teacher), config)


def travelling_dtypes(config: Config, student: DiffusionModel) -> dict[str, torch.dtype]:
    """Return, by name, the 16-bit dtype of the trained weights that are sent to workers in 16 bits.

    These are weights that autocast rounds anyway, so that float32 would give the same rollouts. The mapping is empty
    for compiled networks: a compiler may leave out autocast's rounding, and results would differ.
    """
    return {} if config.networks.compile else dict.fromkeys(autocast_weights(student), student.dtype)


def _compiled(model: DiffusionModel, config: Config) -> DiffusionModel:
    """Compile the kinds of blocks that a network repeats, each once, or the whole network where it names none."""
    if config.networks.compile:
        try:
            model.network.compile_repeated_blocks()
        except (AttributeError, ValueError):  # a network of another library, or one without such blocks
            model.network.compile()
    return model


def student_schedule(model: DiffusionModel, student: Student) -> Schedule:
    """Return the student's schedule: its own levels, or a named schedule with tilt and bow."""
    if student.levels is not None:
        return schedules.explicit(model.process, student.levels, network_timesteps=student.network_timesteps)
    return schedules.build(model.process, student.steps, student.schedule, tilt=student.tilt, bow=student.bow)


def teacher_schedule(model: DiffusionModel, config: Config) -> Schedule:
    """Return the schedule of the teacher's target images."""
    return schedules.build(model.process, config.teacher.steps, config.teacher.schedule)


def conditions(config: Config, model: DiffusionModel) -> Conditions:
    """Return the classes or captions of the run; pictures that captions change are kept in their store."""
    _, height, width = model.image_shape
    return load_conditions(
        config.conditions,
        num_classes=model.num_classes,
        captions=model.takes_captions,
        seed=config.run.seed,
        keep=partial(pictures(config).keep, size=(height, width)) if model.takes_pictures else None,
    )


def pictures(config: Config) -> PictureStore:
    """Return the store of the pictures that an editing model changes."""
    return PictureStore(stores(config) / "pictures")


def rewards(config: Config, model: DiffusionModel, where: str) -> Rewards:
    """Return the reward terms, built on the device `where` for images of `model`."""
    channels, height, width = model.image_shape
    return build_terms(
        config.reward.terms,
        num_classes=model.num_classes or 0,
        image_shape=(channels, height, width),
        device=where,
        captions=model.takes_captions,
        seed=config.run.seed,
        patience_s=time_limit(config.pipeline.timeout_s),
        metadata=metadata(config, model) if config.conditions.metadata else None,
    )


def metadata(config: Config, model: DiffusionModel) -> Mapping[str, Metadata]:
    """Return what the source of the captions says of each beside it, as the run folder keeps it if there is one."""
    kept = Path(config.run.root) / config.run.name / CONDITIONS
    return (Conditions.from_json(kept.read_text()) if kept.exists() else conditions(config, model)).metadata


def learned_reward(config: Config, model: DiffusionModel, where: str) -> DiscriminatorTerm | None:
    """Return the learned reward term alone, at version 0, or None if the run has no learned term."""
    terms = {name: term for name, term in config.reward.terms.items() if name == LEARNED}
    return rewards(config.model_copy(update={"reward": Reward(terms=terms)}), model, where).learned if terms else None


def target_store(config: Config, teacher: DiffusionModel) -> TargetStore:
    """Return the store of teacher targets; its name depends on everything that the targets depend on."""
    t = config.teacher
    identity: dict[str, Any] = {
        "format": 2,  # 2: sampled in blocks, and decoded in bfloat16 where the network computes in it
        "teacher": fingerprint(teacher, digests(config)),
        "solver": t.solver,
        "steps": t.steps,
        "schedule": t.schedule,
        "guidance": t.guidance,
        "seed": config.run.seed,
    }
    return TargetStore(stores(config), identity)


def digests(config: Config) -> Digests:
    """Return the cache of checksums of model files, which are part of the names of stores."""
    return Digests(stores(config) / "files")


def stores(config: Config) -> Path:
    """Return the folder of the stores that runs share: the teacher's images, encoded captions, checksums of files."""
    return Path(config.teacher.store) if config.teacher.store else Path(config.run.root) / ".targets"
