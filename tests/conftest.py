"""One torch thread a process, and for the tests marked `cluster` one Ray cluster a session."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Iterator

import pytest

gc.disable()  # until all is imported, which is there to stay: a third of the time that imports take
os.environ |= {"AWS_ACCESS_KEY_ID": "nobody", "AWS_SECRET_ACCESS_KEY": "nothing"}  # of buckets that tests make
os.environ.setdefault("RAY_worker_niceness", "0")  # else tests starve beside whatever else this machine does
os.environ.setdefault("RAY_metrics_report_interval_ms", "1000")  # tests wait for what Prometheus is told


def pytest_collection_finish() -> None:
    """In each process that runs tests; the one that hands them out has no need of torch."""
    import torch

    for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        signal.signal(number, usual)  # what is started in the background, or by nohup, ignores them
    torch.set_num_threads(1)
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True)
def secrets_of_other_tests() -> Iterator[None]:
    """A secret that a test tells this process is masked in that test alone."""
    from redif_ray import masking

    before = set(masking._known)
    yield
    masking._known.intersection_update(before)


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    """A real Ray cluster that all tests of the session share; runs find it and leave it."""
    import ray

    from redif_ray.cluster.connect import start
    from redif_ray.config import load

    start(load(None, ["ray.num_cpus=8"]))
    yield
    ray.shutdown()
