"""A search's results as tables, for the terminal and for `report.md`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from redif_ray.config import Config
from redif_ray.evaluation.report import markdown_table

HEAD = ["schedule", "distance ↓", "95 %", "Fréchet ↓", "recall ↑"]


def table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return the table of measured schedules, which fits the 80 columns of a terminal."""
    view = Table(title="held-out noises", title_justify="left", box=None, padding=(0, 1), pad_edge=False)
    for column in ("N", *HEAD):
        view.add_column(column, justify="left" if column == "schedule" else "right", no_wrap=True)
    for row in rows:
        view.add_row(str(row["steps"]), *_cells(row), style="bold" if row["bank"] is not None else None)
    return view


def _cells(row: Mapping[str, Any]) -> list[str]:
    low, high = row["distance_ci"]
    return [
        row["name"],
        f"{row['distance']:.5f}",
        f"{low:.5f} {high:.5f}",
        f"{row['arm']['frechet']:.1f}",
        f"{row['arm']['recall']:.3f}",
    ]


def report(summary: Mapping[str, Any], config: Config) -> str:
    """Return the text of `report.md`."""
    rows, s = summary["schedules"], config.search
    seconds = ", ".join(f"{name} {taken:.0f} s" for name, taken in summary["seconds"].items())
    searched = s.student or config.teacher.model
    terms = " + ".join(f"{weight:.4g} x {name}" for name, weight in summary["weights"].items())
    chosen = f"on a bank of {summary['bank']} noises"
    if s.frechet.weight:
        chosen += f", by it + {s.frechet.weight:g} x the Fréchet distance to the teacher's images ({s.frechet.encoder})"
    parts = [
        f"# {summary['name']}: schedules for {', '.join(sorted({str(r['steps']) for r in rows}, key=int))} steps",
        f"Schedules for `{searched}` with the solver {s.solver}. The distance to the teacher's image of the same noise "
        f"({config.teacher.steps} steps of {config.teacher.solver}) is minus the reward, -({terms}). Schedules were "
        f"chosen {chosen}; the tables show them on {summary['held_out']:,} held-out noises, seed {summary['seed']}, "
        "with 95 % bootstrap intervals. Fréchet distance (not FID) and recall are in the features of the judge "
        f"`{config.evaluation.judge}`. The search took {seconds}, on at most {config.reward.max_workers} workers.",
    ]
    for n in sorted({row["steps"] for row in rows}):
        own = [row for row in rows if row["steps"] == n]
        parts += [
            f"## {n} steps",
            markdown_table(
                [*HEAD, "timesteps"],
                [[*_cells(row), _times(row)] for row in own],
            ),
        ]
        parts += [_change(row) for row in own if row["origin"] != "start"]
        parts.append(f"![The levels of each step.](schedule-{n}.png)")
    if len({row["steps"] for row in rows}) > 1:
        parts.append("![Distance by number of steps.](front.png)")
    return "\n\n".join(parts) + "\n"


def _times(row: Mapping[str, Any]) -> str:
    levels, other = (" ".join(f"{t:.4g}" for t in row.get(key) or ()) for key in ("timesteps", "network_timesteps"))
    return f"{levels}, network timesteps {other}" if other else levels


def _change(row: Mapping[str, Any]) -> str:
    a = row["against"]
    share = a["change"] / (row["distance"] - a["change"])
    return (
        f"{row['name'].capitalize()}: {a['change']:+.5f} [{a['low']:+.5f}, {a['high']:+.5f}] against "
        f"{a['name']}, the best named schedule here ({share:+.1%})."
    )
