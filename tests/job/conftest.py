from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from smoke_runs import plain_weights, smoke

from redif_ray.config import Config
from redif_ray.job.distill import distill
from redif_ray.runs.folder import RunFolder


@pytest.fixture
def run(config: Config) -> Iterator[RunFolder]:
    """The folder of a run by the test's own `config`, open."""
    folder = RunFolder.open(config, resume=False)
    yield folder
    folder.close()


@pytest.fixture(params=("file", "s3", "gs"))
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A URI to upload to."""
    if request.param == "file":
        yield f"file://{tmp_path}/disk"
        return
    from buckets import Bucket

    bucket = Bucket(request.param)
    yield bucket.at("runs")
    bucket.go()


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="session")
def plain(root: Path) -> str:
    """Checksum of the weights that every run of configs/smoke.yaml ends with, whatever befalls it; made without Ray."""
    return plain_weights(smoke(root, "plain"))


@pytest.fixture(scope="session")
def first(cluster: None, root: Path) -> Path:
    """One run with one worker of each kind, tracked in a store of its own."""
    return distill(smoke(root, "first", f"tracking.uri=sqlite:///{root}/mlflow.db"))
