"""The end of a search: measure finalists on held-out noises with a judge that no reward uses, and write the results.

The bank alone decides which schedules are the result; reported figures come from held-out noises, which choose nothing.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from shlex import quote
from typing import Any

import numpy as np
import ray

from redif_ray.config import dump
from redif_ray.data.schedule_file import Found, ScheduleFile
from redif_ray.diffusion import schedules, solvers
from redif_ray.diffusion.schedules import Times
from redif_ray.evaluation import plots
from redif_ray.evaluation.arm import evaluate_arm
from redif_ray.evaluation.bootstrap import captions_of, difference, interval
from redif_ray.evaluation.judge import Judge
from redif_ray.evaluation.page import write_page
from redif_ray.models.registry import teacher_folder
from redif_ray.models.sketch import found_for
from redif_ray.runs.jsonl import append_rows, read_rows
from redif_ray.runs.status import duration
from redif_ray.search.job import Job
from redif_ray.search.report import report, table
from redif_ray.types import Condition, Seen

MEASURED = "held_out.jsonl"


@dataclass(frozen=True, slots=True)
class Finalist:
    """A schedule to be measured.

    origin: start, tune or gradient; bank: distance on the bank, None for a start, which no engine chose.
    """

    steps: int
    name: str
    timesteps: tuple[float, ...]
    origin: str
    bank: float | None = None
    network_timesteps: tuple[float, ...] | None = None

    @property
    def times(self) -> Times:
        return Times(self.timesteps, self.network_timesteps)


def measure(job: Job, finalists: list[Finalist]) -> list[dict[str, Any]]:
    """Return a row for each finalist: its fields, its distance to the teacher with an interval, and its arm's metrics.

    Rows that `held_out.jsonl` already holds are not measured again.
    """
    path = job.folder.path / MEASURED
    rows = read_rows(path)
    known = {(row["steps"], row["name"]) for row in rows}
    missing = [f for f in finalists if (f.steps, f.name) not in known]
    if missing:
        job.console.print(
            f"{len(missing)} schedules are to be measured on {job.config.evaluation.held_out} held-out noises"
        )
        judge = Judge.of(job.get(job.evaluator.reference.remote()))
        teacher = job.get(job.evaluator.seen.remote(None))
    began = time.monotonic()
    for done, finalist in enumerate(missing, 1):
        row = asdict(finalist) | _measured(job, finalist, teacher, judge)
        rows.append(row)
        append_rows(path, [row])
        left = duration((time.monotonic() - began) / done * (len(missing) - done))
        line = (
            f"  {done:2d}/{len(missing)}  N={finalist.steps} {finalist.name}: {row['distance']:.5f}  about {left} left"
        )
        job.console.print(line, highlight=False, soft_wrap=True)
    order = {(f.steps, f.name): i for i, f in enumerate(finalists)}
    return sorted(
        (row for row in rows if (row["steps"], row["name"]) in order), key=lambda row: order[row["steps"], row["name"]]
    )


def _measured(job: Job, finalist: Finalist, teacher: Seen, judge: Judge) -> dict[str, Any]:
    evaluation, seed = job.config.evaluation, job.config.run.seed
    seen: Seen = job.get(job.evaluator.seen.remote(finalist.times))
    distance = -np.sum([w * seen.terms[name].astype(np.float64) for name, w in job.weights.items()], axis=0)
    calls = solvers.network_calls(job.config.search.solver, finalist.steps)
    nfe = calls * job.model.calls_per_step(job.config.student.guidance)
    arm = evaluate_arm(seen, judge, nfe=nfe, teacher=teacher, resamples=evaluation.bootstrap, seed=seed)
    captions = captions_of(seen.conditions)
    low, high = interval(_mean, [distance], resamples=evaluation.bootstrap, seed=seed, clusters=captions)
    return {"distance": _mean(distance), "distance_ci": [low, high], "distances": distance.tolist(), "arm": arm}


def _mean(values: np.ndarray) -> float:
    return float(values.mean(dtype=np.float64))


def compare(rows: list[dict[str, Any]], resamples: int, seed: int, conditions: Sequence[Condition]) -> None:
    """Give each searched row its change against the best named schedule of the same N, paired over noises.

    Noises that share a caption of `conditions` are resampled together.
    """
    captions = captions_of(conditions)
    for row in rows:
        named = [r for r in rows if r["steps"] == row["steps"] and r["name"] in schedules.NAMES]
        if row["name"] in schedules.NAMES:
            continue
        best = min(named, key=lambda r: r["distance"])
        own, other = np.array(row["distances"]), np.array(best["distances"])
        change = difference(_mean, [own], [other], resamples=resamples, seed=seed, clusters=captions)
        row["against"] = {"name": best["name"], "change": change[0], "low": change[1], "high": change[2]}


def write_results(job: Job, rows: list[dict[str, Any]]) -> None:
    """Write `schedule.yaml` and `report.md` with its pictures, then `summary.json`, which marks a finished job."""
    config, folder, process = job.config, job.folder.path, job.model.process
    conditions = job.get(job.evaluator.held_out_conditions.remote())
    compare(rows, config.evaluation.bootstrap, config.run.seed, conditions)
    winners = chosen(rows)
    entries = {
        n: Found(
            name=f"{row['name']}, {config.search.engine}",
            timesteps=row["timesteps"],
            distance=row["distance"],
            network_timesteps=row.get("network_timesteps"),
            half_log_snr=_finite(schedules.explicit(process, row["timesteps"]).levels.half_log_snr[:-1].tolist()),
        )
        for n, row in winners.items()
    }
    job.folder.write(
        "schedule.yaml",
        dump(
            ScheduleFile(
                teacher=config.teacher.model,
                found_for=found_for(teacher_folder(config.teacher), config.teacher.size, dict(config.teacher.lora)),
                student=config.search.student,
                solver=config.search.solver,
                guidance=config.student.guidance,
                schedules=entries,
            )
        ),
    )
    for n in winners:
        own = [row for row in rows if row["steps"] == n]
        drawn = [row for row in own if row["origin"] != "start"]
        drawn.append(min((row for row in own if row["origin"] == "start"), key=lambda row: row["distance"]))
        lines = [schedules.explicit(process, row["timesteps"], row["name"]) for row in drawn]
        plots.schedule(folder / f"schedule-{n}.png", lines[0], lines[1:])
    if len(winners) > 1:
        plots.front(folder / "front.png", rows)
    slim = [{key: value for key, value in row.items() if key != "distances"} for row in rows]
    summary = {
        "schema": 1,
        "name": config.run.name,
        "seed": config.run.seed,
        "held_out": config.evaluation.held_out,
        "bank": config.search.rungs[-1],
        "weights": job.weights,
        "seconds": job.records.seconds(),
        "workers": ray.get(job.evaluator.status.remote()),
        "schedules": slim,
    }
    (folder / "report.md").write_text(report(summary, config))
    page = write_page(folder)
    metrics = {f"final/{r['steps']}/{_plain(r['name'])}/distance": r["distance"] for r in rows}
    files = [folder / "schedule.yaml", page, folder / "report.md", *sorted(folder.glob("*.png"))]
    job.records.summary(metrics, files)
    job.folder.write("summary.json", json.dumps(summary, indent=1) + "\n")
    job.console.print(table(slim))
    words = [
        f"schedules    {folder / 'schedule.yaml'}",
        f"report       {page}",
        f"distil on it redif distill CONFIG {quote('student.schedule=' + str(folder / 'schedule.yaml'))}",
    ]
    job.console.print("\n".join(words), highlight=False, soft_wrap=True)


def _plain(name: str) -> str:
    """Replace characters that MLflow does not allow in names."""
    return re.sub(r"[^\w.-]+", "_", name)


def chosen(rows: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """Return, by N, the row with the least distance on the bank among the schedules that an engine chose."""
    winners: dict[int, dict[str, Any]] = {}
    for row in rows:
        if row["bank"] is not None and (row["steps"] not in winners or row["bank"] < winners[row["steps"]]["bank"]):
            winners[row["steps"]] = row
    return winners


def _finite(values: list[float]) -> tuple[float | None, ...]:
    return tuple(value if np.isfinite(value) else None for value in values)
