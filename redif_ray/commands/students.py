"""Commands of students: draw images and export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from redif_ray import api
from redif_ray.commands.arguments import Family, Height, Width, complaints, console, size_of
from redif_ray.config import Precision


def sample(
    model: Annotated[str, typer.Argument(help="A run, an exported student, a diffusers folder or a shipped teacher.")],
    out: Annotated[Path, typer.Option(help="The PNG to write, one picture of all images.")] = Path("samples.png"),
    images: Annotated[
        Path | None,
        typer.Option(help="In place of --out: a new folder for one PNG an image and metadata.jsonl, which names them."),
    ] = None,
    count: Annotated[
        int | None, typer.Option(min=1, help="Number of images. Default: one for each of --captions, or 40.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    label: Annotated[
        int | None, typer.Option(help="The only class to draw. Default: all in turn, each of up to 12 in its columns.")
    ] = None,
    caption: Annotated[str | None, typer.Option(help="The caption that a text-to-image model draws.")] = None,
    captions: Annotated[
        Path | None, typer.Option(help="A .txt file of captions, one a line, which are drawn in turn.")
    ] = None,
    picture: Annotated[
        Path | None, typer.Option(help="The picture that an editing model changes as the captions say.")
    ] = None,
    height: Height = None,
    width: Width = None,
    device: Annotated[
        str | None, typer.Option(help="cuda, cuda:1, mps or cpu. Default: a GPU if there is one, or else cpu.")
    ] = None,
    precision: Annotated[
        Precision | None,
        typer.Option(
            help="Default: on a GPU 16 bits, if the model's files have them or it is large; everywhere else float32."
        ),
    ] = None,
    guidance: Annotated[
        float | None, typer.Option(min=0, help="Classifier-free guidance. Default: the student's own, or none.")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Number of steps of a model that has no schedule of its own.")] = 20,
    schedule: Annotated[
        Path | None, typer.Option(help="The schedule.yaml of a search, in place of the model's.")
    ] = None,
    family: Family = None,
    base: Annotated[
        str | None, typer.Option(help="What a checkpoint in one file was made from, as in teacher.base.")
    ] = None,
) -> None:
    """Draw images from a student (with its own schedule) or a teacher, as one picture or as a file each.

    Of a run that is not finished, the newest checkpoint is drawn.

    Example: redif sample runs/emoji --captions captions.txt --images samples/
    """
    from redif_ray.sample import sample as draw

    number = draw(
        model,
        images or out,
        count=count,
        seed=seed,
        label=label,
        caption=caption,
        captions=captions,
        picture=picture,
        separate=images is not None,
        steps=steps,
        guidance=guidance,
        schedule=schedule,
        family=family,
        base=base,
        size=size_of(height, width),
        device=device,
        precision=precision,
        console=complaints,
    )
    console.print(f"{number} image{'s' * (number != 1)} in {images or out}")


def export(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    out: Annotated[Path, typer.Argument(help="The diffusers folder to write; must not exist.")],
    checkpoint: Annotated[str, typer.Option(help="best, warm_start, or a folder below checkpoints/.")] = "best",
    schedule: Annotated[Path | None, typer.Option(help="The schedule.yaml of a search, in place of the run's.")] = None,
) -> None:
    """Write a checkpoint of a run as a diffusers folder that loads without redif-ray."""
    console.print(f"student written to {api.export_student(run, out, checkpoint=checkpoint, schedule=schedule)}")
