"""Export of a student as a diffusers folder that loads without this package. The folder holds:

model_index.json, <network>/, scheduler/    the teacher's layout; adapters are merged into the weights
pytorch_lora_weights.safetensors            the adapters alone, if there are any and the pipeline loads such a file
comfyui_lora.safetensors                    the same adapters for ComfyUI and other programs that read kohya's keys
redif.json                                  timesteps, sigma / alpha, guidance and, if it is not the network's own, the
                                            size in pixels, that the student was trained for; arguments of a call of
                                            its pipeline that samples so
README.md                                   a model card whose code samples with torch and diffusers alone
sample.py                                   the sampler that the card's code imports, for a student of pixels
LICENSE, NOTICE and the other parts         copies of the teacher's parts that its pipeline takes, whose text encoders
                                            are loaded in float32 where no dtype is given; those that a LoRA file of the
                                            teacher changes are written with this change
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from redif_ray.diffusion.schedules import Schedule
from redif_ray.export.adapters import adapter_lines, loads_adapters, save_adapters
from redif_ray.export.card import CARD, card, licence
from redif_ray.export.carried import carried, copy, exported_index, is_elsewhere, load_as_float32, save_changed_parts
from redif_ray.export.pipeline import pipeline_recipe
from redif_ray.export.pixels import pixel_recipe
from redif_ray.export.recipe import Recipe, network_timesteps, timesteps
from redif_ray.files import atomic_folder
from redif_ray.models.folder import INDEX, SETTINGS
from redif_ray.models.pixel import PixelModel
from redif_ray.models.protocol import DiffusionModel, ModelError
from redif_ray.models.student import has_adapters, merged
from redif_ray.models.text import TextModel


def export_student(
    student: DiffusionModel,
    schedule: Schedule,
    folder: str | Path,
    *,
    name: str,
    guidance: float,
    teacher: Path | None,
    summary: dict[str, Any] | None,
    fine_tunes: Mapping[str, float] | None = MappingProxyType({}),
) -> None:
    """Write `student`, to be sampled with `schedule` and `guidance`, as the new folder `folder`, whole or not at all.

    teacher: folder whose licence and other parts are copied; None: nothing is copied. summary: a run's summary, for the
    numbers of the card; None: no numbers. fine_tunes: LoRA files that were merged into the teacher, with their weights,
    which the card loads beside the adapters; None: the student did not start as its teacher, and its adapters are not
    written alone. Raises FileExistsError if `folder` exists, and ModelError if diffusers could not make the same images
    or `carried` refuses a file.
    """
    folder = Path(folder)
    if folder.exists():
        raise FileExistsError(f"{folder} exists; choose another name or move it away")
    how = recipe(student, schedule, guidance)
    index, files = exported_index(student), [] if teacher is None else carried(student, teacher)
    network = merged(student).to("cpu").float()
    broken = [key for key, value in network.state_dict().items() if not bool(torch.isfinite(value).all())]
    if broken:
        raise ModelError(f"weight {broken[0]} is not finite ({len(broken)} in all); export an earlier checkpoint")
    network.register_to_config(_name_or_path=name)  # diffusers would write the teacher's path on this machine
    adapted = student if isinstance(student, TextModel) and has_adapters(student) and loads_adapters(student) else None
    adapted = None if fine_tunes is None else adapted
    lines = adapter_lines(adapted, how, fine_tunes or {}) if adapted else None
    text = card(student, schedule, how, name, guidance, licence(teacher), summary, lines)

    with atomic_folder(folder) as partial:
        network.save_pretrained(partial / student.component, safe_serialization=True)
        if adapted:
            save_adapters(adapted, partial)
        how.scheduler.save_pretrained(partial / "scheduler")
        _write_json(partial / INDEX, index | {"scheduler": ["diffusers", type(how.scheduler).__name__]})
        _write_json(partial / SETTINGS, _settings(student, schedule, how, name, guidance))
        (partial / CARD).write_text(text)
        save_changed_parts(student, partial)
        if how.sampler is not None:
            shutil.copyfile(how.sampler, partial / "sample.py")
        copy(files, partial)
        load_as_float32(student, partial)


def recipe(student: DiffusionModel, schedule: Schedule, guidance: float) -> Recipe:
    """Return the recipe for sampling `student`. Raises ModelError if diffusers could not make the same images."""
    if guidance != 1:
        student.check_guidance()
    if is_elsewhere(student):
        return _elsewhere(student, schedule)
    if isinstance(student, TextModel):
        return pipeline_recipe(student, schedule, guidance)
    assert isinstance(student, PixelModel)
    return pixel_recipe(student, schedule)


def _elsewhere(student: DiffusionModel, schedule: Schedule) -> Recipe:
    """Return the recipe of another package's family: that package and this one sample it, since it may predict and
    decode in its own way.
    """
    own = student.family.name if student.family else type(student).__module__
    file = ".py:" in own
    family = f', family="{own}"' if file else ""
    code = "\n".join(
        [
            "from pathlib import Path",
            "from redif_ray.sample import sample",
            f'sample(".", Path("sample.png"), count=4, seed=0{family})  # "." is the folder of this file',
        ]
    )
    what = f"the file {own.partition(':')[0]}" if file else f"the package of {own.partition(':')[0]}"
    needs = f"It needs redif-ray, and {what}, which knows this family of models."
    return Recipe(student.scheduler, schedule.levels.sigma.tolist(), code, needs)


def _settings(student: DiffusionModel, schedule: Schedule, how: Recipe, name: str, guidance: float) -> dict[str, Any]:
    other = network_timesteps(schedule)
    return {
        "format": 1,
        "name": name,
        "steps": schedule.steps,
        "schedule": schedule.name,
        "timesteps": timesteps(schedule),
        "sigmas": how.sigmas,
        "guidance": guidance,
        **({"pipeline_call": how.call} if how.call else {}),
        "clip_sample_range": student.clip,
        "gpu_dtype": how.gpu_dtype,
        **({} if other is None else {"network_timesteps": other}),
        **({} if student.size is None else {"height": student.size[0], "width": student.size[1]}),
    }


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")
