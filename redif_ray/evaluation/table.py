"""The arms of an evaluation as a table for the terminal."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from redif_ray.evaluation.report import ARMS


def result_table(summary: dict[str, Any]) -> Table:
    """Return a table of the arms, at most 80 columns wide.

    summary: the fields of an evaluation, with its `notes`.
    """
    height, width = summary["size"]
    view = Table(
        title=f"{summary['held_out']} held-out noises, {height} x {width} pixels, judge {summary['judge']}",
        caption="NFE: network calls an image. ms: time per image on one worker. mse: distance to the teacher's image."
        + _diversity(summary.get("diversity")),
        title_justify="left",
        caption_justify="left",
        box=None,
        padding=(0, 1),
        collapse_padding=True,
        pad_edge=False,
    )
    seconds = summary["notes"]["seconds_per_image"]
    captions = summary["arms"]["student"].get("caption_cosine") is not None
    for column in ("", "NFE", "ms", "Fréchet", "caption" if captions else "1000 KID", "recall", "mse"):
        view.add_column(column, justify="left" if not column else "right", no_wrap=True)
    for name in ARMS:
        arm = summary["arms"].get(name)
        if arm:
            low, high = arm["frechet_ci"]
            view.add_row(
                ARMS[name],
                str(arm["nfe"]),
                f"{1e3 * seconds['teacher' if name == 'teacher_full' else 'student']:.1f}",
                f"{arm['frechet']:.3g} [{low:.3g}, {high:.3g}]",
                f"{arm['caption_cosine']:.3f}" if captions else f"{1e3 * arm['kid']:.1f} ± {1e3 * arm['kid_se']:.1f}",
                f"{arm['recall']:.3f}",
                f"{arm['paired']['pixel_mse']:.5f}",
            )
    return view


def _diversity(found: dict[str, Any] | None) -> str:
    if found is None:
        return ""
    return (
        f" Images of one condition are {found['student']:.3f} apart with the student, {found['teacher']:.3f} with the "
        f"teacher, ± {found['change_se']:.3f} between them."
    )
