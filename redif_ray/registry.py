"""Choose one of several functions by its name in the configuration, or import the user's own."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, TypeVar

from redif_ray.user_code import UserCodeError, import_function

T = TypeVar("T")
imported = cache(import_function)  # a file of the user's runs once in a process, not in each round or microbatch


def found_or_imported(name: str, known: Mapping[str, T], key: str) -> T | Any:
    """Return `known[name]`, or the object that `path/to/file.py:name` or `package.module:name` names.

    key: configuration key that holds `name`, for the error. Raises UserCodeError for a name that is neither.
    """
    if name in known:
        return known[name]
    try:
        return imported(name)
    except UserCodeError as error:
        expected = f"code that can be imported, or one of {', '.join(known)}"
        raise UserCodeError(f"{key}={name}: {error}; expected {expected}") from error
