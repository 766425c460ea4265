"""The results of a sweep: all trials, and the best settings beside the recipe on seeds that did not choose them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np
from rich.table import Table
from scipy.stats import t as student_t

from redif_ray.evaluation import plots
from redif_ray.evaluation.page import write_page
from redif_ray.evaluation.report import markdown_table
from redif_ray.evaluation.summary import Summary
from redif_ray.sweep.job import Job
from redif_ray.sweep.population import Population
from redif_ray.sweep.repeats import BEST, RECIPE, Repeats
from redif_ray.sweep.selection import Selection
from redif_ray.sweep.space import current

LOWER = ("frechet", "pixel_mse")  # figures of which lower values are better
Spread = dict[str, float]  # "mean", and "low" and "high" of its 95 % interval


def write_results(job: Job, plan: Selection | Population, repeats: Repeats) -> None:
    """Write `report.md`, `trials.png` and last `summary.json`, whose presence means that the job is finished."""
    folder = job.folder.path
    trials = sorted(plan.finished(), key=lambda t: (-len(t.scores), -t.score))
    recipe = current(job.recipe, plan.space)
    points = [{**recipe, **t.settings} for t in trials]
    held_out = {
        kind: [
            _held_out(folder / "trials" / t.run)
            for t in repeats.finished()
            if t.stage == kind and t.generation == len(history) - 1
        ]
        for kind, history in repeats.histories.items()
    }
    summary: dict[str, Any] = {
        "schema": 1,
        "name": job.config.run.name,
        "seed": job.config.run.seed,
        "metric": job.config.sweep.metric,
        "scheduler": job.config.sweep.scheduler,
        "best": [list(part) for part in repeats.histories.get(BEST, [])],
        "held_out": held_out,
        "seconds": job.records.seconds(),
        "failed": [asdict(t) for t in plan.trials.values() if t.error],
        "trials": [{**asdict(t), "settings": point} for t, point in zip(trials, points, strict=True)],
        "spread": {
            kind: {name: spread([row[name] for row in rows]) for name in rows[0] if name != "seed"}
            for kind, rows in held_out.items()
            if rows
        },
        "gain": _gain(held_out),
    }
    recipe_score = next((t.score for t in trials if not t.settings), None)
    plots.scatter(folder / "trials.png", points, [t.score for t in trials], job.config.sweep.metric, recipe_score)
    (folder / "report.md").write_text(report(summary))
    page = write_page(folder)
    final = {
        f"final/{kind}/{name}": values["mean"]
        for kind, spreads in summary["spread"].items()
        for name, values in spreads.items()
    }
    job.records.summary(final, [page, folder / "report.md", folder / "best.yaml", *folder.glob("*.png")])
    job.folder.write("summary.json", json.dumps(summary, indent=1) + "\n")
    if summary["spread"]:
        job.console.print(f"seeds {_seeds(summary)}: means, and the difference's 95 % interval", highlight=False)
        job.console.print(_table(summary))
        job.console.print(verdict(summary), highlight=False, soft_wrap=True)
    words = [
        f"report       {page}",
        f"best         {folder / 'best.yaml'}",
        f"distil it    redif distill {quote(str(folder / 'best.yaml'))}",
    ]
    job.console.print("\n".join(words), highlight=False, soft_wrap=True)


def _held_out(run: Path) -> dict[str, float]:
    """Return the held-out figures of a finished run's student."""
    summary = Summary.model_validate(json.loads((run / "summary.json").read_text()))
    student = summary.arms.student
    return {"seed": summary.seed, "frechet": student.frechet, "recall": student.recall, **student.paired}


def spread(values: Sequence[float]) -> Spread:
    """Return the mean over seeds and its 95 % interval by Student's t, which is infinite for one seed."""
    mean, n = float(np.mean(values)), len(values)
    half = float(student_t.ppf(0.975, n - 1) * np.std(values, ddof=1) / np.sqrt(n)) if n > 1 else float("inf")
    return {"mean": mean, "low": mean - half, "high": mean + half}


def _gain(held_out: Mapping[str, list[dict[str, float]]]) -> dict[str, Spread]:
    """Return best minus recipe, paired by seed, since runs of one seed are evaluated on the same noises."""
    recipe = {row["seed"]: row for row in held_out.get(RECIPE, [])}
    pairs = [(row, recipe[row["seed"]]) for row in held_out.get(BEST, []) if row["seed"] in recipe]
    if not pairs:
        return {}
    return {name: spread([a[name] - b[name] for a, b in pairs]) for name in pairs[0][0] if name != "seed"}


def _with_arrow(name: str) -> str:
    """Return the name of a figure with an arrow towards better values."""
    return f"{name} {'↓' if name in LOWER else '↑'}"


