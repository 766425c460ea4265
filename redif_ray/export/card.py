"""The model card of an exported student: licence, what it is, its numbers, code that samples it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from redif_ray.diffusion.schedules import Schedule
from redif_ray.export.carried import inside
from redif_ray.export.recipe import Recipe, network_timesteps, timesteps
from redif_ray.models.protocol import DiffusionModel, ModelError

CARD = "README.md"
LICENCE_KEYS = ("license", "license_name", "license_link")
TAGS = ["distillation", "few-step", "redif"]
COLUMNS = ("nfe", "frechet", "precision", "recall")


def licence(teacher: Path | None) -> dict[str, str]:
    """The licence keys in the front matter of the teacher's card.

    Raises ModelError where it is not valid YAML, or the card a link out of the folder.
    """
    path = teacher / CARD if teacher else None
    if teacher is None or path is None or not path.is_file():
        return {}
    opening, _, rest = inside(path, teacher).read_text().partition("---\n")
    matter, closing, _ = rest.partition("\n---")
    if opening or not closing:
        return {}
    try:
        found = yaml.safe_load(matter)
    except yaml.YAMLError as error:
        raise ModelError(f"{path}: its front matter is not valid YAML ({error}); mend it to keep the licence") from None
    return {key: found[key] for key in LICENCE_KEYS if key in found} if isinstance(found, dict) else {}


def card(
    student: DiffusionModel,
    schedule: Schedule,
    recipe: Recipe,
    name: str,
    guidance: float,
    rights: dict[str, str],
    summary: dict[str, Any] | None,
    adapters: str | None,
) -> str:
    """adapters: the lines that load them alone, where there are any."""
    matter = yaml.safe_dump(rights | {"library_name": "diffusers", "tags": TAGS}, sort_keys=False)
    calls = schedule.steps * student.calls_per_step(guidance)
    guided = "" if guidance == 1 else f" at guidance {guidance:g}"
    return f"""---
{matter}---

# {name}

A diffusion model that redif-ray distilled to {schedule.steps} steps{guided} ({calls} network calls an image), towards
the images that its teacher makes in many (ReDiF, arXiv 2512.22802). It keeps the teacher's architecture, noise process
and licence. It was made for the timesteps {timesteps(schedule)} only{_told(schedule)}. The pipelines of diffusers
choose their own, and some leave the noise unscaled, so use this code.
{_numbers(summary)}
## Sampling

{recipe.needs}

```python
{recipe.code}
```
{_alone(adapters)}"""


def _told(schedule: Schedule) -> str:
    other = network_timesteps(schedule)
    return "" if other is None else f", in whose place the network is told {other}"


def _alone(adapters: str | None) -> str:
    """How to take the adapters instead of the merged weights."""
    if adapters is None:
        return ""
    return f"""
The adapters alone, beside the teacher, `TEACHER` being its folder or hub id; these lines in place of the one that makes
`pipe`. They need `pip install peft` as well.

```python
{adapters}
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
    return "\n".join(
        [
            "",
            "## Numbers",
            "",
            f"{summary['held_out']} held-out noises, seed {summary['seed']}; Fréchet distance in the features of judge "
            f"{summary['judge']} (not FID); paired with the teacher's images of the same noises.",
            "",
            f"| | {' | '.join(head)} |",
            "|---" * (len(head) + 1) + "|",
            *rows,
            "",
        ]
    )
