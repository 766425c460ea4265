"""`redif check-family`: does a family do with a model what diffusers and this package expect of it?

The author of a family runs it on a small pipeline in the real layout, whose weights may be random, or on a real one.
Each check is a function of a `Subject` that returns what it measured, and raises `Failed` where that is wrong.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from redif_ray.config import Lora, Teacher
from redif_ray.data.pictures import PictureStore
from redif_ray.diffusion import schedules, solvers
from redif_ray.diffusion.levels import Level, VarianceExploding
from redif_ray.diffusion.schedules import Schedule
from redif_ray.export import export_student
from redif_ray.export.pipeline import pipeline_recipe
from redif_ray.models.edit import EditModel
from redif_ray.models.folder import component_folder
from redif_ray.models.headers import variant_of
from redif_ray.models.logging import quiet
from redif_ray.models.protocol import DiffusionModel, Encoded, ModelError
from redif_ray.models.registry import fingerprint, load_model, load_teacher, model_folder, teacher_outline
from redif_ray.models.student import make_student, trainable
from redif_ray.models.text import TextModel
from redif_ray.types import Condition, Edit

CAPTIONS = ("a red fox", "two blue squares left of a large yellow circle, on a table by the window")
STEPS, GUIDANCE = 4, 2.5
EXACT_TIMESTEP = 500  # of 1000; some networks round sigma = 0.5, and what they multiply it by, to 16 bits
SAME_IMAGE = 1e-3  # largest difference of a pixel in [0, 1]: float32 in another order of sums
SAME_WAY = 1e-4  # largest difference of a prediction that has to be the same, relative to its largest value
IN_16_BITS = 0.05  # mean difference of a prediction in bfloat16, relative to its standard deviation


class NotMade(Exception):
    """A check that cannot be made of such a model; the message says why."""


class Failed(AssertionError):
    """A check that found the family wrong; the message says what to look at."""


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of a check: what it measured, or what is wrong. passed: None where the check could not be made."""

    name: str
    text: str
    passed: bool | None


@dataclass(frozen=True, slots=True)
class Subject:
    """A model to check. teacher: the settings that load it."""

    model: DiffusionModel
    teacher: Teacher
    folder: Path
    store: PictureStore = field(default_factory=PictureStore)  # of `pictures`

    @property
    def conditions(self) -> list[Condition]:
        if self.model.takes_pictures:
            kept = [self.store.keep(_png(picture), "a picture", picture.size[::-1]) for picture in self.pictures]
            return [Edit(caption, name) for caption, name in zip(CAPTIONS, kept, strict=True)]
        if self.model.takes_captions:
            return list(CAPTIONS)
        return [None, None] if self.model.num_classes is None else [0, self.model.num_classes - 1]

    @property
    def pictures(self) -> list[Image.Image]:
        """The pictures of an editing model's conditions: colours that grow to the bottom, and to the right."""
        _, height, width = self.model.image_shape
        ramps = torch.meshgrid(torch.linspace(0, 255, height), torch.linspace(0, 255, width), indexing="ij")
        pixels = [torch.stack([one, 255 - one, other], 2).byte() for one, other in (ramps, ramps[::-1])]
        return [Image.fromarray(each.numpy()) for each in pixels]

    def encoded(self, model: DiffusionModel, rows: list[Condition]) -> Encoded:
        """Return the encodings of conditions of this subject for one of its models."""
        if isinstance(model, EditModel):
            model.pictures = self.store
        return model.encode(rows)

    @property
    def size(self) -> dict[str, int]:
        """The arguments of a pipeline's call for images of the model's size."""
        _, height, width = self.model.image_shape
        return {"height": height, "width": width}

    @property
    def noise(self) -> Tensor:
        """Noise [1, *latent_shape], as a pipeline draws it with a generator of seed 0."""
        return torch.randn(1, *self.model.latent_shape, generator=torch.Generator().manual_seed(0))

    @property
    def schedule(self) -> Schedule:
        """The schedule at which images are compared."""
        for name in ("uniform_trailing", "karras"):
            try:
                return schedules.build(self.model.process, STEPS, name)
            except ValueError:
                continue
        raise Failed("the noise process has neither the schedule uniform_trailing nor karras")

    @property
    def level(self) -> Level:
        """An inner level, whose timestep is exact in 16 bits too where timesteps are alike for all models."""
        process = self.model.process
        return self.schedule[1] if isinstance(process, VarianceExploding) else process.at(torch.tensor(EXACT_TIMESTEP))

    def predicted(self, model: DiffusionModel, rows: list[Condition], guidance: float = 1.0) -> Tensor:
        """Return x0_hat, float32, of the same noise at `level` for each of these conditions."""
        x = self.noise.to(model.device).repeat(len(rows), 1, 1, 1)
        with torch.no_grad():
            return model.predict(x, self.level, self.encoded(model, rows), guidance=guidance).x0


