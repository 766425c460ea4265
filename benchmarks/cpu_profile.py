"""Measure where the CPU time of rollout, reward and update goes, at the size of Stable Diffusion 1.5.

    python -m benchmarks.cpu_profile [processes] [profile] [--out FOLDER]

The recipe's own rounds at 64 x 64 pixels. `profile`: in one process of one thread; a second thread looks at the stack
of the first every 10 ms. `processes`: `redif distill` on Ray; py-spy, which comes with Ray, looks at every thread of a
rollout worker, a reward worker and the learner that is at work. A look counts for the innermost of these on the stack:
network (forward or backward; text encoders, too), optimiser, decode, reward. All other looks are the project's own
work, shown by the function of this package that is on top.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import psutil
from rich.console import Console

from benchmarks.real_size import role_of, rounds_of, settings, start
from benchmarks.suite import Part, Suite
from redif_ray.config import Config, load
from redif_ray.errors import UserError
from redif_ray.interrupt import StopRequest
from redif_ray.loop import PlainLoop

LOOK_SECONDS = 0.01
LOOKS_A_SECOND = 20  # of py-spy
ROUNDS = 5
# Innermost functions of threads that wait, which py-spy may take for work because they wait in code of C.
WAITING = (
    "wait",
    "main_loop",
    "_worker",
    "select",
    "poll",
    "accept",
    "recv",
    "sleep",
    "_recv_bytes",
    "get",
    "_monitor_target",
)
OUTSIDE = "outside"
PACKAGE = f"{Path('redif_ray')}/"
KINDS = {  # by function name on the stack, and a part of the file's path
    "network": (
        ("call_network", "models/protocol.py"),
        ("_engine_run_backward", "autograd/graph.py"),
        ("encode_prompt", "redif_ray/models/"),
    ),
    "optimiser": (("step", "torch/optim/"),),
    "decode": (("decode", "redif_ray/models/"),),
    "reward": (("__call__", "redif_ray/rewards/"),),
}
HEAD = ["part", "seconds", *KINDS, "other", "most of the other"]


def kind_of(stack: Iterable[tuple[str, str]]) -> str:
    """Return a name of KINDS, or the innermost function of the package, as `file:function`.

    Where no function is the package's, it is the innermost one of others, behind `outside, `.
    stack: path and name of each function, from the innermost outwards.
    """
    own = ""
    for path, name in stack:
        own = own or f"{OUTSIDE}, {Path(path).name}:{name}"
        for kind, places in KINDS.items():
            if any(name == function and part in path for function, part in places):
                return kind
        if own.startswith(OUTSIDE) and PACKAGE in path:
            own = f"{path.rpartition(PACKAGE)[2]}:{name}"
    return own or OUTSIDE


def stack_of(frame: FrameType | None) -> Iterator[tuple[str, str]]:
    """Yield path and name of the functions that a frame is in, from the innermost outwards."""
    while frame is not None:
        yield frame.f_code.co_filename, frame.f_code.co_name
        frame = frame.f_back


class Looks:
    """Counts of `kind_of` of one thread, by the part of a round that it is in."""

    def __init__(self) -> None:
        self.thread, self.part = threading.get_ident(), ""
        self.counts: dict[str, Counter[str]] = {}
        self.seconds: dict[str, float] = defaultdict(float)
        self.ended = threading.Event()
        self.ended.set()

    def within(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that does the same, and whose calls count for a part in a block of `looking`."""

        def counted(*args: Any, **options: Any) -> Any:
            if self.ended.is_set():
                return function(*args, **options)
            self.part, began = part, time.perf_counter()
            try:
                return function(*args, **options)
            finally:
                self.part = ""
                self.seconds[part] += time.perf_counter() - began

        return counted

    @contextmanager
    def looking(self) -> Iterator[None]:
        """Look while the block runs."""
        self.ended.clear()
        looker = threading.Thread(target=self._look, daemon=True)
        looker.start()
        try:
            yield
        finally:
            self.ended.set()
            looker.join()

    def _look(self) -> None:
        while not self.ended.wait(LOOK_SECONDS):
            if self.part:
                kind = kind_of(stack_of(sys._current_frames().get(self.thread)))
                self.counts.setdefault(self.part, Counter())[kind] += 1


def profile(
    root: Path,
    stop: StopRequest,
    console: Console,
    *,
    config: Config | None = None,
    rounds: tuple[int, ...] = (1, 2, 3),
) -> Part:
    """config: of the run; the default is the recipe's. rounds: those that are looked at, some of each phase."""
    loop = PlainLoop(config or load("sd15_coco_5step", settings(root, "profile", 24)))
    looks = Looks()
    for part, owner, name in (
        ("rollout", loop.rollout, "rollout"),
        ("teacher's images", loop.reward, "sent_targets"),
        ("reward", loop.reward, "score"),
        ("update", loop.trainee, "update"),
    ):
        setattr(owner, name, looks.within(part, getattr(owner, name)))
    for round in range(max(rounds) + 1):
        stop.check()
        with looks.looking() if round in rounds else nullcontext():
            loop.round(round)
    told = f"Rounds {', '.join(map(str, rounds))}, looked at every {1000 * LOOK_SECONDS:g} ms."
    return _part("profile", "Where CPU time goes, in one process", looks.seconds, looks.counts, told)


