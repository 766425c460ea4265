"""List the files that one round of the algorithm runs through, to `optimizer.step`.

    python -m benchmarks.reading

It plays a policy round of the smoke recipe in one process, by `redif_ray/loop.py`, and notes each file of the package
in which a function is entered before the first optimiser step: the files on the call stack at that step, the files of
the rooms that are the algorithm, and the number of files of formulas, models and other leaves. Then it starts `redif
distill` and lists the files on the stack where the learner's ranks are started, and with these the ranks' own.
"""

from __future__ import annotations

import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any
from unittest.mock import patch

import torch

import redif_ray
from redif_ray import api, cli
from redif_ray.config import load
from redif_ray.job import distill, training
from redif_ray.learner import learner, ray_train
from redif_ray.loop import PlainLoop
from redif_ray.planning.paths import absolute

ROOT = Path(redif_ray.__file__).parent
ALGORITHM = ("loop.py", "planning", "workers", "methods", "learning")


class Reached(Exception):
    """The optimiser is about to make its step."""


def entered(call: Callable[[], Any]) -> tuple[list[str], list[str]]:
    """Return the files on the stack at the first optimiser step of `call`, and all files entered before it."""
    files: dict[str, None] = {}
    stack: dict[str, None] = {}

    def note(frame: FrameType, event: str, _: Any) -> None:
        path = Path(frame.f_code.co_filename)
        if event == "call" and ROOT in path.parents:
            files[str(path.relative_to(ROOT))] = None

    def stop(*_: Any, **__: Any) -> None:
        stack.update(dict.fromkeys(_stack()))
        raise Reached

    with patch.object(torch.optim.AdamW, "step", stop):
        sys.setprofile(note)
        try:
            call()
        except Reached:
            return list(stack), list(files)
        finally:
            sys.setprofile(None)
    raise ValueError("the call made no optimiser step")


def _stack() -> list[str]:
    """Return the files of the package on the stack, outermost first."""
    paths = (Path(frame.filename) for frame in traceback.extract_stack())
    return list(dict.fromkeys(str(path.relative_to(ROOT)) for path in paths if ROOT in path.parents))


def from_the_command(folder: str, rank: list[str]) -> list[str]:
    """Return the files from `redif distill` to the optimiser's step in a rank, which has the files `rank` on its stack.

    The run's actors are started; it ends where Ray Train would start the ranks.
    """
    found: list[str] = []

    def stop(*_: Any, **__: Any) -> None:
        found.extend(_stack())
        raise Reached

    with patch.object(distill, "training", stop):
        try:
            api.distill("smoke", f"run.root={folder}", "run.name=reading", "tracking.uri=off")
        except Reached:
            command, *started = (
                str(Path(m.__file__ or "").relative_to(ROOT)) for m in (cli, training, ray_train, learner)
            )
            return [command, *found, *started, *rank]
    raise ValueError("the command started no ranks")


def main() -> None:
    """Print the lists for the first policy round of the smoke recipe."""
    with tempfile.TemporaryDirectory() as folder:
        loop = PlainLoop(absolute(load("smoke", [f"run.root={folder}", "tracking.uri=off"])))
        first = loop.plan.phases[-1].first_round
        for round in range(first):
            loop.round(round)
        stack, files = entered(lambda: loop.round(first))
    algorithm = [file for file in files if file.split("/")[0] in ALGORITHM]
    print(f"{len(stack)} files on the stack at optimizer.step: {', '.join(stack)}")
    print(f"{len(algorithm)} files of the algorithm: {', '.join(algorithm)}")
    print(f"{len(files) - len(algorithm)} files of formulas, models, rewards, data and other leaves")
    with tempfile.TemporaryDirectory() as folder:
        chain = from_the_command(folder, stack[1:])
    print(f"{len(chain)} files from redif distill to optimizer.step: {', '.join(chain)}")


if __name__ == "__main__":
    main()
