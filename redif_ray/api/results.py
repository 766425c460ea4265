"""The results of the API's functions, read from the folders that they leave."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from redif_ray.api.table import Table
from redif_ray.config import Config

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, slots=True, repr=False)
class DistilledRun:
    """A finished run.

    folder: the run folder. config: the configuration of the run, all of it. summary: the content of `summary.json`.
    arms: how the student and its control arms measure on held-out noises, a row each.
    rounds: the metrics of each round.
    """

    folder: Path
    config: Config
    summary: Mapping[str, Any]
    arms: Table
    rounds: Table

    def __repr__(self) -> str:
        return f"DistilledRun in {self.folder}\n{self.arms!r}"

    @classmethod
    def read(cls, folder: str | Path) -> DistilledRun:
        """Read a finished run from its folder. Raises RunError where there is none."""
        from redif_ray.runs.folder import stored_config
        from redif_ray.runs.jsonl import read_rows

        path = Path(folder).resolve()
        config, summary = stored_config(path), _summary(path)
        return cls(path, config, summary, _arms(summary), Table(tuple(read_rows(path / "metrics.jsonl"))))

    @property
    def student(self) -> Path:
        """The exported student, a folder that diffusers reads."""
        return self.folder / "student"

    @property
    def report(self) -> Path:
        """The report of the run, a page with its pictures for a browser; `report.md` beside it is the same text."""
        return self.folder / "report.html"

    @property
    def picture(self) -> Image:
        """The images of teacher and students from the same noises, side by side."""
        return _picture(self.folder / "samples.png")


@dataclass(frozen=True, slots=True, repr=False)
class Evaluation:
    """Another measurement of a run.

    file: the JSON file that holds it. result: its content. arms: a row for each arm.
    """

    file: Path
    result: Mapping[str, Any]
    arms: Table

    def __repr__(self) -> str:
        return f"Evaluation in {self.file}\n{self.arms!r}"

    @classmethod
    def read(cls, file: Path) -> Evaluation:
        """Read the JSON file of an evaluation."""
        result = json.loads(file.read_text())
        return cls(file, result, _arms(result))


@dataclass(frozen=True, slots=True, repr=False)
class FoundSchedules:
    """The result of a search for step schedules.

    folder: the search's folder. file: `schedule.yaml`, for `student.schedule` and `sample_images(schedule=)`.
    schedules: all that were measured on held-out noises, a row each.
    """

    folder: Path
    file: Path
    schedules: Table

    def __repr__(self) -> str:
        return f"FoundSchedules in {self.folder}\n{self.schedules!r}"

    @classmethod
    def read(cls, folder: Path) -> FoundSchedules:
        """Read a finished search from its folder. Raises RunError where there is none."""
        return cls(folder, folder / "schedule.yaml", Table(tuple(_summary(folder)["schedules"])))


@dataclass(frozen=True, slots=True, repr=False)
class SweepResult:
    """The result of a sweep.

    folder: the sweep's folder. best: a recipe with the best settings, for `distill`. trials: the runs, best first.
    held_out: how recipe and best settings measure with other seeds, a row for each run.
    """

    folder: Path
    best: Path
    trials: Table
    held_out: Table

    def __repr__(self) -> str:
        return f"SweepResult in {self.folder}\n{self.trials!r}"

    @classmethod
    def read(cls, folder: Path) -> SweepResult:
        """Read a finished sweep from its folder. Raises RunError where there is none."""
        found = _summary(folder)
        trials = ({"run": t["run"], **t["settings"], found["metric"]: t["scores"][-1]} for t in found["trials"])
        held_out = ({"settings": kind, **row} for kind, rows in found["held_out"].items() for row in rows)
        return cls(folder, folder / "best.yaml", Table(tuple(trials)), Table(tuple(held_out)))


def _summary(folder: Path) -> dict[str, Any]:
    try:
        summary: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    except FileNotFoundError:
        from redif_ray.runs.folder import RunError

        raise RunError(f"{folder} is not finished: it has no summary.json; continue it with resume=True") from None
    return summary


def _arms(result: Mapping[str, Any]) -> Table:
    from redif_ray.evaluation.report import ARMS

    measured = {name: _flat(arm) for name, arm in result["arms"].items() if arm is not None}
    told = {column for arm in measured.values() for column, value in arm.items() if value is not None}
    return Table(
        tuple(
            {"arm": name, "what": ARMS[name]} | {column: value for column, value in arm.items() if column in told}
            for name, arm in measured.items()
        )
    )


def _flat(arm: Mapping[str, Any]) -> dict[str, Any]:
    """Return an arm's figures with the paired ones beside the others, as `paired_<name>` and `reward_<term>`."""
    from redif_ray.evaluation.summary import AGREEMENT

    paired = {f"{'paired' if name in AGREEMENT else 'reward'}_{name}": v for name, v in arm["paired"].items()}
    return {name: value for name, value in arm.items() if name != "paired"} | paired


def _picture(path: Path) -> Image:
    from PIL import Image

    with Image.open(path) as picture:
        return picture.copy()
