"""The names of `import redif_ray`: what they cost, what they return, and what they say of what they cannot do."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny_models import write_dit
from tiny_pipelines import write_sd

import redif_ray
import redif_ray.api
from redif_ray.config import dump, load
from redif_ray.errors import UserError
from redif_ray.job.evaluate import evaluated
from redif_ray.runs.folder import RunError, RunFinished

PACKAGE = Path(redif_ray.__file__).parent


@pytest.mark.slow
def test_the_import_costs_next_to_nothing() -> None:
    script = """
import time
began = time.process_time()
import sys, redif_ray
seconds = time.process_time() - began
print(seconds, *sorted(name for name in sys.modules if "redif_ray" in name))
dir(redif_ray), redif_ray.load_config
print(*{"torch", "ray", "mlflow", "numpy", "pyarrow", "pandas"} & {*sys.modules})
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    seconds, *modules = done.stdout.splitlines()[0].split()
    assert float(seconds) < 0.5 and modules == ["redif_ray"]
    assert done.stdout.splitlines()[1] == ""


def test_every_name_is_typed_and_no_room_hides_it() -> None:
    stub = ast.parse((PACKAGE / "__init__.pyi").read_text())
    typed = [node.names[0].asname for node in stub.body if isinstance(node, ast.ImportFrom)]
    assert typed == redif_ray.__all__ == redif_ray.api.__all__ and {*typed} <= {*dir(redif_ray)}
    assert not [name for name in typed if (PACKAGE / str(name)).exists() or (PACKAGE / f"{name}.py").exists()]
    assert all(getattr(redif_ray, name) is getattr(redif_ray.api, name) for name in redif_ray.__all__)
    assert (PACKAGE / "py.typed").exists()
    with pytest.raises(AttributeError, match="module 'redif_ray' has no attribute 'distil'"):
        redif_ray.distil  # noqa: B018


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """A run folder with the files that a result is read from."""
    folder = tmp_path / "smoke"
    folder.mkdir()
    (folder / "config.yaml").write_text(dump(load("smoke", [f"run.root={tmp_path}"])))
    arm = {
        "nfe": 2,
        "frechet": 3.5,
        "frechet_ci": [3, 4],
        "class_accuracy": None,
        "paired": {"pixel_mse": 0.25, "mse": -0.25},
    }
    summary = {"arms": {"teacher_full": arm, "warm_start": None, "student": {**arm, "frechet": 4.5}}}
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "metrics.jsonl").write_text('{"round": -1}\n{"round": 0, "phase": "policy", "validation/reward": -1}\n')
    Image.new("RGB", (4, 4)).save(folder / "samples.png")
    return folder