def check_family(model: str, family: str | None = None, size: tuple[int, int] | None = None) -> Iterator[Finding]:
    """Check the family that loads the model `model`, and yield a finding for each check.

    family: the user's loader, as in `teacher.family`; None: the family of the pipeline's class. size: (height, width)
    of images in pixels, for networks that name none. Raises ModelError where the model cannot be loaded.
    """
    height, width = size or (None, None)
    teacher = Teacher(model=model, family=family, height=height, width=width)
    subject = Subject(load_teacher(teacher), teacher, model_folder(model))
    for check in CHECKS:
        name = (check.__doc__ or "").partition("\n")[0].rstrip(".")
        try:
            yield Finding(name, check(subject), True)
        except NotMade as reason:
            yield Finding(name, str(reason), None)
        except (Failed, ModelError) as error:
            yield Finding(name, str(error), False)
        except Exception as error:  # the family's own code may raise anything
            yield Finding(name, f"{type(error).__name__}: {error}", False)


def _unguided(subject: Subject) -> str:
    """The image is the one that diffusers' pipeline makes at the same levels."""
    return _compared(subject, 1.0)


def _guided(subject: Subject) -> str:
    """The guided image is the one that diffusers' pipeline makes."""
    model = subject.model
    try:
        model.check_guidance()
    except ModelError:
        raise NotMade("the network has no guidance") from None
    return _compared(subject, GUIDANCE)


def _compared(subject: Subject, guidance: float) -> str:
    model, schedule = subject.model, subject.schedule
    if not isinstance(model, TextModel):
        raise NotMade("no pipeline of diffusers takes levels for such a model; compare it by a test of your own")
    how = pipeline_recipe(model, schedule, guidance)
    worst = 0.0
    pipe = _pipeline(subject, how.scheduler)
    for i, condition in enumerate(subject.conditions):
        own = {"image": subject.pictures[i]} if model.takes_pictures else {}
        with torch.no_grad(), quiet():
            noise = torch.Generator().manual_seed(0)
            call = subject.size | how.call | own
            theirs = pipe(prompt=CAPTIONS[i], generator=noise, output_type="pt", **call).images
            predict = model.predictor(subject.encoded(model, [condition]), guidance)
            ours = model.decode(solvers.sample("euler", predict, subject.noise, schedule))
        worst = max(worst, float((ours - theirs.cpu().float()).abs().max()))
    if not worst <= SAME_IMAGE:
        raise Failed(
            f"the largest difference of a pixel is {worst:.2g}; expected at most {SAME_IMAGE:g}: look at the sign and "
            "time convention of `output`, the packing, the kind of guidance, and the VAE's statistics"
        )
    return f"largest difference of a pixel {worst:.1e}"


