"""Arguments and options that several commands have."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer
from pydantic import BaseModel
from rich.console import Console

from redif_ray.config import Config, explained, load
from redif_ray.errors import UserError

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
Family = Annotated[str | None, typer.Option(help="Your own code that loads the model, as in teacher.family.")]


def show_config(config: str | None, overrides: list[str] | None, model: type[BaseModel] = Config) -> None:
    """Print the configuration as a `model`, and end the command."""
    sys.stdout.write(explained(load(config, overrides or [], model)))
    raise typer.Exit


def keys_of(model: type[BaseModel]) -> Any:
    """Return the argument of overrides that names the keys of a configuration without sections."""
    keys = ", ".join(model.model_fields)
    return typer.Argument(help=f"Keys and their values, such as size=32. Keys: {keys}.", metavar="[KEY=VALUE]...")


def size_of(height: int | None, width: int | None) -> tuple[int, int] | None:
    """Return (height, width), or None where neither is given. Raises UserError where one of them is."""
    if (height is None) != (width is None):
        raise UserError("--height and --width: give both, or neither for the model's own size")
    return None if height is None or width is None else (height, width)
