"""One torch thread a process, and for the tests marked `cluster` one Ray cluster a session."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

torch.set_num_threads(1)
os.environ |= {"AWS_ACCESS_KEY_ID": "nobody", "AWS_SECRET_ACCESS_KEY": "nothing"}  # of buckets that tests make


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    """A real Ray cluster that all tests of the session share; runs find it and leave it."""
    import ray

    from redif_ray.cluster.connect import start
    from redif_ray.config import Config

    start(Config(), num_cpus=8)
    yield
    ray.shutdown()
