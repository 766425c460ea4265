"""Captions and labels read as conditions: text, tables or shards, local or behind a URI, or folders of these."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa

from redif_ray.config import ConfigError
from redif_ray.data.errors import DataError
from redif_ray.data.findings import Findings
from redif_ray.data.layouts import columns
from redif_ray.data.layouts.files import File, is_uri, lines_of
from redif_ray.data.layouts.rows import Row, Wanted
from redif_ray.data.layouts.source import read_source
from redif_ray.errors import brief

Value = TypeVar("Value", str, int)
Metadata = Mapping[str, Any]
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
    wanted = Wanted("labels" if kind is int else "captions", column=column)
    return [value for value, _ in _cells(source, wanted, kind, f"{key}={source}", findings or Findings(source))]


def read_captions(
    source: str, column: str | None, metadata: Sequence[str], *, findings: Findings | None = None
) -> list[tuple[str, Metadata]]:
    """Return each caption in `source` with the values of the columns `metadata`, by name; see `read_column`.

    Raises ConfigError naming the key, also for a source without such a column and for a value that JSON does not have.
    """
    where = f"conditions.source={source}"
    wanted = Wanted("captions", column=column, metadata=tuple(metadata))
    found = _cells(source, wanted, str, where, findings or Findings(source))
    return [(caption, _metadata(row, wanted, where)) for caption, row in found]


def read_edits(source: str, column: str | None, *, findings: Findings | None = None) -> Iterator[tuple[str, Row]]:
    """Yield each caption in `source` with its row, whose image is the picture that it changes; see `read_column`.

    Raises ConfigError naming the key, also for a source without pictures.
    """
    where = f"conditions.source={source}"
    wanted = Wanted("captions", column=column, pictures=True)
    for caption, row in _cells(source, wanted, str, where, findings or Findings(source)):
        if row.image is None:
            raise ConfigError(
                f"{where} holds captions alone; this teacher changes pictures, so expected a folder of images with a "
                f"metadata.jsonl of file_name and caption, or Parquet with {' or '.join(columns.SOURCES[:2])}"
            )
        yield caption, row


def _metadata(row: Row, wanted: Wanted, where: str) -> Metadata:
    if row.metadata is None and wanted.metadata:
        columns = ", ".join(wanted.metadata)
        raise ConfigError(f"{where} has no columns beside its captions; conditions.metadata asks for {columns}")
    return {name: _as_json(value, f"{where}: {name} of {row.where}") for name, value in (row.metadata or {}).items()}


def _as_json(value: Any, where: str) -> Any:
    """Return a value as it is read again from the JSON in which a run keeps it. Raises ConfigError for another one."""
    try:
        return json.loads(json.dumps(value, allow_nan=False, ensure_ascii=False).encode())
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"{where} is {brief(value)} ({error}); conditions.metadata takes texts, numbers, and lists and mappings of "
            "these"
        ) from None


def _cells(
    source: str, wanted: Wanted, kind: type[Value], where: str, findings: Findings
) -> Iterator[tuple[Value, Row]]:
    """Yield each value of `kind`, with the row that has it. Raises ConfigError."""
    empty = True
    try:
        for row in _rows(source, wanted, where, findings):
            cell = row.label if kind is int else row.caption
            for value in cell if isinstance(cell, list) else [cell]:
                if type(value) is not kind or (isinstance(value, str) and not value.strip()):
                    raise ConfigError(
                        f"{where} holds {brief(value)}; expected {_expected(kind)} in every row ({row.where})"
                    )
                empty = False
                yield value, row
    except (DataError, OSError, pa.ArrowException) as error:
        raise ConfigError(f"{where} cannot be read: {error}") from error
    if empty:
        raise ConfigError(f"{where} holds nothing; expected {_expected(kind)} in every row")


def _expected(kind: type) -> str:
    return "a text" if kind is str else "a whole number"


def _rows(source: str, wanted: Wanted, where: str, findings: Findings) -> Iterator[Row]:
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
    yield from read_source(source, wanted, findings).rows


def _number(line: str) -> Any:
    try:
        return int(line)
    except ValueError:
        return line
