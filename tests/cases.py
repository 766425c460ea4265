"""Cases of parametrised tests, some of which only `make test-all` runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest


def mostly_long(cases: Iterable[Any], kept: Callable[..., bool]) -> list[Any]:
    """Mark as `long` each case for which `kept` is false: others run the same code. A case is a tuple or one value."""
    each = [case if isinstance(case, tuple) else (case,) for case in cases]
    return [pytest.param(*case, marks=[] if kept(*case) else pytest.mark.long) for case in each]