def _default_levels(subject: Subject) -> str:
    """The levels of uniform_trailing, or of flow_default, are the pipeline's own where a user names none."""
    model = subject.model
    if not isinstance(model, TextModel):
        raise NotMade("as the image, it cannot be compared")
    seen: list[Tensor] = []
    pipe = _pipeline(subject, model.scheduler)
    for steps in (STEPS, STEPS + 3):
        with torch.no_grad(), quiet():
            options = subject.size | model.pipeline_options
            options |= {"image": subject.pictures[0]} if model.takes_pictures else {}
            pipe(prompt=CAPTIONS[0], num_inference_steps=steps, output_type="latent", **options)
        seen.append(torch.as_tensor(pipe.scheduler.timesteps).double().cpu())
    for name in ("uniform_trailing", "flow_default", "uniform_leading"):
        if all(_same_times(model, name, times) for times in seen):
            return f"they are {name}"
    theirs, own = ([round(t, 2) for t in times] for times in (seen[0].tolist(), subject.schedule.times.levels))
    raise Failed(
        f"the pipeline's timesteps for {STEPS} steps are {theirs}, and no named schedule has them (uniform_trailing: "
        f"{own}): look at the shift, and at what decides it (size, number of steps, shift_terminal)"
    )


def _same_times(model: DiffusionModel, name: str, times: Tensor) -> bool:
    try:
        own = schedules.build(model.process, len(times), name).levels.timestep[:-1]
    except ValueError:
        return False
    return bool(torch.allclose(own, times, atol=1.0, rtol=1e-3))


def _pipeline(subject: Subject, scheduler: Any) -> Any:
    assert isinstance(subject.model, TextModel)
    with quiet():
        variant = variant_of(component_folder(subject.folder, subject.model.component))
        pipe: Any = subject.model.pipeline_kind.from_pretrained(
            subject.folder, use_safetensors=True, dtype=torch.float32, variant=variant
        )
    pipe.scheduler = scheduler
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _alone(subject: Subject) -> str:
    """A prediction does not depend on the other rows of its call."""
    rows = subject.conditions
    together = subject.predicted(subject.model, rows)
    alone = torch.cat([subject.predicted(subject.model, [row]) for row in rows])
    return _close(together, alone, "look at the mask of captions that are filled up to the longest")


def _conditional(subject: Subject) -> str:
    """The prediction depends on the condition, also where the pictures of two conditions alone differ."""
    rows = subject.conditions
    if rows[0] == rows[1]:
        raise NotMade("the network is unconditional")
    alike = [Edit(CAPTIONS[0], row.picture) for row in rows if isinstance(row, Edit)]
    apart = []
    for pair in (rows, alike or rows):
        one, other = subject.predicted(subject.model, list(pair))
        if torch.equal(one, other):
            raise Failed("two conditions give the same prediction: look at what `output` gives to the network")
        apart.append(float((one - other).abs().max()))
    return f"largest difference between two conditions {min(apart):.2g}"


def _outline(subject: Subject) -> str:
    """Without weights, shapes of weights and encodings are the real ones, by which memory is counted."""
    outline = teacher_outline(subject.teacher, check=True)
    own = {name: value.shape for name, value in subject.model.network.state_dict().items()}
    hollow = {name: value.shape for name, value in outline.network.state_dict().items()}
    if own != hollow or any(not p.is_meta for p in outline.network.parameters()):
        raise Failed("the outline's weights have other names or shapes, or have data: look at `load`")
    real, blank = subject.encoded(subject.model, subject.conditions), outline.blank(2)
    if real.keys() != blank.keys():
        raise Failed(f"`blank` has {sorted(blank)}, `encode` has {sorted(real)}")
    for name, value in real.items():
        if value.ndim != blank[name].ndim or any(a > b for a, b in zip(value.shape, blank[name].shape, strict=True)):
            raise Failed(
                f"{name} has shape {list(value.shape)}, and `blank` says at most {list(blank[name].shape)}: look at "
                "`encode_prompt` on the device meta, which has to give the longest length"
            )
    return f"{sum(p.numel() for p in outline.network.parameters()):,} weights, encodings of {sorted(real)}"


