"""A file of data, local or behind a URI, and its text."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from pyarrow import fs

from redif_ray.config.uris import revealed
from redif_ray.data.errors import DataError

TEXT_BYTES = 2**30  # of a text file; more is refused
MARKS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}


@dataclass(frozen=True, slots=True)
class File:
    """A file: its name in messages, its suffixes in lower case, and a function that opens it for reading."""

    name: str
    open: Callable[[], IO[bytes] | Any]

    @property
    def suffix(self) -> str:
        return Path(self.name.split("?")[0]).suffix.lower()

    @classmethod
    def of(cls, path: Path) -> File:
        return cls(str(path), lambda: opened(path))

    @classmethod
    def of_uri(cls, uri: str) -> File:
        """Return the file behind a URI that pyarrow knows. Raises pyarrow's errors, OSError and ConfigError."""
        filesystem, path = fs.FileSystem.from_uri(revealed(uri, "conditions.source"))
        return cls(path, lambda: filesystem.open_input_file(path))


def opened(path: Path) -> IO[bytes]:
    """Open a file for reading. Raises OSError, and DataError for a pipe or a device, which may never end."""
    if path.exists() and not path.is_file():
        raise DataError(f"{path} is no regular file; put a copy of the data in its place")
    return path.open("rb")


def is_uri(source: str) -> bool:
    return re.match(r"\w+://|env:", source) is not None


def text_of(file: File) -> str:
    """Return the text of a UTF-8 file without its byte order mark. Raises DataError for another encoding."""
    with file.open() as stream:
        data = stream.read(TEXT_BYTES + 1)
    if len(data) > TEXT_BYTES:
        raise DataError(f"{file.name} has more than {TEXT_BYTES:,} bytes of text; split it into several files")
    return decoded(data, file.name)


def decoded(data: bytes, name: str) -> str:
    """Return UTF-8 bytes as text without a byte order mark. Raises DataError. name: of the bytes, in errors."""
    mark = MARKS.get(data[:2])
    if mark is not None or b"\0" in data[:4096]:
        raise DataError(
            f"'utf-8' is expected, and {name} is {mark or 'UTF-16, or no text'}; "
            f"convert it, such as with iconv -f {mark or 'UTF-16LE'} -t UTF-8"
        )
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"'utf-8' is expected, and byte {error.start:,} of {name} is {data[error.start]:#x}, as in Windows-1252 or "
            "Latin-1; convert it, such as with iconv -f WINDOWS-1252 -t UTF-8"
        ) from None


def lines_of(file: File) -> Iterator[tuple[int, str]]:
    """Yield (number from 1, line without surrounding spaces) of each line that is not empty. Raises DataError."""
    for number, line in enumerate(io.StringIO(text_of(file), newline=None), 1):
        if line.strip():
            yield number, line.strip()
