"""Python objects in a configuration, which a run's workers and its resumption need as files.

Each is written once, under a name that its content decides, to `<run.root>/.inputs`: a resumed run with the same
function finds the same file, and one with another function is refused as any other change of its configuration.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from redif_ray.api.functions import importable, module_text
from redif_ray.config import ConfigError
from redif_ray.errors import brief
from redif_ray.files import atomic_file

INPUTS = ".inputs"


def stored(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration tree with each function and each list of captions or labels replaced by a file's name.

    A function as a reward term stands for a term that has it as its option `callable`. Raises ConfigError.
    """
    run = tree.get("run")
    root = run.get("root") if isinstance(run, Mapping) else None
    folder = Path(root or "runs").resolve() / INPUTS
    return {name: _stored(value, (name,), folder) for name, value in tree.items()}


def _stored(value: Any, path: tuple[str, ...], folder: Path) -> Any:
    if isinstance(value, Mapping):
        return {name: _stored(inner, (*path, name), folder) for name, inner in value.items()}
    if callable(value):
        name = _function(value, ".".join(path), folder)
        return {"options": {"callable": name}} if path[:2] == ("reward", "terms") and len(path) == 3 else name
    if path == ("conditions", "source") and not isinstance(value, str | Path | None):
        return _column(list(value), folder)
    return str(value) if isinstance(value, Path) else value


def _function(function: Callable[..., Any], key: str, folder: Path) -> str:
    """Return the name of a function as the configuration has it: `module:name`, or that of a file with its source."""
    try:
        if importable(function):
            return f"{function.__module__}:{function.__name__}"
        text = module_text(function)
    except ValueError as error:
        raise ConfigError(f"{key}: {error}") from None
    name = function.__name__
    return f"{_kept(folder, name, '.py', text, lambda file: file.write_text(text))}:{name}"


def _column(values: list[Any], folder: Path) -> str:
    """Return the file of a list: Parquet of captions or of labels, JSON lines of mappings with captions.

    A column of Parquet has one type, so that what one mapping lacks and another has would be there as None.
    """
    mappings = [isinstance(value, Mapping) for value in values]
    try:
        if not any(mappings):
            return _kept(folder, "conditions", ".parquet", json.dumps(values), partial(_write_column, values))
        if not all(mappings):
            raise TypeError(f"{brief(values[mappings.index(False)])} is no mapping, and others are")
        lines = "".join(json.dumps(dict(value)) + "\n" for value in values)
        return _kept(folder, "conditions", ".jsonl", lines, lambda file: file.write_text(lines))
    except TypeError as error:
        raise ConfigError(
            f"conditions.source: {error}; expected captions alone, or labels alone, or mappings with a caption"
        ) from error


def _write_column(values: list[Any], file: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    column = "label" if values and isinstance(values[0], int) else "caption"
    try:
        pq.write_table(pa.table({column: values}), file)
    except pa.ArrowException as error:
        raise TypeError(error) from error


def _kept(folder: Path, name: str, suffix: str, content: str, write: Callable[[Path], object]) -> str:
    """Return the path of the file with this content, which is written unless it is there."""
    file = folder / f"{name}-{hashlib.sha256(content.encode()).hexdigest()[:16]}{suffix}"
    try:
        if not file.exists():
            folder.mkdir(parents=True, exist_ok=True)
            with atomic_file(file) as partial_file:
                write(partial_file)
    except OSError as error:
        raise ConfigError(f"cannot write {file}: {error}; set run.root to a folder that can be written") from error
    return str(file)
