"""Captions and labels read as conditions: text, tables or shards, local or behind a URI, or folders of these."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa

from redif_ray.config import ConfigError
from redif_ray.data.errors import DataError
from redif_ray.data.findings import Findings
from redif_ray.data.layouts.files import File, is_uri, lines_of
from redif_ray.data.layouts.rows import Row, Wanted
from redif_ray.data.layouts.source import read_source

Value = TypeVar("Value", str, int)
SHIPPED = Path(__file__).parents[1] / "assets" / "captions"
PROMPTS = "prompts"  # the shipped list that is used if conditions.source is unset


def read_column(
    source: str,
    column: str | None,
    kind: type[Value],
    *,
    key: str = "conditions.source",
    findings: Findings | None = None,
) -> list[Value]:
    """Return all values of `kind` in `source`, in its order.

    source: the name of a shipped list; a .txt file with one value a line; a table or a tar shard, or the URI of one; or
        a folder with metadata tables, with images that have a .txt beside them, or with tables or shards.
    column: the column of a table; None: the first with a usual name. A cell may be a list of values.
    key: what the user set to `source`. findings: where it is noted what is left out.
    Raises ConfigError naming the key.
    """
    where = f"{key}={source}"
    values: list[Value] = []
    row = None
    try:
        for row in _rows(source, column, kind, where, findings or Findings(source)):
            cell = row.label if kind is int else row.caption
            for value in cell if isinstance(cell, list) else [cell]:
                if type(value) is not kind or (isinstance(value, str) and not value.strip()):
                    raise ConfigError(f"{where} holds {value!r}; expected {_expected(kind)} in every row ({row.where})")
                values.append(value)
    except (DataError, OSError, pa.ArrowException) as error:
        raise ConfigError(f"{where} cannot be read: {error}") from error
    if not values:
        raise ConfigError(f"{where} holds nothing; expected {_expected(kind)} in every row")
    return values


def _expected(kind: type) -> str:
    return "a text" if kind is str else "a whole number"


def _rows(source: str, column: str | None, kind: type, where: str, findings: Findings) -> Iterator[Row]:
    path = Path(source).expanduser()
    local = not is_uri(source)
    if local and not path.exists():
        path = SHIPPED / f"{source}.txt"
        if not path.exists():
            names = ", ".join(sorted(p.stem for p in SHIPPED.glob("*.txt")))
            raise ConfigError(f"{where}: no such file or folder; expected one, a URI, or a shipped list ({names})")
    file = File.of(path) if local else File.of_uri(source)
    if file.suffix == ".txt" and not (local and path.is_dir()):
        for number, line in lines_of(file):
            yield Row(f"{file.name} line {number}", label=_number(line), caption=line)
        return
    what: Any = "labels" if kind is int else "captions"
    yield from read_source(source, Wanted(what, column=column), findings).rows


def _number(line: str) -> Any:
    try:
        return int(line)
    except ValueError:
        return line