def _cell(value: Spread) -> str:
    if not np.isfinite(value["low"]):
        return f"{value['mean']:.4g}"
    return f"{value['mean']:.4g} [{value['low']:.4g}, {value['high']:.4g}]"


def _rows(summary: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return the head and the rows of the table of held-out figures, with a row for each metric."""
    kinds = list(summary["spread"])
    names = list(summary["spread"][kinds[0]]) if kinds else []
    head = ["held out", *kinds, *(["best - recipe"] if summary["gain"] else [])]
    rows = [
        [
            _with_arrow(name),
            *(_cell(summary["spread"][kind][name]) for kind in kinds),
            *([_cell(summary["gain"][name])] if summary["gain"] else []),
        ]
        for name in names
    ]
    return head, rows


def _table(summary: Mapping[str, Any]) -> Table:
    """Return the table for 80 columns of a terminal, in which the best and the recipe have no intervals."""
    kinds, gain = summary["spread"], summary["gain"]
    view = Table(box=None, padding=(0, 1), pad_edge=False)
    for column in ("held out", *kinds, *(["best - recipe"] if gain else [])):
        view.add_column(column, no_wrap=True)
    for name in next(iter(kinds.values())):
        means = [f"{kinds[kind][name]['mean']:.4g}" for kind in kinds]
        view.add_row(_with_arrow(name), *means, *([_cell(gain[name])] if gain else []))
    return view


def verdict(summary: Mapping[str, Any]) -> str:
    """Return in words whether the best settings are better than the recipe by the Fréchet distance, lower is better."""
    if not summary["gain"]:
        return "No settings were better than the unchanged recipe."
    best, recipe = (summary["spread"][kind]["frechet"]["mean"] for kind in (BEST, RECIPE))
    gain = summary["gain"]["frechet"]
    if gain["high"] < 0:
        shown = "below 0: the best settings are better"
    elif gain["low"] > 0:
        shown = "above 0: the best settings are worse"
    else:
        shown = "not apart from 0: no improvement is shown"
    return (
        f"The Fréchet distance is {best:.4g} with the best settings and {recipe:.4g} with the recipe; the difference, "
        f"{_cell(gain)}, is {shown}."
    )


def _seeds(summary: Mapping[str, Any]) -> str:
    return ", ".join(sorted({str(row["seed"]) for rows in summary["held_out"].values() for row in rows}))


def report(summary: Mapping[str, Any]) -> str:
    """Return the text of `report.md`."""
    trials, metric = summary["trials"], summary["metric"]
    keys = list(trials[0]["settings"]) if trials else []
    whole = max((len(t["scores"]) for t in trials), default=1)
    seconds = ", ".join(f"{name} {taken:.0f} s" for name, taken in summary["seconds"].items())
    parts = [
        f"# {summary['name']}: {len(trials)} runs",
        f"Compared by the best `{metric}` (higher is better) of each run's validations, seed {summary['seed']}; "
        f"{seconds}.",
    ]
    if summary["spread"]:
        head, rows = _rows(summary)
        what = (
            "The best settings and the unchanged recipe"
            if summary["gain"]
            else ("No settings were better than the unchanged recipe")
        )
        parts += [
            "## Is the best better?",
            f"{what}, run with seeds {_seeds(summary)}, which had no part in choosing the settings. The figures are on "
            "held-out noises: means over seeds with their 95 % intervals (Student's t), differences paired by seed. "
            "An interval that contains 0 shows no improvement.",
            *([verdict(summary)] if summary["gain"] else []),
            markdown_table(head, rows),
        ]
    if len(summary["best"]) > 1:
        parts.append(
            "Settings of the best run, part by part: "
            + "; ".join(f"until round {until}: {settings_text(settings)}" for until, settings in summary["best"])
            + "."
        )
    parts += [
        "## Runs",
        markdown_table(
            ["run", metric, *keys],
            [[t["run"], _scored(t["scores"], whole), *(_value(t["settings"][key]) for key in keys)] for t in trials],
        ),
    ]
    if keys:
        parts.append("![The metric by each setting.](trials.png)")
    if summary["failed"]:
        failed = (f"- `{t['run']}` {settings_text(t['settings'])}: {t['error']}" for t in summary["failed"])
        parts += ["## Failed", *failed]
    return "\n\n".join(parts) + "\n"


def _scored(scores: Sequence[float], whole: int) -> str:
    return f"{scores[-1]:+.5f}" + ("" if len(scores) == whole else f" (cut at rung {len(scores)})")


def settings_text(settings: Mapping[str, Any]) -> str:
    """Return the settings of a run as text."""
    return ", ".join(f"{key}={_value(value)}" for key, value in settings.items()) or "the recipe"


def _value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
