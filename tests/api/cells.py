"""Functions as a notebook has them: of `__main__`, with a source that no module holds."""

from __future__ import annotations

import linecache
from itertools import count
from typing import Any

numbers = count()


def run_cell(source: str, names: dict[str, Any] | None = None) -> dict[str, Any]:
    """Run a cell and return the names of the notebook, `names` with those that the cell adds."""
    found = {"__name__": "__main__"} if names is None else names
    file = f"<cell {next(numbers)}>"
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    exec(compile(source, file, "exec"), found)
    return found
