"""The metrics of a run of two ranks, read where Prometheus reads them."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import ray
import requests
from rich.console import Console
from smoke_runs import last_checkpoint, rounds, smoke

from redif_ray.checkpoint import load_checkpoint, unpack
from redif_ray.interrupt import Interrupted, StopRequest
from redif_ray.job.distill import distill, run_part
from redif_ray.rewards.base import RewardError

pytestmark = pytest.mark.cluster
NAMES = {
    "round",
    "rounds_per_second",
    "groups_per_second",
    "staleness",
    "stage_seconds",
    "queue",
    "in_flight",
}
STAGES = {"round", "gather", "fetch", "rollout", "targets", "score", "anchor", "update"}
REWARD = """
from pathlib import Path

import torch


def score(student, teacher, conditions):
    value = -(student - teacher).square().mean((1, 2, 3))
    return value * torch.nan if Path(__file__).with_name("seen").exists() else value
"""
MANY = ("learner.rounds=5000", "validation.every=1000", "checkpoint.every=4", "checkpoint.keep=1000")


@pytest.fixture(scope="module")
def found() -> set[str]:
    """Names and stages that Prometheus finds."""
    return set()


@pytest.fixture(scope="module")
def watched(cluster: None, root: Path, found: set[str]) -> Path:
    """Asked to stop when all was seen."""
    folder, stop = root / "watched", StopRequest()

    def look() -> None:
        scrape("watched", found)
        stop.requested = found >= NAMES | STAGES and (folder / "checkpoints" / "round-000004").exists()

    with watching(look), pytest.raises(Interrupted):
        run_part(smoke(root, "watched", "learner.workers=2", *MANY), stop, resume=False, console=Console())
    return folder


@contextmanager
def watching(look: Callable[[], object]) -> Iterator[None]:
    over = threading.Event()

    def work() -> None:
        while not over.wait(1):
            look()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def scrape(run: str, found: set[str]) -> None:
    """Add what is told of a run."""
    (node,) = ray.nodes()
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    for line in requests.get(url, timeout=30).text.splitlines():
        if line.startswith("ray_redif_") and f'run="{run}"' in line:
            found.add(line.partition("{")[0].removeprefix("ray_redif_"))
            found.update(re.findall(r'stage="(\w+)"', line))


def test_a_run_is_seen_by_prometheus(watched: Path, found: set[str]) -> None:
    assert found >= NAMES | STAGES
    assert (watched / "timeline.json").stat().st_size > 0


def test_two_ranks_agree_with_one(first: Path, watched: Path) -> None:
    """Sums over ranks round differently: 4 steps of AdamW at 1e-4 stay within 2e-5 of one rank's."""
    name = last_checkpoint(first).name
    one, two = (unpack("student", load_checkpoint(run / "checkpoints" / name)[0]) for run in (first, watched))
    assert max(float((one[name] - two[name]).abs().max()) for name in one) < 2e-5


@pytest.mark.long
def test_a_run_whose_reward_turns_nan(cluster: None, root: Path, tmp_path: Path) -> None:
    """In training, in a worker: one error that names the term, a run that can be resumed."""
    (tmp_path / "reward.py").write_text(REWARD)
    terms = f"reward.terms={{mine: {{options: {{callable: '{tmp_path}/reward.py:score'}}}}}}"
    folder = root / "nan"

    def look() -> None:
        if rounds(folder) > 1:
            (tmp_path / "seen").touch()

    with watching(look), pytest.raises(RewardError, match=r"'mine' is nan at row 0"):
        distill(smoke(root, "nan", terms, *MANY))
    assert (folder / "timeline.json").stat().st_size > 0
    assert (folder / "config.yaml").exists() and not (folder / "summary.json").exists()
