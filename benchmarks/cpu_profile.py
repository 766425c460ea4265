"""Measure where the CPU time of rollout, reward and update goes, at the size of Stable Diffusion 1.5.

    python -m benchmarks.cpu_profile [--out FOLDER]

The recipe's own rounds, in one process of one thread, at 64 x 64 pixels. A second thread looks at the stack of the
first every 10 ms, and a look counts for the first of these that is on it: network (forward or backward), optimiser,
decode, reward. All other looks are the project's own work, shown by the function of this package that is on top.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console

from benchmarks.real_size import settings
from benchmarks.suite import Part, Suite
from redif_ray.config import Config, load
from redif_ray.interrupt import StopRequest
from redif_ray.loop import PlainLoop

LOOK_SECONDS = 0.01
PACKAGE = f"{Path('redif_ray')}/"
KINDS = {  # by function name on the stack, and a part of the file's path
    "network": (("call_network", "models/protocol.py"), ("_engine_run_backward", "autograd/graph.py")),
    "optimiser": (("step", "torch/optim/"),),
    "decode": (("decode", "redif_ray/models/"),),
    "reward": (("__call__", "redif_ray/rewards/"),),
}
HEAD = ["part", "seconds", *KINDS, "other", "most of the other"]


def kind_of(frame: FrameType | None) -> str:
    """Return a name of KINDS, or the innermost function of the package, as `file:function`."""
    own = "outside"
    while frame is not None:
        path, name = frame.f_code.co_filename, frame.f_code.co_name
        for kind, places in KINDS.items():
            if any(name == function and part in path for function, part in places):
                return kind
        if own == "outside" and PACKAGE in path:
            own = f"{path.rpartition(PACKAGE)[2]}:{name}"
        frame = frame.f_back
    return own


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
                kind = kind_of(sys._current_frames().get(self.thread))
                self.counts.setdefault(self.part, Counter())[kind] += 1


def profile(
    root: Path, stop: StopRequest, console: Console, *, config: Config | None = None, rounds: tuple[int, ...] = (1, 3)
) -> Part:
    """config: of the run; the default is the recipe's. rounds: those that are looked at, one of each phase."""
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
    rows: list[list[str]] = []
    numbers: dict[str, float] = {}
    for part, counts in looks.counts.items():
        shares = {kind: counts[kind] / counts.total() for kind in KINDS}
        own = Counter({name: count for name, count in counts.items() if name not in KINDS})
        most = ", ".join(f"{name} {100 * count / counts.total():.1f} %" for name, count in own.most_common(2))
        numbers |= {f"{part}_other": own.total() / counts.total(), f"{part}_looks": counts.total()}
        shown = (f"{100 * share:.1f} %" for share in (*shares.values(), own.total() / counts.total()))
        rows.append([part, f"{looks.seconds[part]:.1f}", *shown, most])
    return Part(
        "profile",
        "Where CPU time goes",
        HEAD,
        rows,
        numbers,
        [f"Rounds {' and '.join(map(str, rounds))}, looked at every {1000 * LOOK_SECONDS:g} ms."],
    )


SUITE = Suite("cpu_profile", "Where the CPU time of a round goes", {"profile": profile})

if __name__ == "__main__":
    SUITE.main(__doc__)
