"""Choose one of several functions by its name in the configuration, or import the user's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from redif_ray.user_code import UserCodeError, import_function

T = TypeVar("T")


def found_or_imported(name: str, known: Mapping[str, T], key: str) -> T | Any:
    """Return `known[name]`, or the object that `path/to/file.py:name` or `package.module:name` names.

    key: the configuration's, for the error. Raises UserCodeError.
    """
    if name in known:
        return known[name]
    try:
        return import_function(name)
    except UserCodeError as error:
        raise UserCodeError(f"{key}={name}: {error}; or one of {', '.join(known)}") from error
