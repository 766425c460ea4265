"""Keys of a run's configuration that may change when the run is resumed, and when it is evaluated again.

A field is marked with `may_change`; the mark of a section holds for all keys below it.
"""

from __future__ import annotations

from pydantic import BaseModel

from redif_ray.config.base import MAY_CHANGE, Occasion
from redif_ray.config.tree import Config


def changeable(occasion: Occasion, model: type[BaseModel] = Config, prefix: str = "") -> list[str]:
    """Return the dotted keys, of sections and of values, whose fields are marked for `occasion`."""
    keys: list[str] = []
    for name, field in model.model_fields.items():
        extra = field.json_schema_extra
        marks = extra.get(MAY_CHANGE) if isinstance(extra, dict) else None
        if isinstance(marks, list) and occasion in marks:
            keys.append(f"{prefix}{name}")
        elif isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            keys += changeable(occasion, field.annotation, f"{prefix}{name}.")
    return keys


def may_differ(key: str, occasion: Occasion) -> bool:
    """Tell whether a dotted key, or a section above it, is marked for `occasion`."""
    return any(key == free or key.startswith(f"{free}.") for free in changeable(occasion))
