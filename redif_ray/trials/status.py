"""`redif status` of a folder, which may hold a run, a search or a sweep."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from redif_ray.config import Config
from redif_ray.errors import UserError, in_words
from redif_ray.runs import status as run
from redif_ray.runs.folder import RunError, stored_config, stored_state
from redif_ray.runs.jsonl import read_rows
from redif_ray.trials.names import SEARCH, SWEEP, TESTS, TRIALS

FOLLOW_SECONDS = 3.0
MLFLOW = "MLflow"  # label of the lines that say how to open the run's page


def show(path: Path, console: Console) -> None:
    """Print the status, with the link to MLflow in one piece."""
    lines = status(path)[1]
    page = lines.pop(MLFLOW, "")
    console.print(_table(path, lines))
    for line in page.splitlines():
        console.print(f"{MLFLOW:<10}  {line}", highlight=False, markup=False, soft_wrap=True)


def follow(path: Path, console: Console) -> None:
    """Print the status until the run is over or the user presses Ctrl-C."""
    with Live(console=console, auto_refresh=False) as live, suppress(KeyboardInterrupt):
        while True:
            word, lines = status(path)
            live.update(_table(path, lines), refresh=True)
            if word != "running":
                return
            time.sleep(FOLLOW_SECONDS)


def _table(path: Path, lines: run.Lines) -> Table:
    table = Table(title=path.resolve().name, title_justify="left", show_header=False, box=None, pad_edge=False)
    for label, text in lines.items():
        table.add_row(label, Text(text, overflow="fold"))
    return table


def status(path: Path) -> tuple[str, run.Lines]:
    """Return the state and the lines to print, as `runs.status.status` does, of a run, a search or a sweep.

    Raises RunError for a folder without one, or with files that hold what no run writes.
    """
    config = stored_config(path)
    try:
        return _told(path, config)
    except UserError:
        raise
    except (ValueError, TypeError, AttributeError, LookupError, ArithmeticError) as error:
        raise RunError(
            f"{path}: one of its files, such as metrics.jsonl or run.json, holds what no run writes "
            f"({in_words(error)}); restore the files from a copy"
        ) from error


def _told(path: Path, config: Config) -> tuple[str, run.Lines]:
    kinds = ((SEARCH, _search), (SWEEP, _sweep))
    best = next((best for suffix, best in kinds if config.run.name.endswith(suffix)), None)
    if best is None or (path / "metrics.jsonl").exists():
        return run.status(path)
    kept = stored_state(path)
    word, text = run.life(path, kept)
    trials = read_rows(path / TRIALS)
    lines = {"state": text, "trials": f"{len(trials)} of {kept.get('trials', '?')}"}
    if failed := sum(trial["error"] is not None for trial in trials):
        lines["failed"] = f"{failed} trials"
    if kept.get("tests"):
        lines["tests"] = f"{len(read_rows(path / TESTS))} of {kept['tests']}"
    done = [trial for trial in trials if trial["error"] is None and trial["scores"]]
    return word, lines | best(config, done, kept) | run.places(path, config, kept)


def _search(config: Config, trials: list[dict[str, Any]], kept: Mapping[str, Any]) -> run.Lines:
    lines: run.Lines = {}
    whole = [trial for trial in trials if len(trial["scores"]) == len(config.search.rungs)]
    for steps in sorted({trial["steps"] for trial in whole}):
        best = min((trial["scores"][-1], trial["number"]) for trial in whole if trial["steps"] == steps)
        lines[f"best at {steps} steps"] = f"distance {best[0]:.5f}, trial {best[1]}"
    for steps, (score, _) in kept.get("descents", {}).items():
        lines[f"gradient at {steps} steps"] = f"distance {score:.5f}"
    return lines


def _sweep(config: Config, trials: list[dict[str, Any]], _: Mapping[str, Any]) -> run.Lines:
    if not trials:
        return {}
    furthest = max(trial["generation"] for trial in trials)
    whole = [
        trial for trial in trials if trial["generation"] == furthest and len(trial["scores"]) > len(config.sweep.rungs)
    ]
    best = max(whole, key=lambda trial: trial["scores"][-1], default=None)
    return {} if best is None else {"best": f"{best['run']}, {config.sweep.metric} {best['scores'][-1]:+.5f}"}
