"""A student as a diffusers folder that others load without this package.

    model_index.json, <network>/, scheduler/    the teacher's layout; adapters are merged into the weights
    redif.json                                  timesteps, sigma / alpha and guidance that the student was trained for
    README.md                                   a model card whose code samples with torch and diffusers alone
    LICENSE, NOTICE                             the teacher's, where it has them

`EulerDiscreteScheduler` takes explicit timesteps and, in units of x / alpha, its step is the transition with S = 0.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
import yaml
from diffusers import EulerDiscreteScheduler

from redif_ray.diffusion.levels import VariancePreserving
from redif_ray.diffusion.schedules import Schedule
from redif_ray.models.folder import INDEX
from redif_ray.models.pixel import PixelModel
from redif_ray.models.protocol import DiffusionModel, ModelError
from redif_ray.models.student import merged

SETTINGS, CARD = "redif.json", "README.md"
CARRIED = ("LICENSE", "LICENSE.md", "LICENSE.txt", "NOTICE")
BETAS = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas")
LICENCE_KEYS = ("license", "license_name", "license_link")
TAGS = ["distillation", "few-step", "redif"]
COLUMNS = ("nfe", "frechet", "precision", "recall")
SHOWN = 4  # images that the card's code makes


def export_student(
    student: DiffusionModel,
    schedule: Schedule,
    folder: str | Path,
    *,
    name: str,
    guidance: float,
    teacher: Path | None,
    summary: dict[str, Any] | None,
) -> None:
    """Write `student`, to be sampled along `schedule` at `guidance`, as the new folder `folder`, whole or not at all.

    teacher: the folder whose licence is carried along; None: there is none to carry. summary: a run's summary, for the
    numbers of the card. Raises FileExistsError, and ModelError for a student that diffusers could not sample alike.
    """
    folder = Path(folder)
    if folder.exists():
        raise FileExistsError(f"{folder} exists; choose another name or move it away")
    require_exportable(student)
    assert isinstance(student, PixelModel)
    network = merged(student).to("cpu")
    broken = [key for key, value in network.state_dict().items() if not bool(torch.isfinite(value).all())]
    if broken:
        raise ModelError(f"weight {broken[0]} is not finite ({len(broken)} in all); export an earlier checkpoint")
    network.register_to_config(_name_or_path=name)  # not the path of the teacher on this machine
    if guidance != 1:
        student.null_conditions(SHOWN)  # raises where there is nothing to guide by
    scheduler = _scheduler(student, schedule)
    card = _card(student, schedule, name, guidance, _licence(teacher), summary)

    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    network.save_pretrained(partial / student.component, safe_serialization=True)
    scheduler.save_pretrained(partial / "scheduler")
    index = student.index | {"scheduler": ["diffusers", type(scheduler).__name__]}
    _write_json(partial / INDEX, index)
    _write_json(partial / SETTINGS, _settings(student, schedule, scheduler, name, guidance))
    (partial / CARD).write_text(card)
    for path in [teacher / file for file in CARRIED] if teacher else []:
        if path.is_file():
            shutil.copyfile(path, partial / path.name)
    partial.rename(folder)


def require_exportable(model: DiffusionModel) -> None:
    """Raise ModelError where `export_student` could not write a student of this model."""
    if not isinstance(model, PixelModel) or not isinstance(model.process, VariancePreserving):
        raise ModelError(
            f"a {type(model).__name__} can be loaded and sampled, but a student of it cannot be exported yet; expected "
            "a model of pixels with a DDPM-like scheduler (DDPMPipeline, DDIMPipeline or DiTPipeline)"
        )


def _scheduler(student: DiffusionModel, schedule: Schedule) -> Any:
    """Euler's scheduler on the teacher's betas, set to the schedule; its sigma is our sigma / alpha.

    With spacing `trailing` it starts at sigma_T eps; the other spacings start at sqrt(sigma_T^2 + alpha_T^2) eps.
    """
    config, end = student.scheduler.config, schedule.levels.sigma[-1]
    scheduler: Any = EulerDiscreteScheduler(
        **{key: config[key] for key in BETAS},
        rescale_betas_zero_snr=config.get("rescale_betas_zero_snr", False), prediction_type=student.prediction_type,
        timestep_spacing="trailing", final_sigmas_type="sigma_min" if end > 0 else "zero",
    )
    if student.clip is not None:  # Euler's step does not clip; the card's code does, and this package
        scheduler.register_to_config(clip_sample=True, clip_sample_range=student.clip)
    scheduler.set_timesteps(timesteps=_timesteps(schedule))
    told = schedule.levels.alpha > 0  # rescaled betas: Euler's first sigma is 4096 where ours is infinite
    expected = (schedule.levels.sigma / schedule.levels.alpha)[told].float()
    if not torch.allclose(scheduler.sigmas[told], expected, rtol=1e-3):
        raise ModelError(
            f"schedule {schedule.name} has sigmas {expected.tolist()}, Euler's scheduler at the same timesteps "
            f"{scheduler.sigmas.tolist()}; expected a schedule of this model's own noise process"
        )
    return scheduler


def _timesteps(schedule: Schedule) -> list[int]:
    return [int(t) for t in schedule.levels.timestep[:-1]]


def _settings(
    student: DiffusionModel, schedule: Schedule, scheduler: Any, name: str, guidance: float
) -> dict[str, Any]:
    return {
        "format": 1, "name": name, "steps": schedule.steps, "schedule": schedule.name,
        "timesteps": _timesteps(schedule), "sigmas": scheduler.sigmas.tolist(), "guidance": guidance,
        "clip_sample_range": student.clip,
    }


def _licence(teacher: Path | None) -> dict[str, str]:
    """The licence keys in the front matter of the teacher's card."""
    card = teacher / CARD if teacher else None
    if card is None or not card.is_file():
        return {}
    opening, _, rest = card.read_text().partition("---\n")
    matter, closing, _ = rest.partition("\n---")
    if opening or not closing:
        return {}
    try:
        found = yaml.safe_load(matter)
    except yaml.YAMLError as error:
        raise ModelError(f"{card}: its front matter is not valid YAML ({error}); mend it to keep the licence") from None
    return {key: found[key] for key in LICENCE_KEYS if key in found} if isinstance(found, dict) else {}


