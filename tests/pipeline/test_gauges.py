"""What a run tells Prometheus, read where Prometheus reads it."""

from __future__ import annotations

import os
import re
import signal
import threading
from pathlib import Path

import pytest
import ray
import requests
from smoke_runs import smoke

from redif_ray.pipeline.distill import distill
from redif_ray.pipeline.interrupt import Interrupted

NAMES = {
    "round", "rounds_per_second", "groups_per_second", "staleness", "stage_seconds", "queue", "in_flight",
}  # fmt: skip
STAGES = {"round", "gather", "fetch", "rollout", "targets", "score", "anchor", "update"}


@pytest.mark.cluster
def test_a_run_is_seen_by_prometheus(cluster: None, root: Path) -> None:
    """A run that would go on for long is stopped as soon as all is there: Ray hands metrics on every 10 s."""
    (node,) = ray.nodes()
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    found: set[str] = set()
    over = threading.Event()

    def scrape() -> None:
        while not over.wait(1):
            for line in requests.get(url, timeout=30).text.splitlines():
                if line.startswith("ray_redif_") and 'run="scraped"' in line:
                    found.add(line.partition("{")[0].removeprefix("ray_redif_"))
                    found.update(re.findall(r'stage="(\w+)"', line))
            if found >= NAMES | STAGES:
                os.kill(os.getpid(), signal.SIGINT)
                return

    thread = threading.Thread(target=scrape)
    thread.start()
    try:
        with pytest.raises(Interrupted):
            distill(smoke(root, "scraped", "learner.rounds=5000", "validation.every=1000"))
    finally:
        over.set()
        thread.join()
    assert found >= NAMES | STAGES
    assert (root / "scraped" / "timeline.json").stat().st_size > 0
