"""`redif`, the command line. Every error that a user can cause ends in one message and exit code 2."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from pydantic import BaseModel
from rich.console import Console
from rich.markup import escape
from typer.core import TyperGroup

from redif_ray import __version__, api
from redif_ray.api import own_images
from redif_ray.api.own_images import quoted
from redif_ray.classifiers.config import ClassifierConfig
from redif_ray.config import Config, Precision, explained, load
from redif_ray.errors import Notice, UserError, brief
from redif_ray.masking import masked
from redif_ray.streams import keep_streams
from redif_ray.teacher.config import TeacherConfig
from redif_ray.user_code.errors import exits_named, hard_exits_named


class Commands(TyperGroup):
    """The commands, none of which ends by an exit of the user's own code, as if all were done."""

    def invoke(self, ctx: Any) -> Any:
        with exits_named(), hard_exits_named():
            return super().invoke(ctx)


app = typer.Typer(
    name="redif",
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
RUN, STUDENT, SEARCH, OWN = "Runs", "Students", "Search", "Your own models"  # groups of commands
LESS_MEMORY = (
    ". To reduce the memory of a worker, change learner.microbatch, learner.activation_checkpointing=true, "
    "networks.precision=bfloat16, student.lora.rank, rollout.unit_groups or evaluation.batch"
)
console = Console()
complaints = Console(stderr=True)

ConfigFile = Annotated[
    str, typer.Argument(help="A YAML file, or the name of a shipped configuration.", metavar="CONFIG")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        help="Dotted keys that override it, such as learner.lr=1e-5 run.name=first.", metavar="[KEY=VALUE]..."
    ),
]
Height = Annotated[int | None, typer.Option(min=1, help="Height in pixels. Default: the model's own.")]
Width = Annotated[int | None, typer.Option(min=1, help="Width in pixels. Default: the model's own.")]
PrintConfig = Annotated[
    bool, typer.Option("--print-config", help="Print the resolved configuration with explanations, and stop.")
]


def _print_config(config: str | None, overrides: list[str] | None, model: type[BaseModel] = Config) -> None:
    """Print the configuration as a `model`, and end the command."""
    sys.stdout.write(explained(load(config, overrides or [], model)))
    raise typer.Exit


def keys_of(model: type[BaseModel]) -> Any:
    """Return the argument of overrides that names the keys of a configuration without sections."""
    keys = ", ".join(model.model_fields)
    return typer.Argument(help=f"Keys and their values, such as size=32. Keys: {keys}.", metavar="[KEY=VALUE]...")


def _size(height: int | None, width: int | None) -> tuple[int, int] | None:
    """Return (height, width), or None where neither is given. Raises UserError where one of them is."""
    if (height is None) != (width is None):
        raise UserError("--height and --width: give both, or neither for the model's own size")
    return None if height is None or width is None else (height, width)


def _show_version(asked: bool) -> None:
    """Print the version, and end the command."""
    if asked:
        console.print(__version__)
        raise typer.Exit


