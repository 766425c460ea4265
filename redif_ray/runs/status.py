"""`redif status` of a run, running or over. It only reads the run folder: it locks nothing and does not use Ray."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from redif_ray.checkpoint import MANIFEST
from redif_ray.config import Config
from redif_ray.evaluation.losses import losses
from redif_ray.planning.rounds import Phases
from redif_ray.runs.failed_start import failure_of_start
from redif_ray.runs.folder import UPLOADED, stored_config, stored_state
from redif_ray.runs.jsonl import read_rows
from redif_ray.runs.lock import holder
from redif_ray.runs.mlflow_page import mlflow_page
from redif_ray.runs.timeline import TRACE

RECENT = 20  # number of rounds that the speed is averaged over
END_SECONDS = 15.0  # of the export, the report and MLflow at the end of a run, as a rule
Lines = dict[str, str]  # label and text of each line of the table


def status(path: Path) -> tuple[str, Lines]:
    """Return the state (running, finished, failed or stopped) and the lines to print. Raises RunError without a run."""
    config, kept = stored_config(path), stored_state(path)
    word, text = life(path, kept)
    lines = {"state": text} | _progress(config, kept, read_rows(path / "metrics.jsonl"), word)
    if (checkpoint := _checkpoint(path / "checkpoints")) is not None:
        lines["checkpoint"] = checkpoint
    if (uploaded := _upload(path / UPLOADED)) is not None:
        lines["upload"] = uploaded
    lines["lost"] = losses(Counter(row["lost"] for row in read_rows(path / "lost.jsonl")))
    return word, lines | places(path, config, kept)


def life(path: Path, kept: Mapping[str, Any]) -> tuple[str, str]:
    """Return the state (running, finished, failed or stopped), and the same as a text with the reasons."""
    held = holder(path)
    if (path / "summary.json").exists():
        return "finished", f"finished; in use by {held[0]}" if held and held[1] else "finished"
    if held and held[1]:
        return "running", f"running, {held[0]}, for {duration(time.time() - held[0].since)}"
    if kept.get("failure"):
        anew = "it trained nothing, so the same command without --resume starts it anew"
        return "failed", f"failed: {kept['failure']}; {anew if failure_of_start(path) else 'continue with --resume'}"
    if (part := kept.get("part")) is not None:
        return "finished", f"finished with the {part} rounds that its sweep asked for; --resume goes on"
    gone = f": {held[0]} is gone" if held else ""
    return "stopped", f"stopped{gone}; continue with --resume"


def places(path: Path, config: Config, kept: Mapping[str, Any]) -> Lines:
    """Return the lines that say where the results are."""
    names = ("report.html", "report.md", "schedule.yaml", "student")
    lines = {"results": ", ".join(name for name in names if (path / name).exists()) or "none yet"}
    if (path / TRACE).exists():
        lines["timeline"] = TRACE
    lines["folder"] = str(path)
    if page := mlflow_page(config, kept):
        lines["MLflow"] = "\n".join(page)
    return lines


def _progress(config: Config, kept: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], word: str) -> Lines:
    plan = Phases(config)
    trained = [row for row in rows if row["round"] >= 0]
    done = trained[-1]["round"] + 1 if trained else 0
    if "calibration" not in kept:
        phase = "start-up and calibration"
    elif word == "finished":
        phase = "over"
    else:
        phase = f"training, {plan.phase(done).name}" if done < plan.rounds else "evaluation"
    lines = {"round": f"{done} of {plan.rounds}", "phase": phase}
    if trained:
        recent = trained[-RECENT:]
        seconds = sum(row["seconds/round"] for row in recent)
        groups = sum(row["seconds/round"] * row["groups_per_second"] for row in recent) / seconds
        lines["speed"] = f"{len(recent) / seconds:.3g} rounds/s, {groups:.3g} groups/s"
        if word == "running" and (left := _left(plan, kept, trained, done)):
            lines["left"] = left
    return lines | _validation(rows)


def _left(plan: Phases, kept: Mapping[str, Any], trained: Sequence[Mapping[str, Any]], done: int) -> str:
    """Return how long the run still takes, to its end; nothing where that cannot be told."""
    if done == plan.rounds:
        now = kept.get("progress", {})
        if now.get("left") is None or now["stage"] == "training":
            return ""
        left = max(0.0, now["left"] - (time.time() - now["time"]))
        return f"about {duration(left)}; {now['stage']} is {now['share']:.0%} done"
    left = _rounds_left(plan, trained, done)
    if (expected := kept.get("expected")) is None:  # a run of an earlier version
        return f"about {duration(left)} of training, then the evaluation"
    forecast = sum(expected["rounds"][row["phase"]] for row in trained[-RECENT:])
    pace = sum(row["seconds/round"] for row in trained[-RECENT:]) / forecast if forecast else 1.0
    after = pace * (expected["evaluation"] + END_SECONDS)
    return f"about {duration(left + after)}: {duration(left)} of training, {duration(after)} of evaluation and report"


def _rounds_left(plan: Phases, trained: Sequence[Mapping[str, Any]], done: int) -> float:
    """Return the seconds of the remaining rounds, at the pace of the last rounds of their phase, else of any phase."""
    paces = {}
    for phase in {plan.phase(r).name for r in range(done, plan.rounds)}:
        own = [row["seconds/round"] for row in trained if row["phase"] == phase] or [trained[-1]["seconds/round"]]
        paces[phase] = sum(own[-RECENT:]) / len(own[-RECENT:])
    return sum(paces[plan.phase(r).name] for r in range(done, plan.rounds))


def _validation(rows: Sequence[Mapping[str, Any]]) -> Lines:
    """Return the line of the last validation, beside the validation of the untrained student."""
    validated = [row for row in rows if "validation/reward" in row]
    if not validated:
        return {}
    start, last = validated[0], validated[-1]
    metrics = [
        f"{name} {last[key]:.4g} (start {start[key]:.4g})"
        for name, key in (("reward", "validation/reward"), ("recall", "validation/recall"))
    ]
    return {"validation": f"{', '.join(metrics)}, after round {last['round'] + 1}"}


def _checkpoint(folder: Path) -> str | None:
    """Return the name and age of the newest complete checkpoint. The run may prune checkpoints meanwhile."""
    for path in sorted(folder.glob("round-*"), reverse=True):
        try:
            return f"{path.name}, {duration(time.time() - (path / MANIFEST).stat().st_mtime)} ago"
        except FileNotFoundError:
            continue
    return None


def _upload(path: Path) -> str | None:
    """Return the last complete copy and the error since, or None where nothing was uploaded."""
    if not path.exists():
        return None
    upload = json.loads(path.read_text())
    age = duration(time.time() - upload["time"]) if "time" in upload else ""
    last = f"round {upload['round']}, {age} ago, at {upload['uri']}" if age else "nothing yet"
    return f"{last}; fails: {upload['error']}" if upload["error"] else last


def duration(seconds: float) -> str:
    """Return a duration as text in its largest fitting unit, such as "2.5 h"."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size * 1.5:
            return f"{seconds / size:.1f} {unit}"
    return f"{max(0.0, seconds):.0f} s"
