"""A student as a diffusers folder that others load without this package.

    model_index.json, <network>/, scheduler/    the teacher's layout; adapters are merged into the weights
    redif.json                                  timesteps, sigma / alpha and guidance that the student was trained for
    README.md                                   a model card whose code samples with torch and diffusers alone
    LICENSE, NOTICE                             the teacher's, where it has them
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
import yaml

from redif_ray.diffusion.schedules import Schedule
from redif_ray.export.edm import edm_sampler
from redif_ray.export.euler import euler_sampler
from redif_ray.export.sampler import SHOWN, Sampler, code, timesteps
from redif_ray.models.edm import EDM
from redif_ray.models.folder import INDEX
from redif_ray.models.pixel import PixelModel
from redif_ray.models.protocol import DiffusionModel, ModelError
from redif_ray.models.student import merged

SETTINGS, CARD = "redif.json", "README.md"
CARRIED = ("LICENSE", "LICENSE.md", "LICENSE.txt", "NOTICE")
LICENCE_KEYS = ("license", "license_name", "license_link")
TAGS = ["distillation", "few-step", "redif"]
COLUMNS = ("nfe", "frechet", "precision", "recall")


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
    sampler = edm_sampler(student, schedule) if isinstance(student, EDM) else euler_sampler(student, schedule)
    card = _card(student, schedule, sampler, name, guidance, _licence(teacher), summary)

    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    network.save_pretrained(partial / student.component, safe_serialization=True)
    sampler.scheduler.save_pretrained(partial / "scheduler")
    index = student.index | {"scheduler": ["diffusers", type(sampler.scheduler).__name__]}
    _write_json(partial / INDEX, index)
    _write_json(partial / SETTINGS, _settings(student, schedule, sampler, name, guidance))
    (partial / CARD).write_text(card)
    for path in [teacher / file for file in CARRIED] if teacher else []:
        if path.is_file():
            shutil.copyfile(path, partial / path.name)
    partial.rename(folder)


def require_exportable(model: DiffusionModel) -> None:
    """Raise ModelError where `export_student` could not write a student of this model."""
    if not isinstance(model, PixelModel):
        raise ModelError(
            f"a {type(model).__name__} can be loaded and sampled, but a student of it cannot be exported yet; expected "
            "a model of pixels (DDPMPipeline, DDIMPipeline, DiTPipeline or EDMPipeline)"
        )


def _settings(
    student: DiffusionModel, schedule: Schedule, sampler: Sampler, name: str, guidance: float
) -> dict[str, Any]:
    return {
        "format": 1, "name": name, "steps": schedule.steps, "schedule": schedule.name,
        "timesteps": timesteps(schedule), "sigmas": sampler.sigmas, "guidance": guidance,
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
    student: PixelModel, schedule: Schedule, sampler: Sampler, name: str, guidance: float, licence: dict[str, str],
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
{code(student, sampler, guidance)}
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


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")
