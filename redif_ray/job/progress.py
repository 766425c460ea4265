"""The progress of a run: a bar on a terminal, elsewhere a line from time to time, with the time until all is over."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar

from redif_ray.runs.status import END_SECONDS, duration

LINE_SECONDS = 30.0  # between two lines where there is no terminal
KEEP_SECONDS = 5.0  # between two notes in the run folder
TRUSTED = 0.05  # share of a stage after which its own pace is believed
TRAINING, EVALUATION, END = "training", "evaluation", "export and report"


class Progress:
    """The state of a job whose stages are done one after the other.

    stages: {stage: expected seconds}, in their order. Only the proportions matter once a stage has shown its pace.
    keep: called now and then with {"stage", "share", "left"}, for `redif status`.
    known: whether the expected seconds are an estimate; if not, no time is told before a stage has shown its pace.
    """

    def __init__(
        self,
        console: Console,
        stages: Mapping[str, float],
        keep: Callable[[dict[str, Any]], None] = lambda _: None,
        *,
        known: bool = True,
    ) -> None:
        self.console, self.stages, self.keep = console, dict(stages), keep
        self.pace = 1.0 if known else None
        self.printed = self.kept = float("-inf")
        self.began = self.since = time.monotonic()
        self.stage, self.first, self.share = next(iter(stages)), 0.0, 0.0  # first: share that was done before
        self.bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[text]}", markup=False),
            console=console,
            transient=True,
            refresh_per_second=2,
            disable=not drawn(console),
        )
        self.task = self.bar.add_task(self.stage, total=1.0, text="")

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Take the bar away; lines can be printed after it."""
        self.bar.stop()

    def begin(self, stage: str, share: float = 0.0) -> None:
        """Begin a stage, of which `share` is done already."""
        self.pace = self._pace()
        self.stage, self.first, self.share, self.since = stage, share, share, time.monotonic()
        self.bar.update(self.task, description=stage)

    def shorten(self, share: float) -> None:
        """Expect the present stage to take `share` of the time that was expected of it."""
        self.stages[self.stage] *= share

    def at(self, share: float, text: str, *, line: bool = False) -> None:
        """Tell that `share` of the stage is done. line: whether `text` is worth a line, on a terminal too."""
        self.share = min(1.0, share)
        left, now = self.left(), time.monotonic()
        time_left = "" if left is None else f"about {duration(left)} left"
        if left is not None and (whole := now - self.began + left):
            self.bar.update(self.task, completed=(now - self.began) / whole)
        self.bar.update(self.task, text=f"{time_left}  {text}".strip())  # a narrow terminal cuts off its end
        self._print(f"{text}  {time_left}".rstrip(), line)
        if now - self.kept >= KEEP_SECONDS:
            self.kept = now
            self.keep({"stage": self.stage, "share": self.share, "left": left})

    def tell(self, text: str, *, line: bool = False) -> None:
        """Tell what is being done, without a time, where nobody knows how long it takes. line: as in `at`."""
        self.bar.update(self.task, text=text)
        self._print(text, line)

    def _print(self, text: str, line: bool) -> None:
        """Print a line if `text` is worth one, or if the last one is long ago and nothing else shows progress."""
        now = time.monotonic()
        if line or (not drawn(self.console) and now - self.printed >= LINE_SECONDS):
            self.printed = now
            self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def left(self) -> float | None:
        """Return the seconds until all stages are over, or None while no pace is known."""
        if (pace := self._pace()) is None:
            return None
        names = list(self.stages)
        later = sum(self.stages[name] for name in names[names.index(self.stage) + 1 :])
        return pace * (self.stages[self.stage] * (1 - self.share) + later)

    def _pace(self) -> float | None:
        """Return the seconds that a second of the estimate takes: in this stage, or at its beginning in the last."""
        done = self.share - self.first
        expected = self.stages[self.stage] * done
        return (time.monotonic() - self.since) / expected if done >= TRUSTED and expected else self.pace


def drawn(console: Console) -> bool:
    """Tell whether a bar can be drawn again and again in place, unlike in a notebook, which rich calls a terminal."""
    return console.is_terminal and not console.is_jupyter


def stages(seconds: Mapping[str, float], rounds: float, *, whole: bool) -> dict[str, float]:
    """Return the stages of a run with the seconds that each is expected to take.

    seconds: of the parts of the run, by name. rounds: of all its rounds. whole: whether an evaluation follows these.
    """
    return {TRAINING: rounds} | ({EVALUATION: seconds["evaluation"], END: END_SECONDS} if whole else {})
