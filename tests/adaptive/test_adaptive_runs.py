from __future__ import annotations

import json
from pathlib import Path

import pytest

from redif_ray.adaptive.job import adapt
from redif_ray.config import Config, ConfigError, load
from redif_ray.interrupt import Interrupted, StopRequest

pytestmark = [pytest.mark.cluster, pytest.mark.long]
SMALL = [
    "tracking.uri=off",
    "search.steps=[2,3]",
    "search.rungs=[16]",
    "search.unit_noises=8",
    "search.shape_trials=1",
    "search.refine_trials=0",
    "search.descent.batch=8",
    "search.adaptive.noises=16",
    "search.adaptive.batch=32",
    "search.adaptive.envs=8",
    "search.adaptive.iterations=2",
    "search.adaptive.max_calls=4",
    "search.adaptive.prices=[0.02,0.005]",
]


def small(root: Path, *overrides: str) -> Config:
    return load("smoke", [f"run.root={root}", "run.name=agents", *SMALL, *overrides])


def test_a_search_then_agents_and_what_was_trained_is_kept(
    cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted after the first agent, the job goes on with the second."""
    folder, check = tmp_path / "agents-search" / "adaptive", StopRequest.check

    def stopped(self: StopRequest) -> None:
        self.requested |= len(list(folder.glob("*.safetensors"))) == 1
        check(self)

    with monkeypatch.context() as patched, pytest.raises(Interrupted):
        patched.setattr(StopRequest, "check", stopped)
        adapt(small(tmp_path))
    (first,) = folder.glob("*.safetensors")
    stamp = first.stat().st_mtime_ns
    adapt(small(tmp_path), resume=True)
    assert first.stat().st_mtime_ns == stamp
    found = json.loads((folder / "adaptive.json").read_text())
    assert [a["price"] for a in found["agents"]] == [0.02, 0.005]
    assert all((folder / a["file"]).is_file() and sum(a["histogram"].values()) == 40 for a in found["agents"])
    assert "mixture" in (folder / "adaptive.md").read_text()
    with pytest.raises(ConfigError, match="another configuration"):
        adapt(small(tmp_path, "search.shape_trials=2"), resume=True)
