from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from learned_run import SECRET, learned_run
from ray_jobs import ran
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
    """A run as a Ray job, with two workers of each kind, which take turns at their device, tracked in a new store."""
    options = (f"run.root={root}", "run.name=first", f"tracking.uri=sqlite:///{root}/mlflow.db")
    workers = ("rollout.max_workers=2", "reward.max_workers=2", "pipeline.colocate=true")
    assert "run folder" in ran("jobs/distill.py", "smoke", *options, *workers)
    return root / "first"


@pytest.fixture(scope="session")
def learned(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """See `learned_run`; the driver keeps the secret that its reward workers are given."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("SCORER_TOKEN", SECRET)
        yield distill(learned_run(tmp_path_factory.mktemp("learned")))