def _fresh_student(subject: Subject) -> str:
    """A fresh student, whole or with adapters, predicts as its teacher does, and its gradient reaches the weights."""
    model, rows = subject.model, subject.conditions
    expected = subject.predicted(model, rows)
    for lora in (Lora(), Lora(rank=2)) if model.takes_captions else (Lora(),):
        student = make_student(model, lora)
        _close(subject.predicted(student, rows), expected, "look at state outside of the network, and at `replace`")
        x = subject.noise.repeat(len(rows), 1, 1, 1)
        student.predict(x, subject.level, subject.encoded(student, rows)).x0.square().mean().backward()
        reached = [p for p in trainable(student).values() if p.grad is not None and bool(p.grad.any())]
        if len(reached) < 0.4 * len(trainable(student)):  # the first gradient of A is 0, as B is
            raise Failed(f"the gradient reaches {len(reached)} of {len(trainable(student))} weights (rank {lora.rank})")
    return "whole and with adapters" if model.takes_captions else "whole"


def _half(subject: Subject) -> str:
    """In bfloat16 the prediction is the same up to rounding."""
    half = load_teacher(subject.teacher, dtype=torch.bfloat16)
    own, rounded = (subject.predicted(model, subject.conditions) for model in (subject.model, half))
    error = float((own - rounded).abs().mean() / own.std())
    if not error <= IN_16_BITS:
        raise Failed(
            f"the mean difference is {error:.2g} of the standard deviation; expected at most {IN_16_BITS:g}: look for "
            "positions, masks or sizes that are rounded to 16 bits"
        )
    return f"mean difference {error:.1e} of the standard deviation"


def _blocks(subject: Subject) -> str:
    """The blocks of a sharded network (FSDP) are modules of the network and hold most of its weights."""
    network, blocks = subject.model.network, subject.model.blocks()
    own = {id(module) for module in network.modules()}
    if not blocks or any(id(block) not in own for block in blocks):
        raise Failed("`blocks` names no modules, or modules that are not the network's")
    held = {id(p) for block in blocks for p in block.parameters()}
    share = sum(p.numel() for p in network.parameters() if id(p) in held) / sum(p.numel() for p in network.parameters())
    return f"{len(blocks)} blocks with {100 * share:.0f} % of the weights"


def _again(subject: Subject) -> str:
    """An exported student is loaded with the same predictions, and its fingerprint changes with its weights."""
    model = subject.model
    if fingerprint(model) != fingerprint(load_teacher(subject.teacher)):
        raise Failed("two loads of the same folder have different fingerprints")
    student = make_student(model, Lora())
    with torch.no_grad():
        next(iter(trainable(student).values())).mul_(1.5)
    with tempfile.TemporaryDirectory() as root:
        out = Path(root) / "student"
        export_student(student, subject.schedule, out, name="check", guidance=1, teacher=subject.folder, summary=None)
        again = load_model(out, family=subject.teacher.family, size=subject.teacher.size)
        text = _close(
            subject.predicted(again, subject.conditions),
            subject.predicted(student, subject.conditions),
            "look at what the export does not carry",
        )
        if fingerprint(again) == fingerprint(model):
            raise Failed("the fingerprint does not change with the weights")
    return text


def _close(one: Tensor, other: Tensor, look: str) -> str:
    error = float((one - other).abs().max() / other.abs().max())
    if not error <= SAME_WAY:
        raise Failed(
            f"the largest difference is {error:.2g} of the largest value; expected at most {SAME_WAY:g}: {look}"
        )
    return f"largest difference {error:.1e}"


def _png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "png")
    return file.getvalue()


CHECKS: tuple[Callable[[Subject], str], ...] = (
    _unguided,
    _guided,
    _default_levels,
    _alone,
    _conditional,
    _outline,
    _fresh_student,
    _half,
    _blocks,
    _again,
)
