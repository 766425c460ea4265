"""Importing what is heavy: some 4,000 modules in each of six processes, five seconds of a core."""

from __future__ import annotations

import gc
from pkgutil import resolve_name
from typing import Any


def imported(name: str) -> Any:
    """What `module:object` names. Meanwhile nothing is collected, nor looked at ever after: all of it stays."""
    gc.disable()  # it would look through what is there again and again, a tenth of the time
    try:
        return resolve_name(name)
    finally:
        gc.freeze()
        gc.enable()
