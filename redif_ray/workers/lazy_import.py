"""Importing heavy modules: some 4,000 modules in each of six processes, five seconds of a core."""

from __future__ import annotations

import gc
from pkgutil import resolve_name
from typing import Any


def imported(name: str) -> Any:
    """Return the object that `module:object` names; garbage collection is off meanwhile and skips its modules later."""
    gc.disable()  # repeated collections would take a tenth of the import's time and free nothing
    try:
        return resolve_name(name)
    finally:
        gc.freeze()
        gc.enable()
