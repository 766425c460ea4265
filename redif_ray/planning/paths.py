"""Fix what a configuration takes from the driver's working directory and environment, since workers have others."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from urllib.parse import urlsplit

from redif_ray.config import Config, ConfigError, Student, validate
from redif_ray.config.base import at_home
from redif_ray.config.uris import Uri, revealed
from redif_ray.data.schedule_file import ScheduleFile, differences, found_schedule
from redif_ray.diffusion.schedules import Times
from redif_ray.models.locate import single_file
from redif_ray.models.registry import pinned, pinned_base, teacher_folder
from redif_ray.models.sketch import found_for
from redif_ray.models.start import init_settings
from redif_ray.rewards.base import TERMS, RewardError
from redif_ray.rewards.pretrained import pinned as pinned_encoder

log = logging.getLogger(__name__)
NO_PATHS = ("off", "databricks", "databricks-uc", "uc")  # values of tracking.uri that are no paths
INIT = "init"  # the value of student.schedule that stands for the levels of student.init


def absolute(config: Config) -> Config:
    """Return `config` with absolute paths, and with what it takes from MLflow's variables of the environment.

    A file that `student.schedule` names is read into `student.levels`; a hub id of a model, also of an encoder of a
    reward, a judge or a search, gets the commit that it means now, which all workers then read. Raises ConfigError for
    what cannot be read, for a URI whose secrets or whose variable of the environment are not there, and ModelError for
    a teacher that the hub does not have; what builds an encoder tells the same of that.
    """
    tree = config.model_dump()
    revealed(tree, "")
    tree["run"]["root"] = str(Path(config.run.root).resolve())
    if config.teacher.store:
        tree["teacher"]["store"] = str(Path(config.teacher.store).resolve())
    if (named := _times(config)) is not None:
        tree["student"] |= {**named._asdict(), "schedule": Student().schedule}
    tree["teacher"]["lora"] = {str(Path(path).resolve()): weight for path, weight in config.teacher.lora.items()}
    if config.teacher.family:
        tree["teacher"]["family"] = _absolute_code(config.teacher.family)
    learner = tree["learner"]
    for section, key in ((tree, "method"), (learner, "loss"), (learner, "advantage"), (learner["regulariser"], "kind")):
        section[key] = _absolute_code(section[key])
    source = config.conditions.source
    if source and Path(source).exists():
        tree["conditions"]["source"] = str(Path(source).resolve())
    tree["teacher"]["base"] = pinned_base(config.teacher)
    for section, key in (("teacher", "model"), ("student", "init")):
        if model := tree[section][key]:
            here = Path(model).is_dir() or single_file(model) is not None
            tree[section][key] = str(Path(model).resolve()) if here else pinned(model)
    encoders = _Encoders()
    evaluation = tree["evaluation"]
    for place, key in (
        (evaluation, "judge"),
        (tree["search"]["frechet"], "encoder"),
        (evaluation["diversity"], "encoder"),
    ):
        if place[key] is not None:
            place[key] = encoders.found(place[key])
    for label, term in tree["reward"]["terms"].items():
        for option, value in term["options"].items():
            if option == "callable":
                term["options"][option] = _absolute_code(at_home(value))
            elif isinstance(value, str) and value and os.path.exists(home := at_home(value)):  # noqa: PTH110  # any text
                term["options"][option] = str(Path(home).resolve())
        for option in ("model", "base"):
            model = term["options"].get(option, getattr(TERMS.get(label), option, None))
            if isinstance(model, str) and "/" in model:
                term["options"][option] = encoders.found(model)
    if (uri := config.tracking.uri or from_environment()) is not None:
        tree["tracking"]["uri"] = _absolute_store(uri)
    tree["tracking"]["experiment"] = config.tracking.experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME") or "redif"
    made: Config = validate(tree)
    return made


def found_encoder(source: str) -> str:
    """Return the folder or file of an encoder as an absolute path, and a hub id with the commit that it means now.

    The name of a shipped encoder, and an encoder that is not to be had, are returned unchanged.
    """
    return _Encoders().found(source)


class _Encoders:
    """The encoders of a configuration; the hub is asked for no other one once it did not have, or answer for, one."""

    def __init__(self) -> None:
        self.asks = True

    def found(self, source: str) -> str:
        if Path(source).exists():
            return str(Path(source).resolve())
        if "/" not in source or not self.asks:
            return source
        try:
            return pinned_encoder(source)
        except RewardError:
            self.asks = False
            return source


def from_environment() -> Uri | None:
    """Return the URI of the MLflow store that MLflow's own variable names, or None where it is not set."""
    uri = os.environ.get("MLFLOW_TRACKING_URI", "").strip()
    return Uri(uri) if uri else None


def _absolute_store(uri: Uri) -> Uri:
    """Return the URI of an MLflow store, that of an SQLite file or a folder with an absolute path."""
    if uri.startswith("sqlite:///") and uri[10:11] not in ("/", ":") and not uri.startswith("sqlite:///file:"):
        path, mark, query = uri.reveal("tracking.uri").removeprefix("sqlite:///").partition("?")
        return Uri(f"sqlite:///{Path(path).resolve()}{mark}{query}")
    if uri not in NO_PATHS and not uri.startswith("env:") and not urlsplit(uri).scheme:
        return Uri(str(Path(uri).resolve()))
    return uri


def _times(config: Config) -> Times | None:
    """Return the levels that `student.schedule` takes from `student.init` or from a file; None for a named schedule."""
    if config.student.schedule == INIT:
        return _init_times(config)
    if (found := found_schedule(config.student)) is None:
        return None
    times, file = found
    warn_of_another_sampler(f"student.schedule={config.student.schedule}", file, config)
    return times


def warn_of_another_sampler(where: str, file: ScheduleFile, config: Config) -> None:
    """Log a warning where a file's schedules were found for another sampler than `config` has. where: of the file."""
    teacher = config.teacher
    now = found_for(teacher_folder(teacher), teacher.size, dict(teacher.lora))
    warn_of_differences(where, differences(file, now, config.student.guidance))


def warn_of_differences(where: str, different: list[str]) -> None:
    """Log a warning of what `differences` found. where: of the file of schedules."""
    if different:
        log.warning(
            "%s: the schedule was found for something else: %s. It is used as it is and may be worse than a named one; "
            "search again with this configuration",
            where,
            "; ".join(different),
        )


def _init_times(config: Config) -> Times:
    """Return the levels for which `student.init` was trained. Raises ConfigError where it does not say them."""
    student = config.student
    if student.init is None or student.levels is not None or student.tilt or student.bow:
        raise ConfigError("student.schedule=init: expected student.init, without student.levels, tilt and bow")
    own = init_settings(student.init, config.teacher)
    if own is None:
        raise ConfigError(
            f"student.schedule=init: {student.init} was not exported by redif-ray and does not say its levels; give "
            "them by student.levels, or a named schedule"
        )
    if own["steps"] != student.steps:
        raise ConfigError(
            f"student.schedule=init: {student.init} has {own['steps']} steps, student.steps={student.steps}; set "
            "them alike, or another schedule"
        )
    return Times(tuple(own["timesteps"]), tuple(own["network_timesteps"]) if "network_timesteps" in own else None)


def _absolute_code(target: str) -> str:
    """Return `path/to/file.py:name` with an absolute path, and `package.module:name` unchanged."""
    path, colon, name = target.rpartition(":")
    return f"{Path(path).resolve()}{colon}{name}" if path and Path(path).exists() else target
