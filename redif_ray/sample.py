"""The command `redif sample`: images of a student or a teacher, as one picture or as a file each."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from redif_ray.config import Precision
from redif_ray.data.captions import read_column
from redif_ray.data.pictures import PictureStore
from redif_ray.data.schedule_file import FoundFor, differences, read_schedule
from redif_ray.diffusion import noise, schedules, solvers
from redif_ray.diffusion.levels import VarianceExploding
from redif_ray.diffusion.noise import Stream
from redif_ray.diffusion.schedules import Schedule
from redif_ray.errors import UserError
from redif_ray.evaluation.grids import as_picture, write_grid
from redif_ray.models.captions import caption_warnings
from redif_ray.models.device import sampling_device, sampling_dtype
from redif_ray.models.edit import EditModel
from redif_ray.models.folder import SETTINGS, student_settings
from redif_ray.models.foreign import loading
from redif_ray.models.protocol import DiffusionModel
from redif_ray.models.registry import load_model, load_teacher, model_folder, teacher_folder
from redif_ray.models.sketch import found_for
from redif_ray.models.student import make_student, set_weights
from redif_ray.planning import factory
from redif_ray.planning.paths import warn_of_differences
from redif_ray.runs.deployed import deployed_weights
from redif_ray.runs.folder import RunError, latest_checkpoint, stored_config
from redif_ray.types import Condition, Edit, told

COUNT = 40  # images where neither a number nor captions are given
MOST_COLUMNS = 12  # classes for which each has columns of the picture to itself
BATCH = 50  # images at once, fewer for a large model
BATCH_NUMBERS = 50_000  # limit of the numbers in the latents of a batch
PICTURES = (".png", ".jpg", ".jpeg", ".webp")  # ends of names that Pillow knows
METADATA = "metadata.jsonl"  # the name that the datasets library looks for in a folder of images
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LoadedStudent:
    """A few-step student, or a teacher, with the schedule and the guidance by which it is sampled.

    source: what the user calls the model. student: whether it has a schedule of its own, as an exported student has.
    """

    source: str
    model: DiffusionModel
    schedule: Schedule
    guidance: float
    student: bool

    def sample(
        self,
        captions: str | Sequence[str] | None = None,
        *,
        count: int | None = None,
        label: int | None = None,
        picture: str | Path | None = None,
        seed: int = 0,
        guidance: float | None = None,
    ) -> list[Image.Image]:
        """Return images as PIL images, each from a noise of its own, which is the same for the same seed.

        captions: what to draw, in turn. label: the only class to draw; None: the classes in turn. picture: the file of
        the picture that an editing model changes as the captions say.
        count: number of images; None: one for each caption or class, or one.
        guidance: classifier-free guidance; None: the student's own, or 1.
        Raises UserError for conditions or guidance that the model does not take.
        """
        texts = [captions] if isinstance(captions, str) else captions
        classes = 1 if label is not None else self.model.num_classes or 1
        number = count if count is not None else classes if texts is None else len(texts)
        conditions = self.conditions(number, label, texts, picture)
        return [as_picture(image) for batch in self.batches(conditions, seed, guidance) for image in batch]

    def conditions(
        self, number: int, label: int | None, captions: Sequence[str] | None, picture: str | Path | None = None
    ) -> list[Condition]:
        """Return the condition of each of `number` images. Raises UserError where the model does not take it."""
        changes = isinstance(self.model, EditModel)
        if changes != (picture is not None) or (changes and captions is None):
            what = "changes a picture as a caption says; give --picture FILE and --caption TEXT"
            raise UserError(f"{self.source} {what if changes else f'takes no picture; leave out --picture {picture}'}")
        if number < 1:
            raise UserError(f"count {number}: expected the number of images, at least 1")
        classes = self.model.num_classes
        if label is not None and (not isinstance(label, int) or classes is None or not 0 <= label < classes):
            has = "no classes" if classes is None else f"classes 0 to {classes - 1}"
            raise UserError(f"label {label!r}: {self.source} has {has}")
        if captions is not None and not self.model.takes_captions:
            raise UserError(
                f"caption {captions[0]!r}: {self.source} takes no captions; leave captions out, or give a label"
            )
        if captions is not None:
            for text in caption_warnings(self.model, captions):
                log.warning("%s does not read all of what it is to draw: %s", self.source, text)
            if picture is not None:
                return self._edits(picture, [captions[i % len(captions)] for i in range(number)])
            return [captions[i % len(captions)] for i in range(number)]
        if classes is None:
            return [None] * number
        return [label if label is not None else i % classes for i in range(number)]

    def _edits(self, picture: str | Path, captions: Sequence[str]) -> list[Condition]:
        assert isinstance(self.model, EditModel)
        _, height, width = self.model.image_shape
        try:
            data = Path(picture).read_bytes()
        except OSError as error:
            raise UserError(f"--picture {picture} cannot be read: {error}") from error
        if self.model.pictures is None:
            self.model.pictures = PictureStore()
        name = self.model.pictures.keep(data, f"--picture {picture}", (height, width))
        return [Edit(caption, name) for caption in captions]

    def batches(self, conditions: list[Condition], seed: int, guidance: float | None = None) -> Iterator[np.ndarray]:
        """Yield the images [b, C, H, W], float in [0, 1], of these conditions, some at a time."""
        scale = self.guidance if guidance is None else guidance
        if scale != 1:
            self.model.check_guidance()
        size = max(1, min(BATCH, BATCH_NUMBERS // math.prod(self.model.latent_shape)))
        for i in range(0, len(conditions), size):
            batch = conditions[i : i + size]
            yield draw(self.model, self.schedule, list(range(i, i + len(batch))), batch, seed, scale).numpy()


def sample(
    model: str,
    out: Path,
    *,
    count: int | None = None,
    seed: int,
    label: int | None = None,
    caption: str | None = None,
    captions: Path | None = None,
    picture: Path | None = None,
    separate: bool = False,
    steps: int = 20,
    guidance: float | None = None,
    schedule: Path | None = None,
    family: str | None = None,
    base: str | None = None,
    size: tuple[int, int] | None = None,
    device: str | None = None,
    precision: Precision | None = None,
    console: Console | None = None,
) -> int:
    """Write images of `model` to the PNG `out` and return their number; a student uses its own schedule and guidance.

    count: number of images; None: one for each of `captions`, or `COUNT`.
    label, caption: the condition of all images; None: the classes in turn, or no condition.
    captions: a file of captions, one a line, which are drawn in turn.
    picture: the file of the picture that an editing model changes as the captions say.
    separate: `out` is a new folder instead, with one PNG an image and `METADATA`, which names each file's condition.
    guidance: classifier-free guidance; None: the guidance of the student, or 1. The other arguments are those of
        `load`.
    console: where the number of images that are drawn is shown while they are; None: nowhere.
    Raises UserError for conditions, guidance, sizes or devices that cannot be used, FileExistsError where `out` is
    to be a folder and holds files already.
    """
    if separate and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} is no empty folder; choose another one for the images, or move it away")
    if not separate and (out.suffix.lower() not in PICTURES or out.is_dir()):
        raise UserError(f"--out {out}: expected the name of a picture that ends in one of {', '.join(PICTURES)}")
    loaded = load(
        model,
        steps=steps,
        schedule=schedule,
        family=family,
        base=base,
        size=size,
        device=device,
        precision=precision,
    )
    texts = _captions(caption, captions)
    number = count or (COUNT if texts is None or captions is None else len(texts))
    conditions = loaded.conditions(number, label, texts, picture)
    drawn = _counted(loaded.batches(conditions, seed, guidance), number, console or Console(quiet=True))
    if schedule is not None:
        _warn_of_other_guidance(schedule, loaded, guidance)
    if separate:
        _write_files(out, drawn, conditions)
    else:
        write_grid(out, np.concatenate(list(drawn)), _columns(conditions))
    return len(conditions)


def _columns(conditions: list[Condition]) -> int | None:
    """Return a multiple of the number of classes that are drawn in turn, so that each has its columns, if it can."""
    classes = len({condition for condition in conditions if isinstance(condition, int)})
    if not 1 < classes <= MOST_COLUMNS:
        return None
    return classes * max(1, round(math.sqrt(len(conditions)) / classes))  # about square


def load(
    model: str,
    *,
    steps: int = 20,
    schedule: Path | None = None,
    family: str | None = None,
    base: str | None = None,
    size: tuple[int, int] | None = None,
    device: str | None = None,
    precision: Precision | None = None,
) -> LoadedStudent:
    """Load a run's student, an exported student or a teacher. Of an unfinished run it is that of its newest checkpoint.

    steps: number of steps for a model without a schedule of its own.
    schedule: a file of `redif search`, in which the schedule of as many steps as the model's is used; None: the
        model's own schedule.
    family: the user's own code that loads the model, as `teacher.family`; None: the family of the run, if `model` is a
        run.
    base: the model that gives what a checkpoint in one file does not hold, as `teacher.base`.
    size: (height, width) of images in pixels; None: the model's own. device, precision: see `redif_ray.models.device`.
    Raises UserError.
    """
    loaded = _load(model, steps, family, base, size, sampling_device(device), precision)
    if schedule is None:
        return loaded
    times, file = read_schedule(schedule, loaded.schedule.steps)
    if (now := _drawn_by(model, loaded, base, size)) is not None:
        warn_of_differences(f"--schedule {schedule}", differences(file, now, file.guidance))
    return replace(loaded, schedule=_levels(f"--schedule {schedule}", loaded.model, *times))


def _counted(drawn: Iterator[np.ndarray], number: int, console: Console) -> Iterator[np.ndarray]:
    """Yield the batches; a bar on a terminal, or a line elsewhere, tells how many of all `number` images are drawn."""
    if not console.is_terminal:
        console.print(f"drawing {number} image{'s' * (number != 1)}", highlight=False)
        yield from drawn
        return
    with Progress(
        "drawing", BarColumn(), MofNCompleteColumn(), "images", TimeRemainingColumn(), console=console
    ) as bar:
        task = bar.add_task("", total=number)
        for batch in drawn:
            bar.advance(task, len(batch))
            yield batch


def _drawn_by(source: str, loaded: LoadedStudent, base: str | None, size: tuple[int, int] | None) -> FoundFor | None:
    """Return what decides the best schedule of a teacher, or of the teacher of a run whose student is drawn; None for
    an exported student, which does not say whose it is, and for a run whose teacher is not here any more.
    """
    if not (Path(source) / "config.yaml").exists():
        return None if loaded.student else found_for(model_folder(source, base), size, {})
    teacher = stored_config(Path(source)).teacher
    try:
        return found_for(teacher_folder(teacher), size or teacher.size, dict(teacher.lora))
    except (UserError, OSError) as error:
        log.warning("the teacher of %s cannot be compared with that of the schedule: %s", source, error)
        return None


def _warn_of_other_guidance(schedule: Path, loaded: LoadedStudent, guidance: float | None) -> None:
    _, file = read_schedule(schedule, loaded.schedule.steps)
    scale = loaded.guidance if guidance is None else guidance
    if file.guidance != scale:
        log.warning("--schedule %s was found for guidance %g, and here it is %g", schedule, file.guidance, scale)


@torch.no_grad()
def draw(
    model: DiffusionModel,
    schedule: Schedule,
    groups: list[int],
    conditions: list[Condition],
    seed: int,
    guidance: float,
) -> torch.Tensor:
    """Return images [B, C, H, W] in [0, 1], on the CPU, from the groups' held-out noises, with a condition for each."""
    unit = noise.initial_noise(groups, model.latent_shape, seed=seed, stream=Stream.HELD_OUT, device=model.device)
    with loading(f"the {type(model).__name__} to sample"):  # values of a config.json that only a call looks at
        predict = model.predictor(model.encode(conditions), guidance)
        return model.images(solvers.sample("euler", predict, unit, schedule)).cpu()


