"""What fuzzers share: mutations of JSON-like trees, commands and calls within limits, and the check of how they end."""

from __future__ import annotations

import copy
import io
import random
import re
import resource
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import psutil

from redif_ray.errors import Notice, UserError

SECONDS, BYTES = 20.0, 10**9  # limits of an input: time, and memory above that of the process before it
TICK = 0.1  # seconds between two looks at the clock and the memory
SUCCESS, NOTICE, ERROR, USAGE = "success", "notice", "error", "usage"  # good ends
LIBRARIES = re.compile(r"Traceback|File \".*\", line \d+|errors\.pydantic\.dev|<class '|object at 0x")
NUMBERS: tuple[Any, ...] = (0, -1, 1, 2**31, 2**63, 2**64, 10**30, 0.5, -0.0, 1e-320, 1e308, float("inf"), float("nan"))
TEXTS = (
    "",
    " ",
    "~",
    "null",
    "no",
    "0100",
    "1e3",
    "1:30",
    "2026-11-23",
    "a #b",
    "a: b",
    "{a: b",
    "'",
    '"',
    "\x00",
    "\n",
    "../..",
    "/",
    "/dev/null",
    "file.py:name",
    "é\u0301\u202e\U0001f600",
    "10 GB",
    "1e-4s",
    "a" * 5000,
    "%s%n{0}",
    "[bold red]x[/]",
    "http://[::1",
    "env:NO_SUCH_VARIABLE",
)
ODD: tuple[Any, ...] = (*NUMBERS, *TEXTS, None, True, False, [], {}, [[]], {"": 1}, {"a": {"b": [1, None]}})


class Exceeded(BaseException):
    """An input took more time or memory than `SECONDS` or `BYTES`. No `except Exception` catches it."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The end of an input. kind: a good end, or else the name of the exception; text: what was said on stderr."""

    kind: str
    text: str
    seconds: float

    @property
    def good(self) -> bool:
        return self.kind in (SUCCESS, NOTICE, ERROR, USAGE)

    def problem(self, most_lines: int = 2) -> str | None:
        """Return what is wrong with this end, or None: an error must be short, plain and without a traceback."""
        if not self.good:
            return f"ended by {self.kind}: {self.text[-2000:]}"
        if self.kind != ERROR:
            return None
        if not self.text.strip():
            return "an error without a word"
        if (found := LIBRARIES.search(self.text)) is not None:
            return f"the error shows {found.group()!r}: {self.text[:1000]}"
        lines = self.text.strip().splitlines()
        if len(lines) > most_lines or max(map(len, lines)) > 1000:
            return f"the error has {len(lines)} lines, the longest of {max(map(len, lines))}: {self.text[:1000]}"
        return None


@contextmanager
def limited(seconds: float = SECONDS, most: int = BYTES) -> Iterator[None]:
    """Raise Exceeded in a block of the main thread that takes more time, or more memory above what it started with."""
    process, began = psutil.Process(), time.monotonic()
    start = process.memory_info().rss

    def look(*_: object) -> None:
        if (took := time.monotonic() - began) > seconds:
            raise Exceeded(f"more than {took:.0f} s")
        if (more := process.memory_info().rss - start) > most:
            raise Exceeded(f"{more / 1e9:.1f} GB more memory")

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    before = signal.signal(signal.SIGALRM, look)
    signal.setitimer(signal.ITIMER_REAL, TICK, TICK)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    risen = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # sees also what came and went between two looks
    if risen > peak and risen * 1024 - start > most:
        raise Exceeded(f"{(risen * 1024 - start) / 1e9:.1f} GB more memory at its peak")


def of_call(call: Callable[[], object]) -> Outcome:
    """Return how a call of the library ends; a UserError is a good end."""
    began = time.monotonic()
    try:
        with limited():
            call()
    except Notice as notice:
        kind, text = NOTICE, str(notice)
    except UserError as error:
        kind, text = ERROR, str(error)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        kind, text = type(error).__name__, _tail()
    else:
        kind, text = SUCCESS, ""
    return Outcome(kind, text, time.monotonic() - began)


