"""The progress of a teacher's training: a bar on a terminal, lines elsewhere, with the time that is left."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn


@contextmanager
def shown(console: Console) -> Iterator[Callable[[dict[str, float]], object]]:
    """Yield the function that shows a row of `train`, and the number of all `steps` with it."""
    if not console.is_terminal:
        yield lambda row: console.print(_words(row), highlight=False, soft_wrap=True)
        return
    bar = Progress(BarColumn(), TextColumn("{task.description}"), console=console)
    task = bar.add_task("", total=None)

    def show(row: dict[str, float]) -> None:
        bar.start()  # not before there is a row: a terminal shows one thing that moves at a time
        bar.update(task, total=row["steps"], completed=row["step"], description=_words(row))

    try:
        yield show
    finally:
        bar.stop()


def _words(row: dict[str, float]) -> str:
    left = timedelta(seconds=round(row["eta_seconds"]))
    return (
        f"step {row['step']:,.0f}/{row['steps']:,.0f}  loss {row['loss']:.4f}  "
        f"{row['images_per_second']:,.0f} images/s  {left} left"
    )
