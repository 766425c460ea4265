"""The error of data that cannot be read, and the boundary to the libraries that read them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from redif_ray.errors import UserError, words_of


class DataError(UserError, ValueError):
    """Data that cannot be read as asked; the message names the file and what was expected."""


@contextmanager
def reading(name: object, kind: str) -> Iterator[None]:
    """Make each error of a library that reads a file a DataError: "NAME is not KIND: reason".

    For a file that is damaged, or made to do harm, decoders raise errors of many kinds, which no list of theirs names.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise DataError(f"{name} is not {kind}: {words_of(error)}") from error
