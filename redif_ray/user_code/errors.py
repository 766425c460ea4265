"""Errors of user code, told with the lines of the user's files that they come from."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from redif_ray.errors import UserError

LONGEST = 2000  # characters of an error's own text


class UserCodeError(UserError, RuntimeError):
    """User code that cannot be imported, fails, ends its process or changes settings; the caller adds its name."""


class Late(BaseException):
    """The time limit of user code is over. Not an `Exception`, which such code catches and ignores more often."""


def described(error: BaseException) -> str:
    """Return an error's text and its place in user code: a message from another process has no traceback."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.line and not ours(f.filename)]
    where = "".join(f"\n  {f.filename}:{f.lineno}, in {f.name}: {f.line}" for f in frames)
    try:
        text = str(error)
    except Exception as broken:  # the text of an error of the user's is user code too
        text = f"its text cannot be had ({type(broken).__name__})"
    return f"{type(error).__name__}: {text[:LONGEST]}{where}"


def ours(filename: str) -> bool:
    """Tell whether a file is one of this package, or one of Python's by which it calls user code."""
    return filename in (importlib.__file__, contextlib.__file__) or Path(__file__).parents[1] in Path(filename).parents


@contextmanager
def failures_named(what: str) -> Iterator[None]:
    """Raise UserCodeError, with the user's lines, for whatever user code in the block raises.

    `sys.exit` and other exceptions that are no `Exception` are included: they would end a worker, or the run, without a
    word. Errors that are meant for the user pass, as do the end of a time limit and the second Ctrl-C.
    """
    try:
        yield
    except (UserError, KeyboardInterrupt, Late):
        raise
    except BaseException as error:
        raise UserCodeError(f"{what}: {described(error)}") from None  # contextlib lets a StopIteration pass as a cause


@contextmanager
def exits_named() -> Iterator[None]:
    """Raise UserCodeError for a `sys.exit` in the block: only user code calls it there, and nobody would be told."""
    try:
        yield
    except SystemExit as error:
        raise UserCodeError(f"code of your own ended the process: {described(error)}") from error


@contextmanager
def hard_exits_named() -> Iterator[None]:
    """Raise UserCodeError for an `os._exit` of user code in the block, which would end this process without a word.

    This package and libraries may exit so, and so may processes that are forked in the block.
    """
    leave, here = os._exit, os.getpid()

    def told(status: int) -> NoReturn:
        if os.getpid() != here or not _users(sys._getframe(1).f_code.co_filename):
            leave(status)
        raise UserCodeError(f"code of your own ended the process: os._exit({status})\n{_callers()}")

    os._exit = told
    try:
        yield
    finally:
        os._exit = leave


def _users(filename: str) -> bool:
    """Tell whether a file is neither one of this package nor one that is installed."""
    installed = {Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    return not ours(filename) and not installed & {*Path(filename).parents}


def _callers() -> str:
    frames = [frame for frame in traceback.extract_stack() if frame.line and _users(frame.filename)]
    return "\n".join(f"  {f.filename}:{f.lineno}, in {f.name}: {f.line}" for f in frames)
