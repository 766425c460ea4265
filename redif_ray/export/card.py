"""The model card of an exported student: licence, description, measured numbers, and code that samples it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from redif_ray import yaml12
from redif_ray.diffusion.schedules import Schedule
from redif_ray.export.recipe import Recipe, network_timesteps, timesteps
from redif_ray.models.foreign import read_text
from redif_ray.models.protocol import DiffusionModel, ModelError

CARD = "README.md"
LICENCE_KEYS = ("license", "license_name", "license_link")
TAGS = ["distillation", "few-step", "redif"]
COLUMNS = ("nfe", "frechet", "precision", "recall")


def licence(teacher: Path | None) -> dict[str, Any]:
    """Return the licence keys in the front matter of the teacher's card; empty without a card or front matter.

    Raises ModelError if the front matter is not valid YAML, a key is no text, or the card is a link out of the folder.
    """
    path = teacher / CARD if teacher else None
    if teacher is None or path is None or not path.is_file():
        return {}
    opening, _, rest = read_text(path, teacher).partition("---\n")
    matter, closing, _ = rest.partition("\n---")
    if opening or not closing:
        return {}
    try:
        front = yaml12.load(matter)
    except yaml12.YamlError as error:
        raise ModelError(f"{path}: its front matter is not valid YAML ({error}); fix it to keep the licence") from None
    found = {key: front[key] for key in LICENCE_KEYS if key in front} if isinstance(front, dict) else {}
    for key, value in found.items():
        if not all(isinstance(each, str) for each in (value if isinstance(value, list) else [value])):
            raise ModelError(f"{path}: {key} in its front matter is no text; fix it to keep the licence")
    return found


def card(
    student: DiffusionModel,
    schedule: Schedule,
    recipe: Recipe,
    name: str,
    guidance: float,
    rights: dict[str, Any],
    summary: dict[str, Any] | None,
    adapters: str | None,
) -> str:
    """Return the text of the model card.

    rights: licence keys for the front matter. summary: a run's summary; None: the card has no table of numbers.
    adapters: Python that loads the adapters alone; None: the student has none.
    """
    matter = yaml.safe_dump(rights | {"library_name": "diffusers", "tags": TAGS}, sort_keys=False)
    calls = schedule.steps * student.calls_per_step(guidance)
    guided = "" if guidance == 1 else f" at guidance {guidance:g}"
    return f"""---
{matter}---

# {name}

A diffusion model that redif-ray distilled to {schedule.steps} steps{guided} ({calls} network calls an image). It
imitates the images that its teacher makes in many steps (ReDiF, arXiv 2512.22802), and keeps the teacher's
architecture, noise process and licence. It was made for the timesteps {timesteps(schedule)} only{_calls(schedule)}.
The pipelines of diffusers choose other timesteps by default, and some do not scale the noise, so use this code.
{_numbers(summary)}
## Sampling

{recipe.needs}

```python
{recipe.code}
```
{_alone(adapters)}"""


def _calls(schedule: Schedule) -> str:
    other = network_timesteps(schedule)
    return "" if other is None else f"; at these, the network is called with the timesteps {other}"


def _alone(adapters: str | None) -> str:
    """Return the section on loading the adapters instead of the merged weights; empty without adapters."""
    if adapters is None:
        return ""
    return f"""
To load the adapters into the teacher instead of the merged weights, replace the line that makes `pipe` by these lines.
`TEACHER` is the teacher's folder or hub id. They also need `pip install peft`.

```python
{adapters}
```
"""


def _numbers(summary: dict[str, Any] | None) -> str:
    """Return the section with the measured numbers of each arm of the summary; empty without one."""
    if summary is None:
        return ""
    head = [*COLUMNS, "paired mse"]
    arms = {
        arm: [*(row[c] for c in COLUMNS), row["paired"]["pixel_mse"]] for arm, row in summary["arms"].items() if row
    }
    rows = [f"| {arm} | {' | '.join(f'{value:.4g}' for value in values)} |" for arm, values in arms.items()]
    return "\n".join(
        [
            "",
            "## Numbers",
            "",
            f"{summary['held_out']} held-out noises, seed {summary['seed']}; Fréchet distance in the features of judge "
            f"{summary['judge']} (not FID); paired mse: against the teacher's images of the same noises.",
            "",
            f"| | {' | '.join(head)} |",
            "|---" * (len(head) + 1) + "|",
            *rows,
            "",
        ]
    )
