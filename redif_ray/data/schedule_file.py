"""`schedule.yaml`: the schedules that `redif search` found, one for each number of steps."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from redif_ray.config import ConfigError, Strict, Student, read_yaml, validate
from redif_ray.diffusion import schedules
from redif_ray.diffusion.schedules import Times


class Found(Strict):
    """A schedule that a search found. distance: the objective on held-out noises; None: not measured."""

    name: str
    timesteps: tuple[float, ...]
    half_log_snr: tuple[float | None, ...]  # None: pure noise
    distance: float | None = None
    network_timesteps: tuple[float, ...] | None = None  # for the network's calls; None: `timesteps`


class FoundFor(Strict):
    """The model that a schedule was found for: checksums of its weights and settings; (height, width) of its images."""

    weights: str
    settings: str
    size: tuple[int, int] | None


class ScheduleFile(Strict):
    """The schedules of a search. found_for: None in files of earlier versions."""

    format: Literal[1] = 1
    teacher: str
    found_for: FoundFor | None = None
    student: str | None
    solver: str
    guidance: float
    schedules: dict[int, Found]


def read_schedule(path: Path, steps: int) -> tuple[Times, ScheduleFile]:
    """Return the schedule of N = `steps` levels in the file `path`, and the whole file. Raises ConfigError."""
    if not path.is_file():
        possible = f"{', '.join(schedules.NAMES)}, or a file that `redif search` has written; there is no such file"
        raise ConfigError(f"schedule {str(path)!r} is unknown; expected one of {possible}")
    tree: Mapping[str, Any] = read_yaml(path)
    try:
        file: ScheduleFile = validate(tree, ScheduleFile)
    except ConfigError as error:
        raise ConfigError(f"{path} is not a file of `redif search`: {error}") from error
    if steps not in file.schedules:
        have = ", ".join(map(str, sorted(file.schedules)))
        raise ConfigError(f"{path} has schedules of {have} steps, none of {steps}; search with search.steps=[{steps}]")
    if file.solver != "euler":
        raise ConfigError(f"{path} was found for {file.solver}, students use euler; search with search.solver=euler")
    found = file.schedules[steps]
    for times in (found.timesteps, found.network_timesteps):
        if times is not None and len(times) != steps:
            raise ConfigError(f"{path}: its schedule of {steps} steps has {len(times)} timesteps; search again")
    return Times(found.timesteps, found.network_timesteps), file


def differences(file: ScheduleFile, now: FoundFor, guidance: float) -> list[str]:
    """Return the ways in which a sampler differs from the one that the file's schedules were found for, as texts.

    now, guidance: of the sampler.
    """
    if file.found_for is None:
        return ["an earlier version wrote the file, and it does not say for which model"]
    then, different = file.found_for, []
    if then.weights != now.weights:
        different.append(f"other weights, those of {file.teacher}")
    if then.settings != now.settings:
        different.append("another noise process, prediction or architecture")
    if then.size != now.size:
        sizes = ["the model's own size" if size is None else f"{size[0]}x{size[1]}" for size in (then.size, now.size)]
        different.append(f"images of {sizes[0]}, and here they have {sizes[1]}")
    if file.guidance != guidance:
        different.append(f"guidance {file.guidance:g}, and here it is {guidance:g}")
    return different


def found_schedule(student: Student) -> tuple[Times, ScheduleFile] | None:
    """Return the schedule in the file `student.schedule`, and the whole file; None for a named schedule.

    Raises ConfigError.
    """
    if student.schedule in schedules.NAMES:
        return None
    if student.levels is not None or student.tilt or student.bow:
        raise ConfigError(f"student.schedule={student.schedule}: a file holds the levels; leave out levels, tilt, bow")
    return read_schedule(Path(student.schedule), student.steps)
