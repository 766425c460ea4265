"""Changes of a configuration that are given as nested mappings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel

Path = tuple[str, ...]


def changes(given: Mapping[str, Any], model: type[BaseModel], above: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Yield the key path and the value of every change; a mapping is a section's only where `model` has a section.

    A name may be dotted: {"learner": {"anchor.weight": 0.1}} and {"learner": {"anchor": {"weight": 0.1}}} are the same.
    """
    for name, value in given.items():
        path = (*above, *name.split("."))
        if isinstance(value, Mapping) and _is_section(model, path):
            yield from changes(value, model, path)
        else:
            yield path, value


def _is_section(model: type[BaseModel], path: Sequence[str]) -> bool:
    for name in path:
        field = model.model_fields.get(name)
        if field is None or not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)):
            return False
        model = field.annotation
    return True