def test_a_finished_run_is_returned_as_it_is(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[Any] = []

    def job(config: Any, **options: Any) -> Path:
        calls.append((config, options))
        raise RunFinished(finished)

    monkeypatch.setattr("redif_ray.job.launch.distill", job)
    run = redif_ray.distill("smoke", "run.name=smoke", run={"root": str(finished.parent)}, resume=True)
    ((config, options),) = calls
    assert config == load("smoke", [f"run.root={finished.parent}"]) and options["resume"]
    assert "smoke is finished; its results are in" in " ".join(capsys.readouterr().out.split())
    assert (run.folder, run.student, run.report) == (finished, finished / "student", finished / "report.html")
    assert [row["arm"] for row in run.arms] == ["teacher_full", "student"] and run.config == config
    assert run.arms[-1]["frechet"] == 4.5 and run.arms[0]["paired_pixel_mse"] == 0.25 and run.picture.size == (4, 4)
    assert run.arms.columns == ["arm", "what", "nfe", "frechet", "frechet_ci", "paired_pixel_mse", "reward_mse"]
    assert [row["round"] for row in run.rounds] == [-1, 0] and run == redif_ray.DistilledRun.read(finished)


def test_a_result_shows_its_folder_and_its_table(finished: Path) -> None:
    run = redif_ray.DistilledRun.read(finished)
    assert repr(run) == f"DistilledRun in {finished}\n{run.arms!r}"


@pytest.mark.slow
def test_a_student_that_is_not_there_is_told_without_torch(tmp_path: Path) -> None:
    code = """
import sys
import redif_ray
for call in (redif_ray.load_student, redif_ray.sample_images):
    try:
        call("nope")
    except redif_ray.UserError as error:
        assert "no model 'nope'" in str(error)
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, timeout=60)


def test_sections_reach_an_evaluation_as_typed_overrides_do(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts: list[str] = []

    def job(run: Path, overrides: list[str], **options: Any) -> Path:
        texts.extend(overrides)
        return run / "summary.json"

    monkeypatch.setattr("redif_ray.job.evaluate.evaluate", job)
    found = redif_ray.evaluate_run(
        redif_ray.DistilledRun.read(finished),
        "reward.max_workers=2",
        ray={"address": "auto", "object_store_mb": 300},
        evaluation={"judge": "random-features", "batch": None, "held_out": 60},
        rollout={"labels": {"ray.io/zone": "a"}, "gpus": 0.5},
    )
    assert [row["arm"] for row in found.arms] == ["teacher_full", "student"] and texts[0] == "reward.max_workers=2"
    config = evaluated(load("smoke"), texts)
    assert (config.ray.address, config.ray.object_store_mb, config.reward.max_workers) == ("auto", 300, 2)
    assert (config.evaluation.judge, config.evaluation.batch) == ("random-features", None)
    assert (config.evaluation.held_out, config.rollout.gpus) == (60, 0.5)
    assert config.rollout.labels == {"ray.io/zone": "a"}


def test_a_run_that_is_not_finished_is_no_result(finished: Path, tmp_path: Path) -> None:
    (finished / "summary.json").unlink()
    with pytest.raises(RunError, match=r"smoke is not finished: .* continue it with resume=True"):
        redif_ray.DistilledRun.read(finished)
    with pytest.raises(RunError, match="is not a run folder"):
        redif_ray.DistilledRun.read(tmp_path)


def test_searches_and_sweeps_are_read_from_their_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def job(summary: dict[str, Any]) -> Any:
        (tmp_path / "summary.json").write_text(json.dumps(summary))
        return lambda config, **options: tmp_path

    monkeypatch.setattr("redif_ray.search.search.search", job({"schedules": [{"steps": 2, "distance": 0.5}]}))
    found = redif_ray.find_schedule("smoke")
    assert found.file == tmp_path / "schedule.yaml" and found.schedules[0] == {"steps": 2, "distance": 0.5}
    trial = {"run": "trial-000", "settings": {"learner.lr": 1e-5}, "scores": [-2.0, -1.0]}
    held_out = {"recipe": [{"seed": 1, "frechet": 2.0}]}
    swept = {"metric": "validation/reward", "trials": [trial], "held_out": held_out}
    monkeypatch.setattr("redif_ray.sweep.sweep.sweep", job(swept))
    result = redif_ray.run_sweep("smoke")
    assert result.best == tmp_path / "best.yaml"
    assert [*result.trials] == [{"run": "trial-000", "learner.lr": 1e-5, "validation/reward": -1.0}]
    assert [*result.held_out] == [{"settings": "recipe", "seed": 1, "frechet": 2.0}]


def test_a_table_is_rows_that_pandas_and_a_notebook_take() -> None:
    table = redif_ray.Table(({"a": 1, "b": 0.5}, {"a": 2, "c": "<x>"}))
    assert (len(table), table.columns, table[1]["a"], len(table[1:])) == (2, ["a", "b", "c"], 2, 1)
    frame = table.to_pandas()
    assert list(frame.columns) == table.columns and frame["a"].tolist() == [1, 2]
    assert repr(table) == str(table) == "a  b    c\n1  0.5\n2       <x>"
    assert "[0.33333, 2]" in str(redif_ray.Table(({"interval": [1 / 3, 2]},)))
    assert "<td>0.5</td>" in table._repr_html_() and "&lt;x&gt;" in table._repr_html_()


@pytest.mark.slow
def test_images_of_a_teacher(tmp_path: Path) -> None:
    model = write_dit(tmp_path / "m")
    one_each = redif_ray.sample_images(model, steps=2)
    assert len(one_each) == 3 and {(image.size, image.mode) for image in one_each} == {((8, 8), "L")}
    (alone,) = redif_ray.sample_images(str(model), steps=2, label=0)
    np.testing.assert_array_equal(np.array(alone), np.array(one_each[0]))
    with pytest.raises(UserError, match="takes no captions"):
        redif_ray.sample_images(model, "a cat")
    with pytest.raises(UserError, match=r"is no student: .* sample_images\(\.\.\., steps=20\) draws a teacher"):
        redif_ray.load_student(model)
    text = write_sd(tmp_path / "sd")
    images = redif_ray.sample_images(text, ["a cat", "a dog"], steps=2, size=(16, 24))
    assert [image.size for image in images] == [(24, 16)] * 2
    assert len(redif_ray.sample_images(text, "a cat", steps=2, size=(16, 24))) == 1
