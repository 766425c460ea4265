"""The ways in which a run ends: the smoke recipe once for each thing that may stop it, as a table.

Each case is a run of `redif distill` in a process of its own, to which something happens while it loads, trains or
evaluates. What is left is looked for by a variable in the environment of all processes of the run. A run that did not
come to its end is resumed, and its last checkpoint compared with the weights of a plain loop in one process.

    python -m benchmarks.ends              all cases, some 60 s each on two idle cores
    python -m benchmarks.ends --list
    python -m benchmarks.ends NAME ...     these cases
    --out DIR: where runs are kept, a new folder below /tmp otherwise; --before COMMAND: words that go before `redif`

As root on Linux, a small /dev/shm and a disk that fills up are mounts that no other process sees.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import torch

from redif_ray.checkpoint import load_checkpoint
from redif_ray.config import load
from redif_ray.loop import PlainLoop
from redif_ray.runs.folder import latest_checkpoint
from redif_ray.runs.jsonl import read_rows

MARK = "REDIF_ENDS"  # variable by which the processes of one case are found
DEADLINE = 300.0
LEAVE_SECONDS = 20.0  # time for Ray's processes to follow a driver that was killed
ROOT = os.geteuid() == 0
OPTIONS = ("tracking.uri=off", "checkpoint.every=1", "validation.every=1")
DISK_MB = 160  # more than a run says that it may write


class Run:
    """One start of `redif distill smoke`."""

    def __init__(self, case: Case, folder: Path, before: list[str], *, resume: bool = False) -> None:
        self.folder, self.mark = folder, uuid.uuid4().hex
        self.output, self.errors = folder.parent / f"{folder.name}.out", folder.parent / f"{folder.name}.err"
        self.output.touch()
        command = [*before, sys.executable, "-m", "redif_ray.cli", "distill", "smoke", *OPTIONS]
        command += [f"run.root={folder.parent}", f"run.name={folder.name}", *case.options]
        environment = {**os.environ, MARK: self.mark, **({} if resume else case.variables)}
        shell = f"exec {shlex.join([*command, '--resume'])} > {self.output}.2"
        if not resume:
            shell = case.shell.format(redif=shlex.join(command), out=self.output)
        elif not (folder / "config.yaml").exists():
            shell = f"exec {shlex.join(command)} > {self.output}.2"
        with self.errors.open("ab") as errors:
            self.process = subprocess.Popen(
                ["bash", "-c", shell],
                env={k: v for k, v in environment.items() if v is not None},
                stdin=subprocess.DEVNULL,
                stderr=errors,
                start_new_session=True,
            )

    def processes(self) -> Iterator[psutil.Process]:
        """Yield the processes that have the mark, and those below them: a changed title may cover the environment."""
        found: dict[int, psutil.Process] = {}
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                if process.environ().get(MARK) == self.mark:
                    found |= {each.pid: each for each in (process, *process.children(recursive=True))}
        for process in found.values():
            with suppress(psutil.Error):
                if process.status() != psutil.STATUS_ZOMBIE:
                    yield process

    def driver(self) -> psutil.Process:
        """The process whose command line says `redif_ray.cli`; a shell or `head` may be beside it."""
        return next(p for p in self.processes() if p.cmdline()[1:3] == ["-m", "redif_ray.cli"])

    def named(self, part: str) -> psutil.Process:
        """The first process whose name or command line begins like `part`; waits for it."""
        deadline = time.monotonic() + DEADLINE
        while time.monotonic() < deadline:
            for process in self.processes():
                with suppress(psutil.Error):
                    if part in (process.name() + " " + process.cmdline()[0]):
                        return process
            time.sleep(0.05)
        raise TimeoutError(f"no process {part} in the run")

    def wait_for(self, point: str) -> None:
        deadline = time.monotonic() + DEADLINE
        while self.process.poll() is None and time.monotonic() < deadline:
            if POINTS[point](self):
                return
            time.sleep(0.05)

    def rounds(self) -> int:
        return len(read_rows(self.folder / "metrics.jsonl"))

    def end(self) -> int | None:
        """The exit code, or None where the run had to be killed at the deadline."""
        try:
            return self.process.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            return None

    def left(self) -> list[str]:
        """The names of processes that are there `LEAVE_SECONDS` after the end; they are killed."""
        deadline = time.monotonic() + LEAVE_SECONDS
        while (there := list(self.processes())) and time.monotonic() < deadline:
            time.sleep(0.2)
        names = []
        for process in there:
            with suppress(psutil.Error):
                names.append(process.name())
                process.kill()
        return names


POINTS: Mapping[str, Callable[[Run], bool]] = {
    "starting": lambda run: len(list(run.processes())) > 2,
    "loading": lambda run: any("ray::RewardActor" in p.name() for p in run.processes()),
    "training": lambda run: run.rounds() >= 2,
    "evaluating": lambda run: "evaluating on" in run.output.read_text(errors="replace"),
}


@dataclass(frozen=True)
class Case:
    """A way to stop a run: `act` is called at `point`, which is a name of `POINTS`.

    codes: exit codes that are right. lost: part that `lost.jsonl` must name. shell: command that starts the run.
    """

    point: str
    act: Callable[[Run], object] = lambda _: None
    codes: tuple[int, ...] = (0,)
    lost: str | None = None
    options: tuple[str, ...] = ()
    variables: Mapping[str, str | None] = field(default_factory=dict)
    shell: str = "exec {redif} > {out}"


def send(number: int, *, group: bool = False, times: int = 1) -> Callable[[Run], None]:
    """Send a signal to the driver or to its process group, a second apart."""

    def act(run: Run) -> None:
        for _ in range(times):
            with suppress(psutil.Error, ProcessLookupError, StopIteration):
                pid = run.driver().pid
                os.killpg(os.getpgid(pid), number) if group else os.kill(pid, number)
            time.sleep(1)

    return act


def each(number: int) -> Callable[[Run], None]:
    """Send a signal to every process of the run, as a batch system does that knows them all."""

    def act(run: Run) -> None:
        for process in run.processes():
            with suppress(psutil.Error):
                process.send_signal(number)

    return act


def kill(part: str) -> Callable[[Run], None]:
    return lambda run: run.named(part).kill()


def pause(part: str | None, seconds: float) -> Callable[[Run], None]:
    """Stop a process, the driver if `part` is None, and let it go on."""

    def act(run: Run) -> None:
        process = run.driver() if part is None else run.named(part)
        process.suspend()
        time.sleep(seconds)
        with suppress(psutil.Error):
            process.resume()

    return act


def fill(run: Run) -> None:
    """Fill the disk of the run folder to the last byte."""
    with (run.folder.parent / "filler").open("wb", buffering=0) as file, suppress(OSError):
        while file.write(bytes(4096)):
            pass


def long_folder() -> str:
    path = Path(tempfile.mkdtemp()) / ("x" * 100)
    path.mkdir()
    return str(path)


def cases() -> dict[str, Case]:
    found = {
        "nothing": Case("training"),
        "Ctrl-C": Case("training", send(signal.SIGINT), (130,)),
        "SIGTERM": Case("training", send(signal.SIGTERM), (143,)),
        "SIGHUP": Case("training", send(signal.SIGHUP), (129,)),
        "SIGHUP below nohup": Case("training", send(signal.SIGHUP), shell="trap '' HUP; exec {redif} > {out}"),
        "SIGTERM to the group": Case("training", send(signal.SIGTERM, group=True), (143,)),
        "Ctrl-C in a terminal": Case("training", send(signal.SIGINT, group=True), (130,)),
        "Ctrl-C twice": Case("training", send(signal.SIGINT, group=True, times=2), (130,)),
        "SIGTERM to every process": Case("training", each(signal.SIGTERM), (143,)),
        "SIGTERM as Ray starts": Case("starting", send(signal.SIGTERM), (143,)),
        "Ctrl-C twice as it loads": Case("loading", send(signal.SIGINT, group=True, times=2), (130,)),
        "SIGTERM as it loads": Case("loading", send(signal.SIGTERM, group=True), (143,)),
        "SIGTERM as it evaluates": Case("evaluating", send(signal.SIGTERM), (143,)),
        "| head -1": Case("training", shell="set -o pipefail; {redif} | tee {out} -p | head -1"),
        "|& head -1": Case("training", shell="set -o pipefail; {redif} 2>&1 | head -1 > {out}"),
        "> /dev/full": Case("training", shell="touch {out}; exec {redif} > /dev/full 2>&1"),
        "stdin, stdout, stderr closed": Case("training", shell="touch {out}; exec {redif} <&- >&- 2>&-"),
        "SIGSTOP of the driver, 10 s": Case("training", pause(None, 10)),
        "SIGSTOP of a reward worker": Case(
            "training", pause("ray::RewardActor", 30), lost="reward", options=("pipeline.timeout_s=10",)
        ),
        "long TMPDIR": Case("training", variables={"TMPDIR": long_folder()}),
        "RAY_TMPDIR": Case("training", variables={"RAY_TMPDIR": tempfile.mkdtemp()}),
        "no HOME": Case("training", variables={"HOME": "/nonexistent/home"}),
        "HOME is unset": Case("training", variables={"HOME": None}),
        "RAY_AUTH_MODE=disabled": Case("training", variables={"RAY_AUTH_MODE": "disabled"}),
        "ulimit -n 256": Case("training", shell="ulimit -n 256; exec {redif} > {out}"),
    }
    for point in ("loading", "training"):
        for part, name in ACTORS.items():
            if point == "training" or name not in ("learner",):
                found[f"SIGKILL of {part}, {point}"] = Case(point, kill(part), lost=name)
    for part in ("raylet", "gcs_server"):
        found[f"SIGKILL of {part}"] = Case("training", kill(part), (3,))
    found["SIGKILL of the dashboard"] = Case("training", lambda run: _command(run, "dashboard.py").kill())
    found["SIGKILL of Ray's agent"] = Case("training", kill("ray::DashboardAgent"), (0, 3))
    found["SIGKILL of the driver"] = Case("training", send(signal.SIGKILL), (-9,))
    found["SIGKILL of the driver, loading"] = Case("loading", send(signal.SIGKILL), (-9,))
    if ROOT:
        small = "mount -t tmpfs -o size=64m tmpfs /dev/shm; exec {redif} > {out}"
        found["/dev/shm of 64 MB"] = Case("training", shell=f"unshare -m bash -c {shlex.quote(small)}")
        for point in ("loading", "training", "evaluating"):
            found[f"disk full, {point}"] = Case(point, fill, (2,))
    return found


ACTORS = {
    "ray::RolloutActor": "rollout",
    "ray::RewardActor": "reward",
    "ray::Coordinator": "coordinator",
    "ray::WeightStore": "weight store",
    "ray::MetricsWriter": "metrics writer",
    "ray::TrainController": "learner",
    "ray::RayTrainWorker": "learner",
}


def _command(run: Run, part: str) -> psutil.Process:
    return next(p for p in run.processes() if any(part in word for word in p.cmdline()))


def weights(folder: Path) -> str | None:
    """The checksum of the weights of the newest checkpoint."""
    newest = latest_checkpoint(folder / "checkpoints")
    return None if newest is None else str(load_checkpoint(newest)[1]["weights_sha256"])


def plain_weights() -> str:
    """The checksum of the weights that a run ends with to which nothing happens, made without Ray."""
    torch.set_num_threads(1)
    loop = PlainLoop(load("smoke", list(OPTIONS)))
    for round in range(loop.plan.rounds):
        loop.round(round)
    return loop.checksum()


def tried(name: str, case: Case, root: Path, before: list[str], expected: str) -> tuple[dict[str, str], bool]:
    """Return the row of a case, and whether all of it is right."""
    where = root / f"{len(list(root.iterdir())):02d}"
    where.mkdir()
    disk = name.startswith("disk full")
    if disk:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs", where], check=True)
    run = Run(case, where / "run", before)
    began = time.monotonic()
    run.wait_for(case.point)
    case.act(run)
    acted = time.monotonic()
    code = run.end()
    seconds = time.monotonic() - acted
    left = run.left()
    words = [line for line in run.errors.read_text(errors="replace").splitlines() if line.strip()]
    said = [line for line in run.output.read_text(errors="replace").splitlines() if line.strip()]
    lost = sorted({row["lost"] for row in read_rows(run.folder / "lost.jsonl")})
    resumed = "-"
    (where / "filler").unlink(missing_ok=True)
    if not (run.folder / "summary.json").exists():
        again = Run(case, where / "run", [], resume=True)
        resumed = str(again.end())
        again.left()
    same = weights(run.folder) == expected
    row = {
        "case": name,
        "exit code": str(code),
        "seconds": f"{seconds:.0f}",
        "last words": next((line for line in reversed(words)), said[-1] if said and code else "")[:160],
        "lines on stderr": str(len(words)),
        "lost": ", ".join(lost),
        "left": ", ".join(left) or "nothing",
        "resumed": resumed,
        "same weights": "yes" if same else "NO",
    }
    right = code in case.codes and not left and same and (case.lost is None or case.lost in lost)
    right = right and resumed in ("-", "0") and not any("Traceback" in line for line in words)
    print(json.dumps({**row, "right": right, "all": round(time.monotonic() - began)}), flush=True)
    return row, right


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--before", default="")
    asked = parser.parse_args()
    if asked.list:
        print(*cases(), sep="\n")
        return
    if ROOT and MARK not in os.environ:
        os.environ[MARK] = "here"
        os.execvp("unshare", ["unshare", "--mount", sys.executable, "-m", "benchmarks.ends", *sys.argv[1:]])
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # which nohup would have the runs ignore
    root = asked.out or Path(tempfile.mkdtemp(prefix="redif-ends-"))
    root.mkdir(parents=True, exist_ok=True)
    expected, wrong = plain_weights(), 0
    rows: list[dict[str, str]] = []
    for name, case in cases().items():
        if not asked.names or name in asked.names:
            row, right = tried(name, case, root, shlex.split(asked.before), expected)
            rows.append(row)
            wrong += not right
    print("\n| " + " | ".join(rows[0]) + " |\n|" + "---|" * len(rows[0]))
    for row in rows:
        print("| " + " | ".join(value.replace("|", "\\|") for value in row.values()) + " |")
    sys.exit(min(wrong, 1))


if __name__ == "__main__":
    main()
