"""`redif status` of a search, and which of the two a folder holds."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from redif_ray.pipeline import status as run
from redif_ray.pipeline.rows import read_rows
from redif_ray.pipeline.run_folder import stored_config
from redif_ray.search.names import SUFFIX
from redif_ray.trials.journal import TRIALS

FOLLOW_SECONDS = 3.0


def show(path: Path, console: Console) -> None:
    console.print(_table(path)[1])


def follow(path: Path, console: Console) -> None:
    """Until the run is over, or Ctrl-C."""
    with Live(console=console, auto_refresh=False) as live, suppress(KeyboardInterrupt):
        while True:
            word, table = _table(path)
            live.update(table, refresh=True)
            if word != "running":
                return
            time.sleep(FOLLOW_SECONDS)


def _table(path: Path) -> tuple[str, Table]:
    word, lines = status(path)
    table = Table(title=path.resolve().name, title_justify="left", show_header=False, box=None, pad_edge=False)
    for name, told in lines.items():
        table.add_row(name, Text(told, overflow="fold"))
    return word, table


def status(path: Path) -> tuple[str, run.Lines]:
    """See `pipeline.status.status`; for the folder of a run or of a search."""
    config = stored_config(path)
    if not config.run.name.endswith(SUFFIX) or (path / "metrics.jsonl").exists():
        return run.status(path)
    kept = run.state(path)
    word, told = run.life(path, kept)
    trials = read_rows(path / TRIALS)
    lines = {"state": told, "trials": f"{len(trials)} of {kept.get('trials', '?')}"}
    if failed := sum(trial["error"] is not None for trial in trials):
        lines["failed"] = f"{failed} trials"
    whole = [trial for trial in trials if len(trial["scores"]) == len(config.search.rungs)]
    for steps in sorted({trial["steps"] for trial in whole}):
        best = min((trial["scores"][-1], trial["number"]) for trial in whole if trial["steps"] == steps)
        lines[f"best at {steps} steps"] = f"distance {best[0]:.5f}, trial {best[1]}"
    for steps, (score, _) in kept.get("descents", {}).items():
        lines[f"gradient at {steps} steps"] = f"distance {score:.5f}"
    return word, lines | run.places(path, config, kept)