def _card(
    student: PixelModel, schedule: Schedule, name: str, guidance: float, licence: dict[str, str],
    summary: dict[str, Any] | None,
) -> str:
    matter = yaml.safe_dump(licence | {"library_name": "diffusers", "tags": TAGS}, sort_keys=False)
    calls = schedule.steps * student.calls_per_step(guidance)
    guided = "" if guidance == 1 else f" at guidance {guidance:g}"
    return f"""---
{matter}---

# {name}

A diffusion model that redif-ray distilled to {schedule.steps} steps{guided} ({calls} network calls an image), towards
the images that its teacher makes in many (ReDiF, arXiv 2512.22802). It keeps the teacher's architecture, noise process
and licence. It was made for the timesteps below only. The pipelines of diffusers choose their own, and some leave the
noise unscaled, so use this code.
{_numbers(summary)}
## Sampling

```python
{_code(student, schedule, guidance)}
```
"""


def _numbers(summary: dict[str, Any] | None) -> str:
    """The summary's arms as a table."""
    if summary is None:
        return ""
    head = [*COLUMNS, "paired mse"]
    found = {arm: row for arm, row in summary["arms"].items() if row}
    arms = {arm: [*(row[c] for c in COLUMNS), row["paired"]["pixel_mse"]] for arm, row in found.items()}
    rows = [f"| {arm} | {' | '.join(f'{value:.4g}' for value in values)} |" for arm, values in arms.items()]
    return "\n".join([
        "", "## Numbers", "",
        f"{summary['held_out']} held-out noises, seed {summary['seed']}; Fréchet distance in the features of judge "
        f"{summary['judge']} (not FID); paired with the teacher's images of the same noises.", "",
        f"| | {' | '.join(head)} |", "|---" * (len(head) + 1) + "|", *rows, "",
    ])


def _code(student: PixelModel, schedule: Schedule, guidance: float) -> str:
    """Python that samples the folder with torch and diffusers alone.

    Its update is Euler's without the difference sigma' - sigma, which in float32 loses three digits from sigma = 2e4.
    """
    kind = type(student.network).__name__
    labels, outputs = _network_lines(student, guidance)
    clip = "" if student.clip is None else f".clamp(-{student.clip}, {student.clip})"
    result = "x" if schedule.levels.sigma[-1] == 0 else "x / (following**2 + 1) ** 0.5"
    shape = ", ".join(map(str, (SHOWN, *student.latent_shape)))
    return "\n".join([
        "import torch",
        f"from diffusers import {kind}, EulerDiscreteScheduler",
        'folder = "."  # where this file lies',
        f'network = {kind}.from_pretrained(folder, subfolder="{student.component}", use_safetensors=True)'
        ".requires_grad_(False)",
        'scheduler = EulerDiscreteScheduler.from_pretrained(folder, subfolder="scheduler")',
        f"scheduler.set_timesteps(timesteps={_timesteps(schedule)})",
        *labels,
        f"x = scheduler.init_noise_sigma * torch.randn({shape}, generator=torch.Generator().manual_seed(0))",
        "for t, sigma, following in zip(scheduler.timesteps, scheduler.sigmas, scheduler.sigmas[1:]):",
        "    scaled = scheduler.scale_model_input(x, t)",
        *outputs,
        f"    x0 = scheduler.step(output, t, x).pred_original_sample{clip}",
        "    x = x0 + (x - x0) * following / sigma",
        f"images = ({result} / 2 + 0.5).clamp(0, 1)",
    ])


def _network_lines(student: PixelModel, guidance: float) -> tuple[list[str], list[str]]:
    """The lines that make the labels and those that make `output` from `scaled` and `t`."""
    channels = student.latent_shape[0]
    first = f"[:, :{channels}]" if student.config.out_channels not in (None, channels) else ""  # the rest: a variance
    one = f"scaled, t.expand({SHOWN}).long()"
    if student.num_classes is None:
        return [], [f"    output = network({one}).sample{first}"]
    classes = [i % student.num_classes for i in range(SHOWN)]
    if guidance == 1:
        one += ", class_labels=labels"
        return [f"labels = torch.tensor({classes})"], [f"    output = network({one}).sample{first}"]
    nothing = student.null_conditions(SHOWN)["class_labels"].tolist()
    both = f"torch.cat([scaled, scaled]), t.expand({2 * SHOWN}).long(), class_labels=labels"
    return [f"labels = torch.tensor({classes + nothing})  # the second half: no class"], [
        f"    cond, uncond = network({both}).sample{first}.chunk(2)",
        f"    output = uncond + {guidance} * (cond - uncond)",
    ]


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")
