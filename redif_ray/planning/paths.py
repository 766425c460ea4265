"""Paths of a configuration, for workers that have working directories of their own."""

from __future__ import annotations

from pathlib import Path

from redif_ray.config import Config, Student
from redif_ray.data.schedule_file import found_schedule


def absolute(config: Config) -> Config:
    """Make the paths of `config` absolute, and read the file that `student.schedule` may name into the levels."""
    tree = config.model_dump()
    tree["run"]["root"] = str(Path(config.run.root).resolve())
    if config.teacher.store:
        tree["teacher"]["store"] = str(Path(config.teacher.store).resolve())
    if (named := found_schedule(config.student)) is not None:
        tree["student"] |= {**named._asdict(), "schedule": Student().schedule}
    source = config.conditions.source
    if source and Path(source).exists():
        tree["conditions"]["source"] = str(Path(source).resolve())
    for section, key in (("teacher", "model"), ("evaluation", "judge")):
        if Path(tree[section][key]).is_dir():
            tree[section][key] = str(Path(tree[section][key]).resolve())
    for term in tree["reward"]["terms"].values():
        for option, value in term["options"].items():
            path, colon, function = value.rpartition(":") if option == "callable" else (value, "", "")
            if isinstance(path, str) and path and Path(path).exists():
                term["options"][option] = f"{Path(path).resolve()}{colon}{function}"
    return Config.model_validate(tree)