def processes(
    root: Path, stop: StopRequest, console: Console, *, recipe: str = "sd15_coco_5step", given: Sequence[str] = ()
) -> Part:
    """Look at the processes of `redif distill` from its second round to its `ROUNDS`th.

    recipe, given: the run; by default that of real size.
    """
    given = given or [*settings(root, "processes", 24), f"learner.rounds={ROUNDS}", "learner.threads=1"]
    run, spies = start("distill", recipe, *given), dict[str, Spy]()
    while len(rounds := rounds_of(root / "processes")) < ROUNDS:
        stop.check()
        if run.poll() is not None:
            raise UserError("the run ended before it was looked at; see its output above")
        if rounds and not spies:
            workers = {role_of(" ".join(each.cmdline()[:1])): each for each in psutil.Process(run.pid).children(True)}
            spies = {role: Spy(workers[role], root / role) for role in ("rollout", "reward", "learner")}
        time.sleep(0.2)
    ended = {role: spy.end() for role, spy in spies.items()}
    run.send_signal(signal.SIGTERM)
    run.wait()
    return _part(
        "processes",
        "Where CPU time goes, by process of a run on Ray",
        {role: seconds for role, (seconds, _) in ended.items()},
        {role: counts for role, (_, counts) in ended.items()},
        f"Rounds 1 to {ROUNDS - 1} of which {len([row for row in rounds if row['phase'] == 'policy'])} are of the "
        f"policy's phase, looked at {LOOKS_A_SECOND} times a second. Seconds are the processor time of the process; "
        "`threads without Python` are Ray's own, and those of the process group.",
    )


class Spy:
    """py-spy beside a process; it looks at threads that are at work, and pauses none of them."""

    def __init__(self, process: psutil.Process, path: Path) -> None:
        self.process, self.path = process, path
        self.began, self.others = sum(process.cpu_times()[:2]), _others(process)
        # Pauses would cost each of Ray's threads time of its own.
        looking = ["--nonblocking", "--pid", f"{process.pid}", "--rate", f"{LOOKS_A_SECOND}"]
        looking += ["--full-filenames", "--format", "raw"]
        self.spy = subprocess.Popen(
            [Path(sys.executable).with_name("py-spy"), "record", *looking, "--output", path], stdout=subprocess.DEVNULL
        )

    def end(self) -> tuple[float, Counter[str]]:
        """Stop looking; return the process's seconds of processor time, and looks by kind."""
        seconds, others = sum(self.process.cpu_times()[:2]) - self.began, _others(self.process) - self.others
        self.spy.send_signal(signal.SIGINT)
        self.spy.wait()
        counts = Counter[str]()
        for line in self.path.read_text().splitlines():
            stack, _, count = line.rpartition(" ")
            frames = list(_frames(stack))
            if PACKAGE in frames[0][0] or frames[0][1] not in WAITING:
                counts[kind_of(frames)] += int(count)
        counts["threads without Python"] = round(counts.total() * max(0.0, others) / max(seconds - others, 1e-9))
        return seconds, counts


def _others(process: psutil.Process) -> float:
    """Return the seconds of processor time of the threads whose names are not the process's, which Python's have."""
    seconds, names = 0.0, Path(f"/proc/{process.pid}/task")
    own = (names / f"{process.pid}/comm").read_text()
    for thread in process.threads():
        with suppress(OSError):  # it has ended meanwhile
            other = (names / f"{thread.id}/comm").read_text() != own
            seconds += (thread.user_time + thread.system_time) * other
    return seconds


def _frames(stack: str) -> Iterator[tuple[str, str]]:
    """Yield path and name of the functions of a line of py-spy, `outer (path:line);inner (path:line)`, as `kind_of`."""
    for frame in reversed(stack.split(";")):
        name, _, place = frame.partition(" (")
        yield place.rpartition(":")[0], name.rpartition(".")[2]


def _part(name: str, title: str, seconds: Mapping[str, float], looks: Mapping[str, Counter[str]], note: str) -> Part:
    """Tell seconds and looks by part of a round, or by process."""
    rows: list[list[str]] = []
    numbers: dict[str, float] = {}
    for part, counts in looks.items():
        shares = {kind: counts[kind] / counts.total() for kind in KINDS}
        own = Counter({name: count for name, count in counts.items() if name not in KINDS})
        most = ", ".join(f"{name} {100 * count / counts.total():.1f} %" for name, count in own.most_common(3))
        numbers |= {f"{part}_other": own.total() / counts.total(), f"{part}_looks": counts.total()}
        shown = (f"{100 * share:.1f} %" for share in (*shares.values(), own.total() / counts.total()))
        rows.append([part, f"{seconds[part]:.1f}", *shown, most])
    return Part(name, title, HEAD, rows, numbers, [note])


SUITE = Suite("cpu_profile", "Where the CPU time of a round goes", {"processes": processes, "profile": profile})

if __name__ == "__main__":
    SUITE.main(__doc__)
