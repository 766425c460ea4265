"""`redif`, the command line. Every error that a user can cause ends in one message and exit code 2."""

from __future__ import annotations

import sys
import traceback
from typing import Annotated, Any, NoReturn

import typer
from rich.markup import escape
from typer.core import TyperGroup

from redif_ray import __version__
from redif_ray.busy import share_cores
from redif_ray.commands import own_models, runs, searches, students
from redif_ray.commands.arguments import complaints, console
from redif_ray.errors import Notice, UserError, brief
from redif_ray.masking import masked
from redif_ray.streams import keep_streams
from redif_ray.user_code.errors import exits_named, hard_exits_named

GROUPS = {  # as `redif --help` shows them
    "Runs": (runs.distill, runs.status, runs.evaluate, runs.doctor),
    "Students": (students.sample, students.export),
    "Search": (searches.search, searches.sweep),
    "Your own models": (
        own_models.train_teacher,
        own_models.train_judge,
        own_models.make_reference,
        own_models.check_family,
    ),
}


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
for group, commands in GROUPS.items():
    for command in commands:
        app.command(rich_help_panel=group)(command)


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


def main() -> None:
    """Run the console script `redif`."""
    keep_streams()
    share_cores()
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
