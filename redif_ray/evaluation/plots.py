"""The plots of a run, as PNG files. Each figure is an object of its own, without pyplot and its global state.

Colours are those of Okabe and Ito, which every kind of colour vision can distinguish; lines differ by marker as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from redif_ray.diffusion.schedules import Schedule
from redif_ray.files import atomic_file

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
PHASES = {  # name, tint
    "warm_start": ("warm start", "#F0E442"),
    "policy": ("policy gradient", "#56B4E9"),
    "draft": ("back-propagation", "#CC79A7"),
    "straight": ("straight gradient", "#E69F00"),
    "output": ("policy gradient at the output", "#009E73"),
    "contrast": ("contrast of own images", "#44AA99"),
    "distribution_matching": ("distribution matching", "#D55E00"),
    "consistency": ("consistency distillation", "#999999"),
    "progressive": ("progressive distillation", "#882255"),
}
CURVES = {"reward/mean": "training, with exploration", "validation/reward": "validation, without exploration"}
MANY = 60  # points of a curve, above which they jump too close to each other to be marked
DPI = 150


def reward_curve(path: str | Path, rows: Sequence[Mapping[str, Any]], best: float | None = None) -> None:
    """Plot reward against round to a PNG.

    rows: rows of metrics.jsonl, with `round`, `phase` and any of the keys of `CURVES`, whose rewards have one unit.
    best: the most that a student can have, the reward of the teacher's own images. Where no reward reaches it, what is
        left to it is plotted on a logarithmic axis; None: the rewards themselves are plotted.
    Training rewards jump from round to round, so their running median is drawn over them.
    Raises ValueError if no row has a reward.
    """
    curves = {key: [(row["round"] + 1, row[key]) for row in rows if row.get(key) is not None] for key in CURVES}
    values = [value for points in curves.values() for _, value in points]
    if not values:
        raise ValueError(f"{len(rows)} metrics rows hold none of {', '.join(CURVES)}; expected at least one reward")
    figure, axes = _figure(7.5, 4.6)
    left = best is not None and max(values) < best
    for i, (key, label) in enumerate(CURVES.items()):
        if not curves[key]:
            continue
        x, y = np.array(curves[key]).T
        y = best - y if left else y
        if len(y) > MANY:
            axes.plot(x, y, color=COLOURS[i], linewidth=0.8, alpha=0.35, zorder=i + 2)
            y, label = _running_median(y), f"{label}, running median"
        marker = MARKERS[i] if len(y) <= MANY else None
        axes.plot(x, y, color=COLOURS[i], marker=marker, markersize=5, linewidth=1.8, label=label, zorder=i + 4)
    if left:
        axes.set(yscale="log", ylabel="reward left to the teacher (lower is better)")
    else:
        axes.set_ylim(*_typical(values))
        axes.set_ylabel("reward (higher is better)")
    _shade_phases(axes, rows)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("round")
    figure.legend(frameon=False, fontsize=9, loc="outside lower center", ncols=2)
    _save(figure, path)


def _running_median(values: np.ndarray) -> np.ndarray:
    """Return, for each value, the median of the values around it: about a twentieth of all."""
    reach = max(2, len(values) // 40)
    windows = [values[max(0, i - reach) : i + reach + 1] for i in range(len(values))]
    return np.array([np.median(window) for window in windows])


def _typical(values: Sequence[float]) -> tuple[float, float]:
    """Return limits of an axis that leave out the few values far from all others."""
    low, high = np.quantile(values, [0.02, 0.98])
    margin = 0.08 * (high - low) or max(abs(high), 1.0) * 0.05
    return float(low - margin), float(high + margin)


def schedule(path: str | Path, own: Schedule, others: Sequence[Schedule] = ()) -> None:
    """Plot the half log-SNR of each schedule's levels against the step to a PNG.

    own: the schedule to emphasise. others: schedules to compare with.
    A first level of pure noise has no finite half log-SNR and is left out.
    """
    figure, axes = _figure(6.5, 4.2)
    for i, each in enumerate((own, *others)):
        value = each.levels.half_log_snr[: each.steps].numpy()
        step = np.arange(1, each.steps + 1)
        shown = np.isfinite(value)
        axes.plot(
            step[shown],
            value[shown],
            color=COLOURS[i % len(COLOURS)],
            marker=MARKERS[i % len(MARKERS)],
            markersize=7,
            linewidth=2.4 if i == 0 else 1.3,
            label=each.name.replace("_", " "),
            zorder=10 - i,
        )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="step", ylabel="half log-SNR, ln(alpha / sigma)")
    axes.legend(frameon=False, fontsize=10, loc="best")
    _save(figure, path)


def front(path: str | Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Plot the distance to the teacher against the number of steps to a PNG, one line per kind of schedule.

    rows: schedules with `steps`, `name`, `origin` and `distance`. The lines of named schedules and of GITS show the
        best at each number of steps.
    """
    figure, axes = _figure(6.5, 4.2)
    lines: dict[str, dict[int, float]] = {}
    for row in rows:
        kind = row["name"] if row["origin"] != "start" else "GITS" if "gits" in row["name"] else "best named"
        line = lines.setdefault(kind, {})
        line[row["steps"]] = min(row["distance"], line.get(row["steps"], float("inf")))
    for i, (kind, line) in enumerate(lines.items()):
        x, y = zip(*sorted(line.items()), strict=True)
        axes.plot(x, y, color=COLOURS[i], marker=MARKERS[i], markersize=7, linewidth=1.8, label=kind)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="steps", ylabel="distance to the teacher", yscale="log" if min(y) > 0 else "linear")
    axes.legend(frameon=False, fontsize=10, loc="upper right")
    _save(figure, path)


