"""Commands of runs: distil, watch, measure, and check beforehand whether a run fits."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from redif_ray import api
from redif_ray.busy import busy
from redif_ray.commands.arguments import (
    ConfigFile,
    Height,
    Overrides,
    PrintConfig,
    Width,
    console,
    show_config,
    size_of,
)
from redif_ray.config import load
from redif_ray.errors import UserError

LESS_MEMORY = (
    ". To reduce the memory of a worker, change learner.microbatch, learner.activation_checkpointing=true, "
    "networks.precision=bfloat16, student.lora.rank, rollout.unit_groups or evaluation.batch"
)


def distill(
    config: ConfigFile,
    overrides: Overrides = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run of this name from its last checkpoint.")
    ] = False,
    print_config: PrintConfig = False,
) -> None:
    """Distil a teacher into a few-step student: the main job.

    Example: redif distill configs/fashion_mnist.yaml learner.lr=1e-5 rollout.max_workers=4 run.name=first run.root=DIR
    """
    if print_config:
        show_config(config, overrides)
    api.distill(config, *overrides or [], resume=resume, console=console)


def status(
    run: Annotated[Path, typer.Argument(help="The folder of a run or of a search.")],
    follow: Annotated[bool, typer.Option("--follow", help="Keep printing until the run ends.")] = False,
) -> None:
    """Print the state of a run from its folder alone: progress, speed, last validation and losses.

    Example: redif status runs/demo --follow
    """
    from redif_ray.trials.status import follow as watch
    from redif_ray.trials.status import show

    (watch if follow else show)(run, console)


def evaluate(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    overrides: Overrides = None,
    checkpoint: Annotated[str, typer.Option(help="best, warm_start, or a folder below checkpoints/.")] = "best",
    height: Height = None,
    width: Width = None,
) -> None:
    """Measure a run's student and its control arms again, on as many held-out noises as you like, also at another size.

    Example: redif evaluate runs/demo evaluation.held_out=10000
    """
    size = size_of(height, width)
    found = api.evaluate_run(run, *overrides or [], checkpoint=checkpoint, size=size, console=console)
    console.print(f"written to {found.file}")


def doctor(
    config: Annotated[
        str | None,
        typer.Argument(help="A configuration whose run is checked against this machine.", metavar="[CONFIG]"),
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Report what this machine can run; with a configuration, also whether its run fits.

    Example: redif doctor configs/fashion_mnist.yaml rollout.max_workers=4
    """
    if config is None:
        from redif_ray.doctor import report

        console.print(report())
        return
    from redif_ray.job.launch import check_model

    given = load(config, overrides or [])
    check_model(given)
    from redif_ray.job import requirements  # torch and diffusers take seconds
    from redif_ray.planning.paths import absolute

    resolved = absolute(given)
    view, lacking = requirements.report(resolved)
    console.print(view)
    console.print(f"time: {requirements.duration(resolved)}", highlight=False)
    if elsewhere := busy():
        console.print(elsewhere, highlight=False, soft_wrap=True)
    if lacking:
        names = ", ".join(need.what for need in lacking)
        memory = any("memory" in need.what for need in lacking)
        raise UserError(
            f"this run does not fit: it needs more than there is of {names}. Fewer workers need fewer devices"
            f"{LESS_MEMORY if memory else ''}"
        )
    console.print("this run fits", highlight=False)
