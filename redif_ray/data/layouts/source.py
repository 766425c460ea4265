"""One entry to all layouts of rows: a folder, a table or a shard."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from redif_ray.data.errors import DataError
from redif_ray.data.findings import Findings
from redif_ray.data.layouts import columns, shards, tables
from redif_ray.data.layouts.files import File, is_uri
from redif_ray.data.layouts.folder import read_folder
from redif_ray.data.layouts.rows import Layout, Wanted
from redif_ray.data.layouts.table_rows import read_tables


def read_source(source: str | Path, wanted: Wanted, findings: Findings) -> Layout:
    """Return the rows of a source, a path or the URI of a file. Raises DataError.

    What was found is noted in `findings`, in part only while the rows are read.
    """
    try:
        if isinstance(source, str) and is_uri(source):
            return _file(File.of_uri(source), None, wanted, findings)
        path = Path(source).expanduser()
        if path.is_dir():
            return read_folder(path, wanted, findings)
        return _file(File.of(path), path, wanted, findings)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{source} cannot be read: {error}") from error


def _file(file: File, path: Path | None, wanted: Wanted, findings: Findings) -> Layout:
    if shards.is_shard(file.name):
        return shards.read_shards([file], wanted, findings)
    if file.suffix not in tables.SUFFIXES:
        archive = "; unpack it first" if file.suffix in (".zip", ".7z", ".rar", ".gz") else ""
        lines = () if wanted.what == "images" else (".txt",)  # one caption or label a line, which `captions.py` reads
        formats = ", ".join((*lines, *tables.SUFFIXES, ".tar"))
        raise DataError(f"{file.name}: expected a folder, or a file that ends in {formats}{archive}")
    if (wanted.what == "images" or wanted.pictures) and path is not None and file.suffix != ".parquet":
        return read_folder(path.parent, wanted, findings, table=path)
    if wanted.what == "images" and path is not None:
        opened = tables.open_table(file)
        held = columns.image_column(opened.columns, opened.features, file.name)
        if held is None and columns.find(opened.columns, columns.FILES):
            return read_folder(path.parent, wanted, findings, table=path)
    return read_tables([file], wanted, findings)
