"""Stable Diffusion 1.5 at its real size, with random weights, on CPUs: a run, its resumption, its export.

    python -m benchmarks.real_size [short] [lora] [whole] [--out FOLDER]

The pipeline has the published architecture, 860 M parameters in the network, and is written in 16 bits; images have 64
x 64 pixels, so that two cores can do it. `redif distill` runs on Ray as a user would start it. Peak memory of each
process and the seconds by part stand beside what `redif doctor` and the estimate say before the start.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch
from rich.console import Console

from benchmarks.gpu.random_pipelines import SD15
from benchmarks.suite import Part, Suite
from benchmarks.watch import watching
from redif_ray.config import Config, load
from redif_ray.errors import UserError
from redif_ray.interrupt import StopRequest
from redif_ray.job.preflight import preflight
from redif_ray.planning.cost import Estimate, estimate
from redif_ray.planning.host_memory import main_memory_mb, process_mb
from redif_ray.planning.memory import footprints
from redif_ray.runs.jsonl import read_rows
from redif_ray.runs.timeline import SPANS

ROLES = {
    "RolloutActor": "rollout",
    "RewardActor": "reward",
    "TrainWorker": "learner",
    "export_deployed": "export",
}
HEAD = ["", "said before", "measured", "measured / said"]
LOOK_SECONDS = 2.0
STEPS = (
    "networks.precision=float32",
    "conditions.source=emoji",
    "teacher.steps=6",
    "teacher.guidance=1",
    "student.steps=2",
    "student.guidance=1",
    "reward.terms={mse: {normalise: std}}",
    "rollout={groups: 4, siblings: 4, unit_groups: 1, gpus: 0}",
    "reward.gpus=0",
    "reward.calibration=8",
    "warm_start={rounds: 2, groups: 8, lr: 1.0e-4, minibatch: 16}",
    "learner={rounds: 3, microbatch: 4, gpus: 0, activation_checkpointing: false}",
    "validation={every: 2, groups: 16}",
    "checkpoint={every: 1, keep: 1}",
    "evaluation={search: 8, batch: 8, judge: random-features}",
    "tracking.uri=off",
)


@dataclass
class Peaks:
    """The most memory that the processes of a run took, in MB of PSS: by role of the largest, and of all at once.

    Before there are workers the driver takes more for a moment, to time the network; that counts for nothing here.
    """

    driver: psutil.Process
    by_role: dict[str, float] = field(default_factory=dict)
    together: float = 0.0
    seen: dict[int, int] = field(default_factory=dict)  # most private bytes of each process, and of all, as 0

    def look(self) -> None:
        """Measure the memory of all processes where one of them, or all together, have more than ever before.

        The kernel keeps the private bytes, but has to walk through all pages to tell what is shared, which takes a
        second for 10 GB.
        """
        total = 0.0
        processes = [self.driver, *_children(self.driver)]
        if all(_role(process, self.driver) in ("driver", "other") for process in processes):
            return
        private = {process.pid: _private(process.pid) for process in processes}
        private[0] = sum(private.values())
        if all(size <= 1.01 * self.seen.get(pid, 0) for pid, size in private.items()):
            return
        self.seen |= {pid: max(size, self.seen.get(pid, 0)) for pid, size in private.items()}
        for process in processes:
            try:
                mb, role = _pss(process.pid), _role(process, self.driver)
            except (psutil.Error, OSError):
                continue
            total += mb
            self.by_role[role] = max(self.by_role.get(role, 0.0), mb)
        self.together = max(self.together, total)

    def measured(self) -> dict[str, float]:
        return {**self.by_role, "all processes": self.together}


def _pss(pid: int) -> float:
    """Return the memory of a process in MB, pages that it shares divided among those that share them."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) * 1024 / 1e6