@app.callback()
def redif(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version, and stop.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Turn a slow diffusion model into a few-step one by reinforcement learning, on a Ray cluster."""


@app.command(rich_help_panel=RUN)
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
        _print_config(config, overrides)
    api.distill(config, *overrides or [], resume=resume, console=console)


@app.command(rich_help_panel=RUN)
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


@app.command(rich_help_panel=RUN)
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
    size = _size(height, width)
    found = api.evaluate_run(run, *overrides or [], checkpoint=checkpoint, size=size, console=console)
    console.print(f"written to {found.file}")


@app.command(rich_help_panel=RUN)
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
    from redif_ray.planning.paths import absolute

    resolved = absolute(load(config, overrides or []))
    check_model(resolved)  # before torch and diffusers are imported
    from redif_ray.job import requirements

    view, lacking = requirements.report(resolved)
    console.print(view)
    console.print(f"time: {requirements.duration(resolved)}", highlight=False)
    if lacking:
        names = ", ".join(need.what for need in lacking)
        memory = any("memory" in need.what for need in lacking)
        raise UserError(
            f"this run does not fit: it needs more than there is of {names}. Fewer workers need fewer devices"
            f"{LESS_MEMORY if memory else ''}"
        )


@app.command(rich_help_panel=STUDENT)
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
    label: Annotated[int | None, typer.Option(help="The only class to draw. Default: all classes in turn.")] = None,
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
    family: Annotated[
        str | None, typer.Option(help="Your own code that loads the model, as in teacher.family.")
    ] = None,
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
        size=_size(height, width),
        device=device,
        precision=precision,
        console=complaints,
    )
    console.print(f"{number} image{'s' * (number != 1)} in {images or out}")


@app.command(rich_help_panel=STUDENT)
def export(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    out: Annotated[Path, typer.Argument(help="The diffusers folder to write; must not exist.")],
    checkpoint: Annotated[str, typer.Option(help="best, warm_start, or a folder below checkpoints/.")] = "best",
    schedule: Annotated[Path | None, typer.Option(help="The schedule.yaml of a search, in place of the run's.")] = None,
) -> None:
    """Write a checkpoint of a run as a diffusers folder that loads without redif-ray."""
    console.print(f"student written to {api.export_student(run, out, checkpoint=checkpoint, schedule=schedule)}")


@app.command(rich_help_panel=SEARCH)
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
        _print_config(config, overrides)
    api.find_schedule(config, *overrides or [], adaptive=adaptive, resume=resume, console=console)


@app.command(rich_help_panel=SEARCH)
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
        _print_config(config, overrides)
    api.run_sweep(config, *overrides or [], resume=resume, console=console)


@app.command("train-teacher", rich_help_panel=OWN)
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
        _print_config(config, overrides, TeacherConfig)
    if dry_run:
        own_images.look_at(load(config, overrides or [], TeacherConfig), console)
        return
    from redif_ray.teacher.progress import shown

    with shown(console) as report:
        folder = api.train_teacher(config, *overrides or [], resume=resume, on_report=report, console=console)
    own_images.tell(console, [f"teacher saved in {folder}", f"see it: redif sample {quoted(folder)}"])


@app.command("train-judge", rich_help_panel=OWN)
def train_judge(
    overrides: Annotated[list[str] | None, keys_of(ClassifierConfig)] = None, print_config: PrintConfig = False
) -> None:
    """Train a small classifier of your labelled images, as a judge of evaluations or as the encoder of a reward.

    Example: redif train-judge data=my_images/ size=32 out=my_judge name=mine
    """
    if print_config:
        _print_config(None, overrides, ClassifierConfig)
    folder = api.train_judge(*overrides or [], console=console)
    command = f"redif make-reference DATA {quoted(folder)}"
    own_images.tell(console, [f"classifier saved in {folder}", f"as a judge, it needs reference images: {command}"])


@app.command("make-reference", rich_help_panel=OWN)
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


@app.command("check-family", rich_help_panel=OWN)
def check_family(
    model: Annotated[str, typer.Argument(help="A diffusers folder, small or real; random weights will do.")],
    family: Annotated[
        str | None, typer.Option(help="Your own code that loads the model, as in teacher.family.")
    ] = None,
    height: Height = None,
    width: Width = None,
) -> None:
    """Check the code of a model family against diffusers' pipeline and what redif-ray expects of it.

    Example: redif check-family small_pipeline/ --family my_family.py:load
    """
    size = _size(height, width)
    from redif_ray.job.check_family import check_family as findings

    failed = 0
    for finding in findings(model, family, size):
        failed += not finding.passed
        mark = "[green]ok[/]    " if finding.passed else "[bold red]wrong[/] "
        console.print(f"{mark} {escape(finding.name)}: {escape(finding.text)}", highlight=False)
    if failed:
        raise UserError(f"{failed} checks failed; a run with this family would go wrong without a word")


def main() -> None:
    """Run the console script `redif`."""
    keep_streams()
    try:
        app()
    except Notice as notice:
        console.print(str(notice), highlight=False, soft_wrap=True)
        sys.exit(notice.exit_code)
    except (UserError, FileExistsError, FileNotFoundError, FloatingPointError) as error:
        _complain(error)
    except Exception as error:
        from redif_ray.faults import explained  # imports Ray

        told = explained(error, "run the command again, with --resume if it has that option")
        if isinstance(told, UserError):
            _complain(told)
        if isinstance(error, OSError) and error.filename is not None:  # that cannot be read or written
            _complain(UserError(f"{brief(error.filename)}: {error.strerror}"))
        sys.stderr.write(masked(traceback.format_exc()))
        sys.exit(1)


def _complain(error: Exception) -> NoReturn:
    """Print an error that a user can mend, and end the command with its exit code."""
    complaints.print("[bold red]error:[/]", escape(masked(str(error))), highlight=False, soft_wrap=True)
    sys.exit(error.exit_code if isinstance(error, UserError) else UserError.exit_code)


if __name__ == "__main__":
    main()
