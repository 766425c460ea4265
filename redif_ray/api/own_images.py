"""Commands that read a user's own images: the training of teachers and judges, and the reference images of judges."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from rich.console import Console

from redif_ray.api.commands import Recipe, resolved
from redif_ray.busy import busy
from redif_ray.classifiers.config import ClassifierConfig
from redif_ray.interrupt import stop_requests
from redif_ray.teacher.config import TeacherConfig


def train_teacher(
    recipe: Recipe,
    /,
    *overrides: str,
    resume: bool = False,
    on_report: Callable[[dict[str, float]], object] = lambda _: None,
    console: Console | None = None,
    **keys: Any,
) -> Path:
    """Train a small diffusion model on images (in any layout that `load_images` reads); return its diffusers folder.

    recipe, overrides, keys: see `load_config`, such as data="my_images", out="my_teacher", size=32.
    resume: continue a training that was interrupted.
    on_report: function that gets step, steps, loss, images_per_second and eta_seconds every 50 steps, or 10 seconds.
    console: where it is printed what the images are; None: the standard output.
    Raises UserError, and Interrupted after Ctrl-C, once a checkpoint is written.
    """
    config: TeacherConfig = resolved(recipe, overrides, keys, TeacherConfig)
    from redif_ray.teacher.training import check, folders, train

    out, work = folders(config)
    check(config, resume=resume)
    console = console or Console()
    images = look_at(config, console)
    tell(console, [f"samples after every {config.checkpoint_every:,} steps, until it ends: {work / 'samples'}"])
    if (elsewhere := busy()) and config.threads != 1:
        tell(console, [f"{elsewhere}; threads=1 is faster then, since threads wait for each other"])
    kept = f"{work} holds the training up to here; continue with the same command and --resume"
    with stop_requests(kept) as stop:
        train(
            config,
            images,
            resume=resume,
            report=lambda row: on_report({**row, "steps": config.steps}),
            stopped=lambda: stop.requested,
        )
        stop.check()
    return out


def look_at(config: TeacherConfig, console: Console) -> Any:
    """Return the images of a teacher's configuration, and print what was found and what was left out."""
    from redif_ray.teacher.training import read_images

    with console.status("reading the images"):
        images = read_images(config)
    tell(console, images.summary())
    return images


def train_judge(*overrides: str, console: Console | None = None, **keys: Any) -> Path:
    """Train a small classifier of labelled images, a judge or the encoder of a reward; return its folder.

    overrides, keys: see `load_config`, such as data="my_images", out="my_judge", size=32. console: where progress is
    printed; None: the standard output. Raises UserError and FileExistsError.
    """
    config: ClassifierConfig = resolved({}, overrides, keys, ClassifierConfig)
    from redif_ray.classifiers.training import read_images, train_classifier

    console = console or Console()
    with console.status("reading the images"):
        images, test = read_images(config)
    tell(console, [*images.summary(), f"  test: {len(test):,} other images"])

    def report(row: dict[str, float]) -> None:
        left = f"{row['eta_seconds']:.0f} s left"
        tell(console, [f"epoch {row['epoch']}/{config.epochs}  loss {row['loss']:.4f}  {left}"])

    return train_classifier(config, (images, test), report=report)


def make_reference(
    data: str | Path,
    judge: str | Path,
    *,
    split: str = "test",
    background: str = "white",
    console: Console | None = None,
) -> Path:
    """Write the images with which a judge compares beside it, in the size and colours that it takes; return the file.

    data: images in any layout that `load_images` reads. judge: the folder that `train_judge` returned. split: of data
    that have splits; others are taken whole. background: colour behind transparent pixels. console: see `train_judge`.
    Raises UserError and FileExistsError.
    """
    from redif_ray.evaluation.own_reference import read_reference, write_reference

    console = console or Console()
    with console.status("reading the images"):
        images = read_reference(str(data), Path(judge), split=split, background=background)
    tell(console, images.summary())
    if not images.findings.splits:
        tell(console, ["  note: the data have no splits, so images that the judge was trained on may be among them"])
    return write_reference(images, Path(judge))


def tell(console: Console, lines: Iterable[str]) -> None:
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def quoted(path: str | Path) -> str:
    """Return a path as it can be pasted into a shell."""
    return shlex.quote(str(path))