def _private(pid: int) -> int:
    """Return the private bytes of a process, 0 for one that has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon:")), 0)


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.Error:
        return []


def _role(process: psutil.Process, driver: psutil.Process) -> str:
    """Return the role of a process, "driver" or "other"; this too for one that has ended."""
    try:
        return "driver" if process.pid == driver.pid else role_of(" ".join(process.cmdline()[:1]))
    except psutil.Error:
        return "other"


def role_of(title: str) -> str:
    """Return the role of a process of Ray, by the title that Ray gives it."""
    return next((role for name, role in ROLES.items() if name in title), "other")


def settings(root: Path, name: str, held_out: int) -> list[str]:
    """Write the pipeline to a folder in `root`; return what a run of it, called `name`, sets in the recipe."""
    small = replace(SD15, unet={**SD15.unet, "sample_size": 8}, vae={**SD15.vae, "sample_size": 64})
    teacher = small.write(root / "teacher", dtype=torch.float16)
    return [
        *STEPS,
        f"teacher.model={teacher}",
        f"run.root={root}",
        f"run.name={name}",
        f"evaluation.held_out={held_out}",
    ]


def real_size(
    root: Path, stop: StopRequest, console: Console, *, whole: bool = False, name: str = "lora", held_out: int = 200
) -> Part:
    """Run the recipe of Stable Diffusion 1.5; stop it after its first policy round, resume it, and export its student.

    whole: train all weights instead of adapters. name: of the part. held_out: noises of the evaluation.
    """
    given = settings(root, "real", held_out)
    if whole:
        given.append("student.lora={rank: 0}")
    config: Config = load("sd15_coco_5step", given)
    expected, found = estimate(config, preflight(config)), footprints(config)
    said = {role: process_mb(config, found, role) for role in ("driver", *found.roles, "export")}
    said["all processes"] = main_memory_mb(config, found)
    began = time.monotonic()
    peaks = _distilled(root, given, stop)
    wall = time.monotonic() - began
    console.print(f"the run took {wall:.0f} s; most memory in MB: {peaks.measured()}")
    student = root / "real" / "student"
    _run("export", str(root / "real"), str(root / "exported"), stop=stop)
    _run("sample", str(student), "--count", "2", "--out", str(root / "samples.png"), stop=stop)
    rows = memory(said, peaks.measured()) + seconds(root / "real", expected, wall)
    summary = json.loads((root / "real" / "summary.json").read_text())
    what = "all weights" if whole else "adapters of rank 4"
    return Part(
        name,
        f"Stable Diffusion 1.5 at 64 x 64 pixels, {what}, {held_out} held-out noises",
        HEAD,
        rows,
        {"wall_seconds": wall}
        | {f"{role.replace(' ', '_')}_said_mb": mb for role, mb in said.items()}
        | {f"{role.replace(' ', '_')}_peak_mb": mb for role, mb in peaks.measured().items()},
        [
            f"`sd15_coco_5step` with `{' '.join(STEPS)}`, {held_out} held-out noises. Memory is the largest PSS of a "
            f"process, looked at every {LOOK_SECONDS} s. The run was interrupted after its first policy round and "
            f"resumed; its student ended with `weights_sha256` {summary['weights_sha256'][:12]}, was exported, and "
            "sampled from."
        ],
    )


def _distilled(root: Path, given: Sequence[str], stop: StopRequest) -> Peaks:
    """Run `redif distill`, interrupt it after its first policy round, and resume it."""
    first = start("distill", "sd15_coco_5step", *given)
    peaks = Peaks(psutil.Process(first.pid))
    with watching(peaks.look, LOOK_SECONDS):
        while first.poll() is None:
            stop.check()
            if any(row["phase"] == "policy" for row in rounds_of(root / "real")):
                first.send_signal(signal.SIGTERM)
                first.wait(600)
            time.sleep(1)
    if first.returncode == 0:
        raise UserError("the run ended before it could be interrupted; give it more rounds")
    second = start("distill", "sd15_coco_5step", *given, "--resume")
    peaks.driver = psutil.Process(second.pid)
    with watching(peaks.look, LOOK_SECONDS):
        wait(second, stop)
    return peaks


def rounds_of(run: Path) -> list[dict[str, Any]]:
    """Return the rows of metrics that a run has written so far, none where it has not begun."""
    return read_rows(run / "metrics.jsonl") if (run / "metrics.jsonl").exists() else []


def start(*arguments: str, **environment: str) -> subprocess.Popen[bytes]:
    """Start `redif` as a user would, with more variables in its environment."""
    code = "from redif_ray.cli import main; main()"
    usual = {"PYTHONUNBUFFERED": "1", "RAY_worker_niceness": "0"}  # Ray would let workers give way to other processes
    return subprocess.Popen([sys.executable, "-c", code, *arguments], env={**os.environ, **usual, **environment})


def _run(*arguments: str, stop: StopRequest) -> None:
    wait(start(*arguments), stop)


def wait(process: subprocess.Popen[bytes], stop: StopRequest) -> None:
    """Wait until a `redif` has ended. Raises UserError where it failed."""
    while process.poll() is None:
        stop.check()
        time.sleep(0.5)
    if process.returncode:
        raise UserError(f"`redif` ended with {process.returncode}; see its output above")


def memory(said: Mapping[str, float], measured: Mapping[str, float]) -> list[list[str]]:
    """Return the rows of memory in MB. said, measured: by the name of a process, or of several."""
    return [
        [f"{name}, MB", f"{mb:,.0f}", f"{measured[name]:,.0f}", f"{measured[name] / mb:.2f}"]
        for name, mb in said.items()
    ]


def seconds(run: Path, expected: Estimate, wall: float) -> list[list[str]]:
    """Compare seconds by part, from the timeline and the metrics; a round's are those without its validation."""
    rows, spans = read_rows(run / "metrics.jsonl"), read_rows(run / SPANS)
    validated = {span["round"]: span["seconds"] for span in spans if span["row"] == "learner-0" and _validates(span)}
    parts = []
    for phase, title in (("warm_start", "warm start"), ("policy", "policy gradient")):
        own = [row for row in rows if row["phase"] == phase]
        took = sum(row["seconds/round"] - validated.get(row["round"] + 1, 0.0) for row in own)
        parts.append((title, expected.seconds[title] + expected.seconds[f"{title}, update"], took))
    parts.append(("validation", expected.seconds["validation"], sum(validated.values())))
    evaluated = [span for span in spans if span["stage"] == "evaluation" and span["start"] > _trained(spans)]
    ends = [span["start"] + span["seconds"] for span in evaluated]
    parts.append(("evaluation", expected.seconds["evaluation"], max(ends) - _trained(spans)))
    parts.append(("all", sum(expected.seconds.values()), wall))
    return [[f"{name}, s", f"{said:,.0f}", f"{took:,.0f}", f"{took / said:.2f}"] for name, said, took in parts]


def _validates(span: Mapping[str, Any]) -> bool:
    return bool(span["stage"] == "validation")


def _trained(spans: Sequence[Mapping[str, Any]]) -> float:
    """Return the time at which the last validation ended."""
    return float(max(span["start"] + span["seconds"] for span in spans if _validates(span)))


SUITE = Suite(
    "real_size",
    "A pipeline of real size on CPUs",
    {
        "short": partial(real_size, name="short", held_out=24),
        "lora": real_size,
        "whole": partial(real_size, name="whole", whole=True),
    },
)

if __name__ == "__main__":
    SUITE.main(__doc__)
