"""The disk space that a run takes, counted from shapes, and the check before it starts that there is as much."""

from __future__ import annotations

import math
import shutil
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from redif_ray.config import Config, ConfigError
from redif_ray.data.conditions import Conditions
from redif_ray.evaluation.judge_source import needs_reference
from redif_ray.export.carried import carried
from redif_ray.models.protocol import DiffusionModel
from redif_ray.models.registry import teacher_folder, teacher_outline
from redif_ray.models.student import trained_numbers
from redif_ray.models.text import TextModel
from redif_ray.planning.factory import stores
from redif_ray.planning.rounds import Phases, distinct_groups
from redif_ray.planning.weight_bytes import second_numbers

WEIGHT_BYTES = 4  # an exported weight, in float32
CHECKPOINT_BYTES = 16  # a trained weight with Adam's two moments and the average, in float32
SECOND_BYTES = 12  # a weight of a network that is trained beside the student, with the moments


@dataclass(frozen=True, slots=True)
class Disk:
    """Bytes that a run writes at most; files in the store are compressed, and smaller.

    run: in the run folder: checkpoints, and the exported student, with its copy for MLflow. targets, captions: in the
    store: the teacher's images, and encoded captions with the pictures that they change.
    """

    run: int
    targets: int
    captions: int

    @property
    def total(self) -> int:
        return self.run + self.targets + self.captions


def disk(
    config: Config,
    teacher: DiffusionModel,
    conditions: Conditions | None = None,
    numbers: tuple[int, int] | None = None,
) -> Disk:
    """Count the bytes that a run writes. Raises ModelError for a teacher's folder that cannot be exported.

    teacher: may be on the meta device. conditions: those of the run; None: each group has a caption of its own.
    numbers: of trained weights, and of all weights of the network; None: counted here.
    """
    network = sum(p.numel() for p in teacher.network.parameters())
    trained, network = numbers or (trained_numbers(teacher.network, config.student.lora), network)
    e = config.evaluation
    phases = Phases(config).phases
    drawn = config.validation.groups + e.search + 2 * config.reward.calibration
    training = drawn + sum(distinct_groups(config, phase) for phase in phases if phase.teacher_images)
    held_out = e.held_out * (2 if needs_reference(e.judge) else 1) + e.diversity.count
    parts = sum(file.size for file in carried(teacher, teacher_folder(config.teacher)))
    if isinstance(teacher, TextModel):  # text encoders that a LoRA file changes are written anew
        network += sum(p.numel() for name in teacher.frozen.changed for p in teacher.part(name).parameters())
    exported = (parts + WEIGHT_BYTES * network) * (1 if config.tracking_uri is None else 2)
    aside = 0 if config.checkpoint.upload is None else 2  # beyond `keep`: one in upload and one that waits
    earlier = max((phase.earlier_students for phase in phases), default=0)
    saved = (CHECKPOINT_BYTES + 4 * earlier) * trained + SECOND_BYTES * second_numbers(config, teacher)
    checkpoints = (config.checkpoint.keep + 3 + aside) * saved
    images = 4 * math.prod(teacher.image_shape)
    captions = 0
    if isinstance(teacher, TextModel):
        every = drawn + sum(distinct_groups(config, phase) for phase in phases), held_out
        known = every if conditions is None else (len(conditions.training), len(conditions.held_out))
        captions = 1 + sum(min(pair) for pair in zip(every, known, strict=True))  # 1: the empty caption
        captions *= caption_bytes(teacher, getattr(torch, config.networks.precision))
        if teacher.takes_pictures:
            captions += sum(known) * math.prod(teacher.image_shape)
    return Disk(checkpoints + exported, (training + held_out) * images, captions)


def caption_bytes(teacher: TextModel, dtype: torch.dtype) -> int:
    """Return the bytes of an encoded caption whose text encoders compute in `dtype`."""
    return sum(value.numel() * dtype.itemsize for value in teacher.blank(1).values())


def check_room(config: Config, conditions: Conditions) -> None:
    """Raise ConfigError where a run with these conditions would fill a disk. See `check_disk`."""
    check_disk(config, disk(config, teacher_outline(config.teacher), conditions))


def check_disk(config: Config, wanted: Disk) -> None:
    """Raise ConfigError where the run folder or the store has too little room for what a run writes.

    What lies there already, of this run or another one, is taken to be a part of it.
    """
    run, store = Path(config.run.root) / config.run.name, stores(config)
    sizes = {run: wanted.run, store: wanted.targets + wanted.captions}
    disks = defaultdict[int, list[Path]](list)
    for folder in sizes:
        disks[_existing(folder).stat().st_dev].append(folder)
    for folders in disks.values():
        free = shutil.disk_usage(_existing(folders[0])).free
        if sum(sizes[folder] for folder in folders) <= free:
            continue  # without a look at the files, of which a shared store may hold many
        left = {folder: max(0, sizes[folder] - _size(folder)) for folder in folders}
        if sum(left.values()) > free:
            parts = " and ".join(f"{size / 1e6:,.0f} MB to {folder}" for folder, size in left.items())
            raise ConfigError(
                f"this run writes up to {parts} (run.root: checkpoints and the student; teacher.store: the teacher's "
                f"images and captions), and {free / 1e6:,.0f} MB are free there; free space, or set these keys to "
                "folders with more"
            )


def _existing(folder: Path) -> Path:
    folder = folder.resolve()
    return next(path for path in (folder, *folder.parents) if path.exists())


def _size(folder: Path) -> int:
    """Return the bytes of the files below a folder; other processes may remove some meanwhile."""
    found = 0
    for path in folder.rglob("*"):
        with suppress(OSError):
            found += path.stat().st_size
    return found
