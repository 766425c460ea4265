"""`redif evaluate` at another size than the run's: what is measured there, what is left alone, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from rich.console import Console
from smoke_runs import smoke
from tiny_pipelines import write_sd, write_sdxl

from redif_ray.checkpoint import file_sha256, save_checkpoint
from redif_ray.config import Config
from redif_ray.diffusion.noise import Stream
from redif_ray.errors import UserError
from redif_ray.evaluation.seen import joined
from redif_ray.job.distill import distill
from redif_ray.job.evaluate import evaluate, evaluated
from redif_ray.planning import factory
from redif_ray.planning.rounds import RoundPlan
from redif_ray.runs.folder import RunFolder, stored_config
from redif_ray.types import Seen, Way
from redif_ray.workers.reward import TeacherRewardWorker

SIZE = (24, 32)
SHORT = (
    "teacher.steps=3",
    "warm_start.rounds=0",
    "rollout.groups=2",
    "learner.rounds=1",
    "evaluation={held_out: 12, search: 2, batch: 6, bootstrap: 40, judge: random-features}",
)
JUDGE, LEARNED = "evaluation.judge=fashion-mnist", "reward.terms={mse: {}, discriminator: {}}"


def files(folder: Path) -> dict[Path, str]:
    """Checksums of a run's files, without those to which each evaluation adds its own work."""
    found = (p for p in folder.rglob("*") if p.is_file() and not p.name.startswith(("timeline.", ".")))
    return {p.relative_to(folder): file_sha256(p) for p in found}


def few_steps(config: Config, folder: RunFolder) -> Seen:
    """Measure the teacher at the student's steps beside itself, in this process."""
    worker, conditions = TeacherRewardWorker("alone", config), folder.conditions()
    assert conditions is not None
    units = RoundPlan(config, conditions).deploy(Stream.HELD_OUT, config.evaluation.held_out)
    way = Way("euler", config.student.schedule, config.student.steps, config.student.guidance)
    return joined([worker.see(unit, way)[1] for unit in units])


@pytest.mark.long
@pytest.mark.cluster
def test_a_latent_run_at_another_size(cluster: None, root: Path) -> None:
    """SDXL's network, which is told the size: every arm and the reference have it, and the run's files stay."""
    run = distill(smoke(root, "latent", f"teacher.model={write_sdxl(root / 'sdxl')}", *SHORT))
    before = files(run)
    told = Console(record=True, width=80)
    path = evaluate(run, [], checkpoint="best", console=told, size=SIZE)
    found, own = json.loads(path.read_text()), json.loads((run / "summary.json").read_text())
    assert path == run / "24x32" / "evaluation-12.json"
    assert files(run) == before | {Path("24x32/evaluation-12.json"): file_sha256(path)}
    assert (found["size"], own["size"]) == ([24, 32], [16, 16])
    assert "12 held-out noises, 24 x 32 pixels, judge random-features" in told.export_text()

    config = evaluated(stored_config(run), [], SIZE)
    store = factory.target_store(config, factory.teacher(config, "cpu")).folder
    assert {pq.read_schema(p).metadata[b"shape"] for p in store.glob("*.parquet")} == {b"[3, 24, 32]"}
    with RunFolder.reopen(run) as folder:
        seen = few_steps(config, folder)
    distance = {arm: values["paired"]["pixel_mse"] for arm, values in found["arms"].items() if values}
    assert distance["teacher_few"] == pytest.approx(seen.pixel_mse.mean(), rel=1e-4)
    assert distance["teacher_full"] == 0 < min(distance["student"], distance["teacher_best"])
    assert distance["student"] != own["arms"]["student"]["paired"]["pixel_mse"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("write", "override", "size", "message"),
    [
        (write_sdxl, "", (20, 32), r"20 x 32 pixels: a StableDiffusionXL takes multiples of 8; set .*redif evaluate"),
        (None, "", (32, 32), r"makes images of 28 x 28 pixels only; leave out .*redif evaluate"),
        (write_sd, JUDGE, SIZE, r"judge takes images of \(1, 28, 28\), the teacher makes \(3, 24, 32\)"),
        (write_sd, LEARNED, SIZE, r"discriminator has learned from images of \(3, 16, 16\) .* makes \(3, 24, 32\)"),
    ],
    ids=["not-a-multiple", "pixels", "judge", "learned-reward"],
)
def test_a_size_that_something_does_not_take(
    write: Callable[[Path], Path] | None, override: str, size: tuple[int, int], message: str, tmp_path: Path
) -> None:
    """One error, before Ray starts and before anything is written."""
    teacher: Any = "fashion-mnist" if write is None else write(tmp_path / "teacher")
    options = [f"teacher.model={teacher}", *SHORT, *([override] if override == LEARNED else [])]
    folder = RunFolder.open(smoke(tmp_path, "run", *options), resume=False)
    folder.close()
    save_checkpoint(folder.path / "checkpoints" / "best", {"student/weight": torch.zeros(1)}, {"version": 1})
    before = files(folder.path)
    with pytest.raises(UserError, match=message):
        evaluate(folder.path, [override] if override == JUDGE else [], checkpoint="best", console=Console(), size=size)
    assert files(folder.path) == before
