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


class ScheduleFile(Strict):
    format: Literal[1] = 1
    teacher: str
    student: str | None
    solver: str
    guidance: float
    schedules: dict[int, Found]


def read_times(path: Path, steps: int) -> Times:
    """Return the schedule of N = `steps` levels in the file `path`. Raises ConfigError."""
    if not path.is_file():
        possible = f"{', '.join(schedules.NAMES)}, or a file that `redif search` has written"
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
    return Times(found.timesteps, found.network_timesteps)


def found_schedule(student: Student) -> Times | None:
    """Return the schedule in the file `student.schedule`; None if that is a named schedule. Raises ConfigError."""
    if student.schedule in schedules.NAMES:
        return None
    if student.levels is not None or student.tilt or student.bow:
        raise ConfigError(f"student.schedule={student.schedule}: a file holds the levels; leave out levels, tilt, bow")
    return read_times(Path(student.schedule), student.steps)
