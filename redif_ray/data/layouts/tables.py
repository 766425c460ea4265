"""Tables: Parquet, CSV and JSON lines, read a few rows at a time and only in the columns that are asked for."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from redif_ray.data.errors import DataError, reading
from redif_ray.data.layouts.columns import features
from redif_ray.data.layouts.files import File, lines_of, text_of
from redif_ray.errors import listed

CLASSES = b"redif.classes"  # metadata key of a Parquet file for the names of its classes
SUFFIXES = (".parquet", ".jsonl", ".ndjson", ".csv", ".tsv", ".json")
MOST_ROWS = 10**8
IMAGES_AT_ONCE, TEXTS_AT_ONCE = 16, 4096


@dataclass(frozen=True, slots=True)
class Table:
    """A table.

    name: of its file. columns: their names. read: function from columns to their cells, row by row. types: of the
    columns, in words, where the format has types. features: see `columns.features`. classes: names of its labels.
    typed: whether its numbers are numbers, and not text.
    """

    name: str
    columns: tuple[str, ...]
    read: Callable[[Sequence[str]], Iterator[tuple[Any, ...]]]
    types: dict[str, str] = field(default_factory=dict)
    features: dict[str, dict[str, Any]] = field(default_factory=dict)
    classes: tuple[str, ...] | None = None
    typed: bool = True


def open_table(file: File) -> Table:
    """Open the table in a file. Raises DataError naming the file."""
    with reading(file.name, f"a readable {'Parquet' if file.suffix == '.parquet' else file.suffix} file"):
        if file.suffix == ".parquet":
            return _parquet(file)
        return _csv(file) if file.suffix in (".csv", ".tsv") else _json(file)


def _parquet(file: File) -> Table:
    with file.open() as stream, pq.ParquetFile(stream) as opened:
        schema, rows = opened.schema_arrow, opened.metadata.num_rows
    if rows > MOST_ROWS:
        raise DataError(f"{file.name} says that it has {rows:,} rows; expected {MOST_ROWS:,} at most")
    twice = {name for name in schema.names if schema.names.count(name) > 1}
    if twice:
        raise DataError(f"{file.name} has the column {min(twice)} twice; rename one")

    def read(columns: Sequence[str]) -> Iterator[tuple[Any, ...]]:
        binary = any(_is_binary(schema.field(column).type) for column in columns)
        readable = reading(file.name, "a readable Parquet file")
        with readable, file.open() as stream, pq.ParquetFile(stream) as opened:
            size = IMAGES_AT_ONCE if binary else TEXTS_AT_ONCE
            for batch in opened.iter_batches(batch_size=size, columns=list(columns)):
                yield from zip(*(batch[column].to_pylist() for column in columns), strict=True)

    names = (schema.metadata or {}).get(CLASSES)
    types = {field.name: str(field.type) for field in schema}
    classes = tuple(json.loads(names)) if names else None
    return Table(file.name, tuple(schema.names), read, types, features(schema.metadata), classes)


def _is_binary(type: pa.DataType) -> bool:
    return bool(pa.types.is_binary(type) or pa.types.is_large_binary(type) or pa.types.is_struct(type))


def _csv(file: File) -> Table:
    text = text_of(file)
    header = text.partition("\n")[0]
    mark = "\t" if file.suffix == ".tsv" else max(",;\t|", key=header.count)
    cells = [row for row in csv.reader(io.StringIO(text, newline=""), delimiter=mark, strict=True) if row]
    columns = [column.strip() for column in cells[0]] if cells else []
    if len(set(columns)) < len(columns):
        raise DataError(f"{file.name} names a column twice: {listed(columns)}")
    for number, row in enumerate(cells[1:], 2):
        if len(row) != len(columns):
            raise DataError(
                f"{file.name} row {number} has {len(row)} fields for the {len(columns)} columns {listed(columns)}; "
                f"put texts that hold {mark!r} in double quotes"
            )
    return _of_rows(file.name, [dict(zip(columns, row, strict=True)) for row in cells[1:]], typed=False)


def _json(file: File) -> Table:
    """Read JSON lines or, in a .json file, also one array of objects."""
    rows = _whole(file) if file.suffix == ".json" else None
    if rows is None:
        rows = [parsed(line, f"{file.name} line {number}") for number, line in lines_of(file)]
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise DataError(f"{file.name} row {number} is {type(row).__name__}; expected an object, as {{...}}")
    return _of_rows(file.name, rows, typed=True)


def _whole(file: File) -> list[Any] | None:
    try:
        value = json.loads(text_of(file))
    except DataError:
        raise
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, list) else [value]


def parsed(text: str, where: str) -> Any:
    """Return the value of a JSON text. Raises DataError."""
    try:
        return json.loads(text)
    except ValueError as error:
        raise DataError(f"{where} cannot be read as JSON: {error}") from None
    except RecursionError:
        raise DataError(f"{where} cannot be read as JSON: it is nested too deeply") from None


def _of_rows(name: str, rows: list[dict[str, Any]], *, typed: bool) -> Table:
    columns = tuple(dict.fromkeys(column for row in rows for column in row))

    def read(wanted: Sequence[str]) -> Iterator[tuple[Any, ...]]:
        return (tuple(row.get(column) for column in wanted) for row in rows)

    return Table(name, columns, read, typed=typed)
