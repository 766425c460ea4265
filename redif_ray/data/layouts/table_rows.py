"""Tables as data: Parquet files of encoded images, tables that name image files, and tables of captions or labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

from redif_ray.data.errors import DataError
from redif_ray.data.findings import Findings
from redif_ray.data.layouts import columns
from redif_ray.data.layouts.files import File
from redif_ray.data.layouts.rows import Layout, Row, Wanted, classes_of, encoded, label_of, number_in, picked, values
from redif_ray.data.layouts.tables import Table, open_table
from redif_ray.errors import brief


def read_tables(files: Sequence[File], wanted: Wanted, findings: Findings) -> Layout:
    """Return the rows of tables of one kind, whose columns are those of the first. Raises DataError naming a table."""
    opened = [open_table(file) for file in files]
    if wanted.what != "images":
        return Layout(row for table in opened for row in values(table, wanted))
    findings.kind = f"{len(files)} files {files[0].suffix}" if len(files) > 1 else f"a {files[0].suffix} file"
    image = columns.image_column(opened[0].columns, opened[0].features, opened[0].name)
    if image is None:
        raise DataError(
            f"{opened[0].name} has columns {brief(list(opened[0].columns))}; expected `image` (encoded bytes) and "
            "`label`"
        )
    label = label_of(opened[0], image, wanted, findings)
    classes = classes_of(opened[0], label)
    for table in opened[1:]:
        lacking = [column for column in (image, label) if column is not None and column not in table.columns]
        if lacking:
            raise DataError(f"{table.name} has no column {lacking[0]}, which {opened[0].name} has")
        if classes_of(table, label) != classes:
            raise DataError(f"{table.name} names other classes than {opened[0].name}")
    return Layout(
        (row for table in opened for row in _rows(table, image, label, wanted, findings)),
        classes,
        opened[0].types.get(label or ""),
    )


def _rows(table: Table, image: str, label: str | None, wanted: Wanted, findings: Findings) -> Iterator[Row]:
    for number, (cell, value) in picked(table, [image, label], wanted.split, findings):
        where = f"{table.name} row {number}"
        yield Row(where, partial(encoded, cell, where), value if table.typed or value is None else number_in(value))
