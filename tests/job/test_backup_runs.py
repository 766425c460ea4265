"""A run that loses its machine: what was uploaded is all that a fresh one needs."""

from __future__ import annotations

import shutil
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from rich.console import Console
from smoke_runs import last_weights, rounds, smoke, summary
from test_kills import run_until
from uploads import rounds_of

from redif_ray.job.distill import distill
from redif_ray.runs.backup_store import Remote
from redif_ray.runs.folder import RunFinished
from redif_ray.runs.jsonl import read_rows

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("cluster")]


@pytest.mark.long
def test_a_run_killed_with_its_disk_goes_on_from_its_copy(place: str, plain: str, root: Path, tmp_path: Path) -> None:
    name = f"moved-{urlsplit(place).scheme}"
    options = (f"checkpoint.upload={place}", f"tracking.uri=sqlite:///{tmp_path}/mlflow.db")
    config, folder = smoke(root, name, *options), root / name
    remote = Remote.connect(config)
    run_until(lambda: rounds_of(remote) == [2], root, name, *options)
    shutil.rmtree(folder)
    (tmp_path / "mlflow.db").unlink()
    console = Console(record=True, width=200)
    distill(config, resume=True, console=console)
    assert last_weights(folder) == plain
    assert [row["round"] for row in read_rows(folder / "metrics.jsonl")] == [-1, 0, 1, 2, 3]
    told = console.export_text()
    assert f"fetching the run as it was after round 2 from {remote.uri}" in told
    assert f"uploaded     {remote.uri}" in told
    assert rounds_of(remote) == [4, 2] and remote.copies()[0].finished

    weights = summary(folder)["weights_sha256"]
    shutil.rmtree(folder)
    with pytest.raises(RunFinished):
        distill(config, resume=True)
    assert summary(folder)["weights_sha256"] == weights and (folder / "student" / "model_index.json").exists()
    report = remote.read(f"{remote.copies()[0].name}/report.md")
    assert rounds(folder) == 4 and report == (folder / "report.md").read_bytes()
