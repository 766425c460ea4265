"""What a run tells Prometheus, read where Prometheus reads it, and how a reward ends a run."""

from __future__ import annotations

import re
import threading
from pathlib import Path

import pytest
import ray
import requests
from smoke_runs import smoke

from redif_ray.job.distill import distill
from redif_ray.rewards.base import RewardError

NAMES = {
    "round", "rounds_per_second", "groups_per_second", "staleness", "stage_seconds", "queue", "in_flight",
}  # fmt: skip
STAGES = {"round", "gather", "fetch", "rollout", "targets", "score", "anchor", "update"}
REWARD = """
from pathlib import Path

import torch


def score(student, teacher, conditions):
    value = -(student - teacher).square().mean((1, 2, 3))
    return value * torch.nan if Path(__file__).with_name("seen").exists() else value
"""


@pytest.mark.cluster
def test_a_run_is_seen_by_prometheus_until_its_reward_turns_nan(cluster: None, root: Path, tmp_path: Path) -> None:
    """In training, in a worker, when all is there: one error that names the term, a run that can be resumed."""
    (node,) = ray.nodes()
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    (tmp_path / "reward.py").write_text(REWARD)
    terms = f"reward.terms={{mine: {{options: {{callable: '{tmp_path}/reward.py:score'}}}}}}"
    found: set[str] = set()
    over = threading.Event()

    def scrape() -> None:
        while not over.wait(1):
            for line in requests.get(url, timeout=30).text.splitlines():
                if line.startswith("ray_redif_") and 'run="scraped"' in line:
                    found.add(line.partition("{")[0].removeprefix("ray_redif_"))
                    found.update(re.findall(r'stage="(\w+)"', line))
            if found >= NAMES | STAGES:
                (tmp_path / "seen").touch()
                return

    thread = threading.Thread(target=scrape)
    thread.start()
    try:
        with pytest.raises(RewardError, match=r"'mine' is nan at row 0"):
            distill(smoke(root, "scraped", terms, "learner.rounds=5000", "validation.every=1000"))
    finally:
        over.set()
        thread.join()
    assert found >= NAMES | STAGES
    assert (root / "scraped" / "timeline.json").stat().st_size > 0
    assert (root / "scraped" / "config.yaml").exists() and not (root / "scraped" / "summary.json").exists()
