"""Measure a round without work, and the memory of a long run: hundreds of tiny rounds, memory read all along."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import ray
from ray.util.state import list_actors
from rich.console import Console

from benchmarks.pipeline.cores import WORK
from benchmarks.short_runs import median_work, periods, recipe
from benchmarks.suite import Part
from benchmarks.watch import watching
from redif_ray.interrupt import StopRequest
from redif_ray.job.distill import run_part
from redif_ray.runs.jsonl import read_rows

LOOK_SECONDS = 1.0
SETTLED = 0.3  # of the rounds, after which caches are full
KINDS = WORK | {"Coordinator": "coordinator", "WeightStore": "weight store", "MetricsWriter": "metrics writer"}
TINY = ("rollout.groups=1", "rollout.siblings=4", "rollout.unit_groups=1", "learner.anchor.weight=0")
WORKED = ("rollout", "score", "update")  # nothing hides them; the teacher's images were made before
HEAD = ["process", "MB at the start", "MB at the end", "MB a 100 rounds"]


def soak(root: Path, stop: StopRequest, console: Console, *, rounds: int = 600) -> Part:
    config = recipe(
        root,
        "soak",
        *TINY,
        f"learner.rounds={rounds}",
        f"validation.every={rounds}",
        "checkpoint.every=100",
        base="smoke",
    )
    memory = _Memory(root / "soak" / "metrics.jsonl")
    with watching(memory.look, LOOK_SECONDS):
        folder = run_part(config, stop, until=rounds, resume=False, console=console)
    rows, numbers = [], {}
    for kind in KINDS.values():
        at, used = (np.array(values) for values in memory.seen[kind])
        late = at >= SETTLED * rounds
        slope = float(np.polyfit(at[late], used[late], 1)[0] * 100) if late.sum() > 2 else float("nan")
        rows.append([kind, f"{used[late][0]:.1f}", f"{used[-1]:.1f}", f"{slope:+.2f}"])
        numbers[f"slope_{kind.replace(' ', '_')}"] = slope
    took, busy = 1e3 * float(np.median(periods(folder))), 1e3 * median_work(folder, *WORKED)
    numbers |= {"round_ms": took, "work_ms": busy, "empty_ms": took - busy}
    return Part(
        "soak",
        f"{rounds} tiny rounds",
        HEAD,
        rows,
        numbers,
        [
            f"Memory of its own (unique set size) of each process, from round {SETTLED * rounds:.0f} on, once a "
            f"second. A round of one group of four took {took:.0f} ms, of which {busy:.0f} ms are rollout, score and "
            f"update one after the other (medians); the other {took - busy:.0f} ms are what a round costs without "
            "work: messages, object store, publishing and fetching of weights, the log."
        ],
    )


class _Memory:
    """The memory of a run's processes; `seen`: by kind, rounds done and MB each time it was looked at."""

    def __init__(self, metrics: Path) -> None:
        self.metrics = metrics
        self.seen: dict[str, tuple[list[int], list[float]]] = {kind: ([], []) for kind in KINDS.values()}
        self.found: dict[str, psutil.Process] = {}

    def look(self) -> None:
        done = len(read_rows(self.metrics)) - 1
        if done < 1:
            return
        if not self.found:
            here = ray.get_runtime_context().gcs_address  # there may be another Ray on this machine
            actors = list_actors(address=here, filters=[("state", "=", "ALIVE")])
            self.found = {KINDS[a.class_name]: psutil.Process(a.pid) for a in actors if a.class_name in KINDS}
        with suppress(psutil.NoSuchProcess):  # the run is over
            for kind, process in self.found.items():
                if (used := process.memory_full_info().uss / 1e6) > 0:  # 0: it is ending
                    self.seen[kind][0].append(done)
                    self.seen[kind][1].append(used)
