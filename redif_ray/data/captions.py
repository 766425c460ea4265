"""Captions and labels read from files: text, JSON lines, Parquet or a folder of these, local or behind a URI."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
from pyarrow import fs

from redif_ray.config import ConfigError
from redif_ray.config.uris import revealed

Value = TypeVar("Value", str, int)
SHIPPED = Path(__file__).parents[1] / "assets" / "captions"
PROMPTS = "prompts"  # the shipped list that is used if conditions.source is unset
COLUMNS: dict[type, Sequence[str]] = {str: ("caption", "text", "prompt"), int: ("label", "class")}
FORMATS = {".parquet": "parquet", ".jsonl": "json", ".ndjson": "json"}
METADATA = ("metadata.parquet", "metadata.jsonl")  # an image folder's table in the datasets library


def read_column(source: str, column: str | None, kind: type[Value], *, key: str = "conditions.source") -> list[Value]:
    """Return all values of `kind` in `source`, in its order.

    source: the name of a shipped list; a .txt file with one value a line; a .jsonl or .parquet file, or the URI of one;
        or a folder with `metadata.parquet` or `metadata.jsonl`, with such tables, or with .txt files of one caption.
    column: the column of a table; None: the first of `COLUMNS[kind]` that exists. A cell may be a list of values.
    key: what the user set to `source`. Raises ConfigError naming the key.
    """
    where = f"{key}={source}"
    try:
        values = list(_read(source, column, kind, where))
    except (pa.ArrowException, OSError, UnicodeDecodeError, NotImplementedError) as error:
        raise ConfigError(f"{where} cannot be read: {error}") from error
    wrong = [v for v in values if type(v) is not kind or v == ""]
    if wrong or not values:
        found = f"holds {wrong[0]!r}" if wrong else "holds nothing"
        raise ConfigError(f"{where} {found}; expected {'a text' if kind is str else 'a whole number'} in every row")
    return values


def _read(source: str, column: str | None, kind: type, where: str) -> Iterable[Any]:
    if re.match(r"\w+://|env:", source):
        filesystem, path = fs.FileSystem.from_uri(revealed(source, "conditions.source"))
        return _table([path], column, kind, where, filesystem)
    path = Path(source).expanduser()
    if path.is_dir():
        return _folder(path, column, kind, where)
    shipped = SHIPPED / f"{source}.txt"
    if not path.exists() and shipped.exists():
        path = shipped
    if not path.exists():
        names = ", ".join(sorted(p.stem for p in SHIPPED.glob("*.txt")))
        raise ConfigError(f"{where}: no such file or folder; expected one, a URI, or a shipped list ({names})")
    if path.suffix == ".txt":
        return _lines(path, kind, where)
    return _table([str(path)], column, kind, where)


def _folder(folder: Path, column: str | None, kind: type, where: str) -> Iterable[Any]:
    named = [folder / name for name in METADATA if (folder / name).is_file()]
    tables = named[:1] or sorted(p for p in folder.rglob("*") if p.suffix in FORMATS)
    if tables:
        return _table([str(p) for p in tables], column, kind, where)
    texts = sorted(folder.rglob("*.txt"))
    if not texts or kind is not str:
        raise ConfigError(f"{where} is a folder without {', '.join(FORMATS)} files, or a .txt beside each image")
    return (path.read_text().strip() for path in texts)


def _lines(path: Path, kind: type, where: str) -> list[Any]:
    lines = [line.strip() for line in path.read_text().splitlines() if line.strip()]
    try:
        return [kind(line) for line in lines]
    except ValueError as error:
        raise ConfigError(f"{where}: {error}; expected a whole number a line") from error


def _table(
    paths: list[str], column: str | None, kind: type, where: str, filesystem: fs.FileSystem | None = None
) -> list[Any]:
    import pyarrow.dataset as ds  # imports pandas too

    suffix = Path(paths[0]).suffix
    if suffix not in FORMATS:
        raise ConfigError(f"{where}: expected .txt, {', '.join(FORMATS)}, or a folder of them")
    data = ds.dataset(paths, filesystem=filesystem, format=FORMATS[suffix])
    wanted = [column] if column else [c for c in COLUMNS[kind] if c in data.schema.names][:1]
    if not wanted or wanted[0] not in data.schema.names:
        raise ConfigError(
            f"{where} has the columns {data.schema.names}; expected {column or ' or '.join(COLUMNS[kind])}"
            + ("" if column else ", or conditions.column to name another")
        )
    cells = data.to_table(columns=wanted)[wanted[0]].to_pylist()
    return [v for cell in cells for v in (cell if isinstance(cell, list) else [cell])]
