"""A busy machine is told, an idle one is not."""

from __future__ import annotations

import os

import pytest

from redif_ray.busy import busy


@pytest.mark.parametrize(("load", "told"), [(0.4, False), (6.0, False), (6.1, True), (15.0, True)])
def test_a_load_above_the_cores_is_told(load: float, told: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    assert bool(text := busy()) == told and (f"a load of {load:.0f} on 4 cores" in text) == told
