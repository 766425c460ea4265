"""Commands that search: step schedules, and settings of a recipe."""

from __future__ import annotations

from typing import Annotated

import typer

from redif_ray import api
from redif_ray.commands.arguments import ConfigFile, Overrides, PrintConfig, console, show_config


def search(
    config: ConfigFile,
    overrides: Overrides = None,
    adaptive: Annotated[
        bool,
        typer.Option("--adaptive", help="After the search, train agents that choose each image's levels, and compare."),
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the search of this name.")] = False,
    print_config: PrintConfig = False,
) -> None:
    """Find the step schedules that bring a teacher, or a trained student, closest to the teacher's images.

    Example: redif search configs/fashion_mnist.yaml search.steps=[2,4] search.engine=both
    """
    if print_config:
        show_config(config, overrides)
    api.find_schedule(config, *overrides or [], adaptive=adaptive, resume=resume, console=console)


def sweep(
    config: ConfigFile,
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the sweep of this name.")] = False,
    print_config: PrintConfig = False,
) -> None:
    """Try settings of a recipe over whole runs, and test whether the best settings beat chance.

    Example: redif sweep configs/fashion_mnist.yaml "sweep.space.learner.lr=loguniform(1e-6, 1e-4)" sweep.trials=8
    """
    if print_config:
        show_config(config, overrides)
    api.run_sweep(config, *overrides or [], resume=resume, console=console)