def _write_files(folder: Path, drawn: Iterator[np.ndarray], conditions: list[Condition]) -> None:
    """Write each image as NUMBER.png, in the order of the conditions, with a line of `METADATA`."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for i, image in enumerate(image for batch in drawn for image in batch):
        name, condition = f"{i:05d}.png", told(conditions[i])
        as_picture(image).save(folder / name)
        key = "caption" if isinstance(condition, str) else "label"
        rows.append({"file_name": name, **({} if condition is None else {key: condition})})
    (folder / METADATA).write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _captions(caption: str | None, file: Path | None) -> Sequence[str] | None:
    if caption is not None and file is not None:
        raise UserError(f"--caption {caption!r}: --captions {file} is given too; leave one out")
    if file is not None:
        return read_column(str(file), None, str, key="--captions")
    return None if caption is None else [caption]


def _load(
    source: str,
    steps: int,
    family: str | None,
    base: str | None,
    size: tuple[int, int] | None,
    device: str,
    precision: Precision | None,
) -> LoadedStudent:
    name, run = source, Path(source)
    if (run / "config.yaml").exists():
        family = family or stored_config(run).teacher.family
        if not (run / "student").exists():
            return _unfinished(run, family, size, device, precision)
        source = str(run / "student")
    folder = model_folder(source, base)
    dtype = sampling_dtype(precision, folder, device)
    model = load_model(folder, family=family, device=device, dtype=dtype, size=size)
    own = student_settings(folder)
    if own is not None:
        schedule = _levels(str(folder / SETTINGS), model, own["timesteps"], own.get("network_timesteps"))
        return LoadedStudent(name, model, schedule, float(own["guidance"]), True)
    usual = "karras" if isinstance(model.process, VarianceExploding) else "uniform_trailing"
    return LoadedStudent(name, model, schedules.build(model.process, steps, usual), 1.0, False)


def _levels(
    source: str, model: DiffusionModel, timesteps: Sequence[float], network_timesteps: Sequence[float] | None
) -> Schedule:
    """Return the schedule of these timesteps. Raises UserError that names `source` where they are none of the model."""
    try:
        return schedules.explicit(model.process, timesteps, network_timesteps=network_timesteps)
    except ValueError as error:
        raise UserError(f"{source}: {error}") from error


def _unfinished(
    run: Path, family: str | None, size: tuple[int, int] | None, device: str, precision: Precision | None
) -> LoadedStudent:
    """Return the student in the newest checkpoint of a run that has not ended."""
    newest = latest_checkpoint(run / "checkpoints")
    if newest is None:
        raise RunError(f"{run} has neither a student nor a checkpoint yet; wait for the first (checkpoint.every)")
    log.warning("%s is not finished; the student is that of its newest checkpoint, %s", run, newest.name)
    config, (weights, _) = stored_config(run), deployed_weights(run, newest.name)
    dtype = sampling_dtype(precision, teacher_folder(config.teacher), device)
    changes = {"family": family} | ({} if size is None else {"height": size[0], "width": size[1]})
    config = config.model_copy(update={"teacher": config.teacher.model_copy(update=changes)})
    teacher = load_teacher(config.teacher, device=device, dtype=dtype)
    student = make_student(factory.start(config, teacher), config.student.lora, in_place=True)
    set_weights(student, weights)
    levels = factory.student_schedule(student, config.student)
    return LoadedStudent(str(run), student, levels, config.student.guidance, True)
