"""One torch thread a process, and for the tests marked `cluster` one Ray cluster a session."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    """A real Ray cluster that all tests of the session share; runs find it and leave it."""
    import ray

    from redif_ray.config import Config
    from redif_ray.pipeline.cluster import start

    start(Config(), num_cpus=8)
    yield
    ray.shutdown()
