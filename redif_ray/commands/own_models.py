"""Commands of models of your own: a teacher, a judge with its reference images, and a model family."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from redif_ray import api
from redif_ray.api import own_images
from redif_ray.api.own_images import quoted
from redif_ray.classifiers.config import ClassifierConfig
from redif_ray.commands.arguments import (
    ConfigFile,
    Family,
    Height,
    PrintConfig,
    Width,
    console,
    keys_of,
    show_config,
    size_of,
)
from redif_ray.config import load
from redif_ray.errors import UserError
from redif_ray.teacher.config import TeacherConfig


def train_teacher(
    config: ConfigFile,
    overrides: Annotated[list[str] | None, keys_of(TeacherConfig)] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue a training that was interrupted.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Read the images, say what was found and what was left out, and stop.")
    ] = False,
    print_config: PrintConfig = False,
) -> None:
    """Train a small diffusion model on images of your own (folders, Parquet, tar shards, npz or IDX files).

    Example: redif train-teacher configs/teacher_fashion_mnist.yaml data=my_images/ out=my_teacher size=32
    """
    if print_config:
        show_config(config, overrides, TeacherConfig)
    if dry_run:
        own_images.look_at(load(config, overrides or [], TeacherConfig), console)
        return
    from redif_ray.teacher.progress import shown

    with shown(console) as report:
        folder = api.train_teacher(config, *overrides or [], resume=resume, on_report=report, console=console)
    own_images.tell(console, [f"teacher saved in {folder}", f"see it: redif sample {quoted(folder)}"])


def train_judge(
    overrides: Annotated[list[str] | None, keys_of(ClassifierConfig)] = None, print_config: PrintConfig = False
) -> None:
    """Train a small classifier of your labelled images, as a judge of evaluations or as the encoder of a reward.

    Example: redif train-judge data=my_images/ size=32 out=my_judge name=mine
    """
    if print_config:
        show_config(None, overrides, ClassifierConfig)
    folder = api.train_judge(*overrides or [], console=console)
    command = f"redif make-reference DATA {quoted(folder)}"
    own_images.tell(console, [f"classifier saved in {folder}", f"as a judge, it needs reference images: {command}"])


def make_reference(
    data: Annotated[str, typer.Argument(help="Images in any layout of train-teacher.")],
    judge: Annotated[Path, typer.Argument(help="The folder of a classifier that redif train-judge wrote.")],
    split: Annotated[
        str, typer.Option(help="train, validation or test, of data that have splits; others are taken whole.")
    ] = "test",
    background: Annotated[str, typer.Option(help="Colour behind transparent pixels: a name, or #rrggbb.")] = "white",
) -> None:
    """Write the images with which a judge compares, beside it, in the size and the colours that it takes.

    Example: redif make-reference my_images/ my_judge
    """
    path = api.make_reference(data, judge, split=split, background=background, console=console)
    own_images.tell(console, [f"reference images in {path}", f"use them: evaluation.judge={quoted(judge)}"])


def check_family(
    model: Annotated[str, typer.Argument(help="A diffusers folder, small or real; random weights will do.")],
    family: Family = None,
    height: Height = None,
    width: Width = None,
) -> None:
    """Check the code of a model family against diffusers' pipeline and what redif-ray expects of it.

    Example: redif check-family small_pipeline/ --family my_family.py:load
    """
    size = size_of(height, width)
    from redif_ray.job.check_family import check_family as findings

    marks = {True: "[green]ok[/]      ", False: "[bold red]wrong[/]   ", None: "[yellow]not made[/]"}
    counts = Counter[bool | None]()
    for finding in findings(model, family, size):
        counts[finding.passed] += 1
        console.print(f"{marks[finding.passed]} {escape(finding.name)}: {escape(finding.text)}", highlight=False)
    if counts[False]:
        raise UserError(f"{counts[False]} checks failed; a run with this family would go wrong without a word")
    console.print(f"{counts[True]} checks passed" + (f", {counts[None]} could not be made" if counts[None] else ""))
