"""Choose one of several functions by its name in the configuration, or import the user's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import cache, wraps
from typing import Any, TypeVar

from torch import Tensor

from redif_ray.user_code.errors import UserCodeError, failures_named
from redif_ray.user_code.importing import import_function
from redif_ray.user_code.state import state_kept

T = TypeVar("T")


@cache
def imported(name: str) -> Any:
    """Return what `import_function` does. A file of the user's runs once in a process, not in each round."""
    with state_kept():
        return import_function(name)


def found_or_imported(name: str, known: Mapping[str, T], key: str) -> T | Any:
    """Return `known[name]`, or the function that `path/to/file.py:name` or `package.module:name` names.

    key: configuration key that holds `name`, for errors. Raises UserCodeError for a name that is neither. A call of the
    user's function raises UserCodeError where it fails, or alters its tensors or global settings.
    """
    if name in known:
        return known[name]
    try:
        return _guarded(name, key)
    except UserCodeError as error:
        expected = f"code that can be imported, or one of {', '.join(known)}"
        raise UserCodeError(f"{key}={name}: {error}; expected {expected}") from error


@cache
def _guarded(name: str, key: str) -> Callable[..., Any]:
    function = imported(name)

    @wraps(function, updated=())
    def call(*arguments: Any) -> Any:
        before = list(_versions(arguments))
        try:
            with state_kept(), failures_named("it failed"):
                result = function(*arguments)
        except UserCodeError as error:
            raise UserCodeError(f"{key}={name}: {error}") from error
        if list(_versions(arguments)) != before:
            raise UserCodeError(f"{key}={name}: it altered a tensor that it was given; work on a copy")
        return result

    return call


def _versions(values: Any) -> Iterator[int]:
    """Yield the version of each tensor, which every operation in place raises by one."""
    for value in values:
        if isinstance(value, Tensor):
            yield value._version
        elif is_dataclass(value):
            yield from _versions(getattr(value, field.name) for field in fields(value))