def scatter(
    path: str | Path, points: Sequence[Mapping[str, Any]], values: Sequence[float], label: str, line: float | None
) -> None:
    """Plot `values` against each setting of `points` to a PNG, one panel per setting.

    points: {setting: number or choice}, one per value.
    label: name of the values.
    line: value to compare with, drawn as a dashed line; None: no line.
    Positive numbers that span more than a factor of three get a logarithmic axis.
    """
    names = list(points[0])
    figure = Figure(figsize=(3.2 * len(names) + 0.8, 3.2), dpi=DPI, layout="constrained")
    for i, (axes, name) in enumerate(zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True)):
        x = [point[name] for point in points]
        if not all(isinstance(at, int | float) and not isinstance(at, bool) for at in x):
            x = [str(at) for at in x]
        elif min(x) > 0 and max(x) > 3 * min(x):
            axes.set_xscale("log")
        axes.scatter(x, values, color=COLOURS[0], s=28, zorder=3)
        if line is not None:
            axes.axhline(line, color=COLOURS[1], linewidth=1.3, linestyle="--", label="the recipe")
            axes.legend(fontsize="small")
        axes.tick_params(axis="x", which="both", labelrotation=45)
        axes.grid(color="#DDDDDD", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.set(xlabel=name, ylabel=label if i == 0 else "")
    _save(figure, path)


def adaptive(
    path: str | Path, lines: Mapping[str, tuple[Sequence[int], Sequence[float]]], agents: Sequence[Mapping[str, Any]]
) -> None:
    """Plot the distance to the teacher against the mean number of network calls to a PNG.

    lines: {name: (calls, distances)} of static schedules.
    agents: points with `calls`, `distance`, and the interval of each, as in `calls_low` and `calls_high`.
    """
    figure, axes = _figure(6.5, 4.2)
    for i, (name, (x, y)) in enumerate(lines.items()):
        axes.plot(x, y, color=COLOURS[i], marker=MARKERS[i], markersize=6, linewidth=1.8, label=name)
    calls, distance = (np.array([agent[key] for agent in agents]) for key in ("calls", "distance"))
    axes.errorbar(
        calls,
        distance,
        xerr=_bars(agents, "calls"),
        yerr=_bars(agents, "distance"),
        linestyle="none",
        color=COLOURS[len(lines)],
        marker=MARKERS[len(lines)],
        markersize=7,
        capsize=3,
        label="adaptive",
    )
    axes.set(xlabel="mean number of calls", ylabel="distance to the teacher", yscale="log")
    axes.legend(frameon=False, fontsize=10, loc="upper right")
    _save(figure, path)


def _bars(rows: Sequence[Mapping[str, Any]], name: str) -> np.ndarray:
    """Return the distances [2, rows] from each row's `name` down to `name_low` and up to `name_high`."""
    return np.array([[r[name] - r[f"{name}_low"] for r in rows], [r[f"{name}_high"] - r[name] for r in rows]]).clip(0)


def side_by_side(path: str | Path, rows: Sequence[tuple[str, np.ndarray | Tensor]]) -> None:
    """Write a grid of images to a PNG, one row per arm and one column per noise.

    rows: (label, images [m, C, H, W], uint8 or float in [0, 1]) of each arm, all of the same m noises.
    Raises ValueError for arms whose images differ in shape or number.
    """
    shapes = {tuple(images.shape) for _, images in rows}
    if len(shapes) != 1 or len(next(iter(shapes))) != 4:
        raise ValueError(f"arms hold images of shapes {sorted(shapes)}; expected one shape [m, C, H, W]")
    columns, channels, height, width = shapes.pop()
    margin, cell, gap = 1.7, 0.7, 0.05  # inches: width for the labels, width of an image, gap between rows
    tall = cell * height / width + gap
    wide, high = margin + cell * columns + gap, tall * len(rows) + gap
    figure = Figure(figsize=(wide, high), dpi=DPI)
    for i, (label, images) in enumerate(rows):
        bottom = high - (i + 1) * tall
        given = torch.as_tensor(np.array(images))
        strip = given / 255 if given.dtype == torch.uint8 else given.float().clamp(0, 1)
        strip = torch.nn.functional.pad(strip, (0, 1), value=1.0).permute(1, 2, 0, 3).reshape(channels, height, -1)
        axes = figure.add_axes((margin / wide, bottom / high, cell * columns / wide, (tall - gap) / high))
        picture = strip.permute(1, 2, 0).squeeze(-1).numpy()
        axes.imshow(picture, cmap="gray", vmin=0, vmax=1, interpolation="nearest", aspect="auto")
        axes.set_axis_off()
        middle = (bottom + (tall - gap) / 2) / high
        figure.text((margin - 0.1) / wide, middle, label, ha="right", va="center", fontsize=10)
    _save(figure, path)


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    axes.grid(color="#DDDDDD", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=10)
    axes.xaxis.label.set_fontsize(11)
    axes.yaxis.label.set_fontsize(11)
    return figure, axes


def _shade_phases(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    """Tint the rounds of each phase, with a label for the legend, if there is more than one phase."""
    phases = list(dict.fromkeys(row.get("phase") for row in rows if row["round"] >= 0))
    if len(phases) < 2:
        return
    for phase in phases:
        rounds = [row["round"] + 1 for row in rows if row.get("phase") == phase]
        name, shade = PHASES.get(str(phase), (str(phase), "#DDDDDD"))
        axes.axvspan(min(rounds) - 0.5, max(rounds) + 0.5, color=shade, alpha=0.18, linewidth=0, label=name)


def _save(figure: Figure, path: str | Path) -> None:
    FigureCanvasAgg(figure)
    with atomic_file(Path(path)) as partial:
        figure.savefig(partial, format="png", dpi=DPI)