def of_command(*words: str) -> Outcome:
    """Return how `redif WORDS` ends when it runs in this process. Exit code 2 with one error is a good end."""
    from redif_ray.cli import main

    out, err, began = io.StringIO(), io.StringIO(), time.monotonic()
    code: Any = 0
    try:
        with patch.object(sys, "argv", ["redif", *words]), redirect_stdout(out), redirect_stderr(err), limited():
            main()
    except SystemExit as end:
        code = end.code or 0
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return Outcome(type(error).__name__, _tail(), time.monotonic() - began)
    text = err.getvalue()
    if code == 2:
        kind = USAGE if text.lstrip().startswith("Usage:") else ERROR
    else:
        kind = SUCCESS if code == 0 else f"exit code {code}"
    return Outcome(kind, text.removeprefix("error: "), time.monotonic() - began)


def _tail() -> str:
    return traceback.format_exc()[-2000:]


def paths_of(tree: Any, above: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the path of every node of a tree but its root: the keys and indices that lead to the node."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [path for key, value in items for path in ((*above, key), *paths_of(value, (*above, key)))]


def mutated(tree: Any, chance: random.Random, odd: Sequence[Any] = ODD) -> Any:
    """Return a copy of a JSON-like tree with one mutation, which `chance` chooses.

    A node is replaced by an odd value, removed, doubled, moved to another place, nested deeper, or renamed.
    """
    tree = copy.deepcopy(tree)
    paths = paths_of(tree)
    if not paths:
        return chance.choice(odd)
    *above, key = chance.choice(paths)
    parent = tree
    for part in above:
        parent = parent[part]
    action = chance.choice(("replace", "replace", "replace", "scale", "remove", "double", "move", "nest", "rename"))
    value = parent[key]
    if action == "scale" and isinstance(value, int | float) and not isinstance(value, bool):
        parent[key] = value * chance.choice((-1, 0, 0.5, 1000, 10**12, 1e-9))
    elif action == "remove":
        del parent[key]
    elif action == "double" and isinstance(value, list | str):
        parent[key] = value + value
    elif action == "move":
        parent[key] = copy.deepcopy(_at(tree, chance.choice(paths)))
    elif action == "nest":
        parent[key] = [value] if chance.random() < 0.5 else {"a": value}
    elif action == "rename" and isinstance(parent, dict):
        parent[chance.choice((f"{key}s", str(key).upper(), f"{key}.x", ""))] = parent.pop(key)
    else:
        parent[key] = copy.deepcopy(chance.choice(odd))
    return tree


def _at(tree: Any, path: Sequence[Any]) -> Any:
    for part in path:
        tree = tree[part]
    return tree


Given = tuple[object, Callable[[], object]]  # an input as it is shown, and a call that uses it


class Tally:
    """Counts of ends by their kind, and the inputs that ended badly. name: of the fuzzer, for the printed counts."""

    def __init__(self, name: str) -> None:
        self.name, self.kinds, self.bad, self.longest = name, Counter[str](), list[str](), 0.0

    def add(self, given: object, outcome: Outcome, most_lines: int = 2) -> None:
        """Count an end. given: the input, which is shown where the end is bad."""
        self.kinds[outcome.kind] += 1
        self.longest = max(self.longest, outcome.seconds)
        if (problem := outcome.problem(most_lines)) is not None:
            self.bad.append(f"{str(given)[:400]}\n    {problem[:800]}")

    def check(self) -> None:
        """Print the counts, and fail with the first bad ends where there are any."""
        counts = ", ".join(f"{count} {kind}" for kind, count in self.kinds.most_common())
        print(f"\n{self.name}: {self.kinds.total()} inputs: {counts}; the longest took {self.longest:.1f} s")
        assert not self.bad, f"{len(self.bad)} inputs end badly:\n" + "\n".join(self.bad[:10])


def tried(make: Callable[[random.Random, Path], Given], count: int, folder: Path, most_lines: int = 2) -> None:
    """Try `count` inputs, each made by `make` from a seed in a new folder below `folder`, and check how all end."""
    tally = Tally(make.__name__)
    for seed in range(count):
        root = folder / str(seed)
        root.mkdir()
        given, call = make(random.Random(seed), root)
        tally.add(f"seed {seed}: {given}", of_call(call), most_lines)
        shutil.rmtree(root)
    tally.check()
