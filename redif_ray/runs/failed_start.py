"""Folders of runs, searches and sweeps that failed before they had made anything: a new start may replace them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from redif_ray.data.conditions import CONDITIONS
from redif_ray.errors import UserError
from redif_ray.files import PARTIAL
from redif_ray.runs.jsonl import read_rows
from redif_ray.runs.lock import LOCK

STATE, TOKEN = "run.json", ".seen-"
LEFT = {  # names of what each start leaves, whatever it came to
    *("config.yaml", STATE, CONDITIONS, LOCK, "lost.jsonl", "timeline.jsonl", "timeline.json", ".train", ".tune")
}
JOURNALS = {"trials.jsonl", "repeats.jsonl"}  # of searches and sweeps
FIRST = "round-000000"  # the checkpoint of a run that was stopped before its first round


def failure_of_start(path: Path) -> str | None:
    """Return the error that ended a run, search or sweep in `path` before it trained or measured anything, or None.

    A folder that holds a file of another kind is none of them.
    """
    try:
        state = json.loads((path / STATE).read_text())
        failure: str | None = state.get("failure")
        made = bool(state.get("descents")) or not all(_nothing(entry) for entry in path.iterdir())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, UserError):  # no run, or one that cannot be read
        return None
    return None if made else failure


def remove_start(path: Path) -> None:
    """Remove what a failed start left in `path`, whose lock the caller holds."""
    for entry in path.iterdir():
        if entry.name == LOCK:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _nothing(entry: Path) -> bool:
    """Tell whether an entry of a folder holds no result."""
    name = entry.name
    if name in LEFT or name.startswith(TOKEN) or entry.suffix == PARTIAL:
        return True
    if name == "metrics.jsonl":
        return all(row["round"] < 0 for row in read_rows(entry))
    if name in JOURNALS:
        return all(row["error"] is not None for row in read_rows(entry))
    if name == "upload.json":
        return "time" not in json.loads(entry.read_text())  # no copy was completed
    if name == "checkpoints":
        return all(one.name == FIRST or one.suffix == PARTIAL for one in entry.iterdir())
    if name == "trials":
        return all(one.suffix == ".log" or failure_of_start(one) is not None for one in entry.iterdir())
    return False
