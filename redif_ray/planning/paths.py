"""Absolute paths for a configuration, since workers have other working directories than the driver."""

from __future__ import annotations

from pathlib import Path

from redif_ray.config import Config, Student
from redif_ray.data.schedule_file import found_schedule


def absolute(config: Config) -> Config:
    """Return `config` with absolute paths; a file that `student.schedule` names is read into `student.levels`."""
    tree = config.model_dump()
    tree["run"]["root"] = str(Path(config.run.root).resolve())
    if config.teacher.store:
        tree["teacher"]["store"] = str(Path(config.teacher.store).resolve())
    if (named := found_schedule(config.student)) is not None:
        tree["student"] |= {**named._asdict(), "schedule": Student().schedule}
    if config.teacher.family:
        tree["teacher"]["family"] = _absolute_code(config.teacher.family)
    learner = tree["learner"]
    for section, key in ((tree, "method"), (learner, "loss"), (learner, "advantage"), (learner["regulariser"], "kind")):
        section[key] = _absolute_code(section[key])
    source = config.conditions.source
    if source and Path(source).exists():
        tree["conditions"]["source"] = str(Path(source).resolve())
    for section, key in (("teacher", "model"), ("evaluation", "judge")):
        if Path(tree[section][key]).is_dir():
            tree[section][key] = str(Path(tree[section][key]).resolve())
    for term in tree["reward"]["terms"].values():
        for option, value in term["options"].items():
            if option == "callable":
                term["options"][option] = _absolute_code(value)
            elif isinstance(value, str) and value and Path(value).exists():
                term["options"][option] = str(Path(value).resolve())
    return Config.model_validate(tree)


def _absolute_code(target: str) -> str:
    """Return `path/to/file.py:name` with an absolute path, and `package.module:name` unchanged."""
    path, colon, name = target.rpartition(":")
    return f"{Path(path).resolve()}{colon}{name}" if path and Path(path).exists() else target
