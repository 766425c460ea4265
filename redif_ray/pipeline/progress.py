"""What a person sees and can do while a run trains: a line a round, Ctrl-C."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from rich.console import Console

from redif_ray.pipeline.session import Session

POLL_SECONDS = 0.5


@contextmanager
def stop_on_signal(run: Session, console: Console) -> Iterator[None]:
    """The first Ctrl-C or SIGTERM asks for a checkpoint; the second one is obeyed at once."""

    def ask(number: int, _: Any) -> None:
        console.print("\nstopping after this round and writing a checkpoint; once more to leave without")
        run.coordinator.stop.remote()
        signal.signal(number, signal.default_int_handler)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {s: signal.signal(s, ask) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def show_progress(run: Session, thread: threading.Thread, console: Console) -> None:
    """One line a round: round, groups/s, reward at eta 0, time left."""
    last, began, total = -1, time.monotonic(), run.plan.rounds
    first: int | None = None
    reward: float | None = None
    while thread.is_alive():
        thread.join(POLL_SECONDS)
        for row in ray.get(run.writer.latest.remote(last)):
            last = row["round"]
            if first is None:
                first, began = last, time.monotonic()
            reward = row.get("validation/reward", reward)
            if not console.is_terminal and last % 10 and last + 1 < total and "validation/reward" not in row:
                continue
            pace = (time.monotonic() - began) / max(1, last - first)
            left = f"{pace * (total - last - 1):4.0f} s left" if last > first else "   ? s left"
            shown = "      -" if reward is None else f"{reward:+.5f}"
            end = "\r" if console.is_terminal and last + 1 < total and "validation/reward" not in row else "\n"
            console.print(
                f"round {last + 1:4d}/{total}  {row['phase']:<10}  {row['groups_per_second']:6.1f} groups/s  "
                f"reward at eta 0 {shown}  {left}",
                end=end,
                highlight=False,
                soft_wrap=True,
            )
