"""LoRA files, encoders, students, runs and schedules that nobody meant: each works, or ends in one clear error."""

from __future__ import annotations

import io
import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from damage import damaged, spoil
from model_folders import change_json, change_weights, check_weights, configured, copy_of, used, whole
from outcomes import Given, mutated, tried
from rich.console import Console
from tiny_encoders import write_clip
from tiny_loras import write_lora
from tiny_models import write_dit
from tiny_pipelines import write_sd

from redif_ray.api import export_student
from redif_ray.checkpoint import pack, save_checkpoint
from redif_ray.config import dump, load
from redif_ray.data.schedule_file import Found, ScheduleFile
from redif_ray.evaluation.encoders import embedded, load_encoder
from redif_ray.evaluation.judge_source import JUDGES, REFERENCE
from redif_ray.job.preflight import check_judge
from redif_ray.models.classifier import Classifier
from redif_ray.models.registry import load_model, load_teacher
from redif_ray.rewards.clip import Clip
from redif_ray.rewards.term import Setting
from redif_ray.rewards.text_image import TextImage
from redif_ray.runs.folder import RunFolder
from redif_ray.runs.jsonl import append_rows
from redif_ray.sample import load as load_sampled
from redif_ray.trials.status import show

pytestmark = pytest.mark.long
RUN = {
    "round": 0,
    "phase": "policy",
    "groups_per_second": 12.0,
    "seconds/round": 2.0,
    "validation/reward": -0.5,
    "validation/recall": 0.5,
}


def write_file(folder: Path) -> Path:
    write_lora(whole(write_sd), "sd", folder)
    return folder


def write_judge(folder: Path) -> Path:
    Classifier("conv", "judge", (1, 28, 28), [str(i) for i in range(10)]).save(folder)
    shutil.copy(JUDGES["fashion-mnist"][1], folder / REFERENCE)
    return folder


def write_run(root: Path) -> Path:
    """A run of a tiny teacher that was stopped after a round, with its exported student beside it."""
    teacher = copy_of(write_dit, root.parent, "teacher")
    config = configured(write_dit, teacher, root.parent, f"run.root={root.parent}", f"run.name={root.name}")
    folder = RunFolder.open(config, resume=False)
    folder.update_state(calibration={}, mlflow_run="1", expected={"rounds": {"policy": 1.0}, "evaluation": 3.0})
    append_rows(folder.path / "metrics.jsonl", [RUN, {**RUN, "round": 1}])
    append_rows(folder.path / "lost.jsonl", [{"lost": "rollout"}])
    network = load_teacher(config.teacher).network
    weights = {name: value + 0.01 for name, value in network.named_parameters()}
    save_checkpoint(folder.path / "checkpoints" / "round-00002", pack("student", weights), {"round": 2, "version": 2})
    folder.close()
    export_student(folder.path, folder.path / "student")
    return folder.path


def a_lora(chance: random.Random, root: Path) -> Given:
    """A LoRA file with other tensors, keys, header or bytes."""
    folder = copy_of(write_file, root, "lora")
    file = next(folder.glob("*.safetensors"))
    done = change_weights(file, chance) if chance.random() < 0.8 else spoil(folder, chance)
    source = chance.choice((file, folder))
    return done, lambda: used(
        write_sd, whole(write_sd), root, f"teacher.lora={{{source}: {chance.choice((1, 0.5, -1))}}}"
    )


def an_encoder(chance: random.Random, root: Path) -> Given:
    """A CLIP as the encoder of a reward and of a judge, with one or two of its files changed."""
    folder = copy_of(write_clip, root, "clip")
    done: list[str] = []
    for _ in range(chance.choice((1, 1, 2))):
        path = chance.choice(sorted(path for path in folder.iterdir() if path.is_file()))
        change = chance.choice((change_json if path.suffix == ".json" else change_weights, spoil, _other_bytes))
        try:
            done += [path.name, str(change(folder if change is spoil else path, chance))]
        except (ValueError, OSError):  # which the first change has broken
            continue
    setting = Setting(0, (3, 32, 32), torch.device("cpu"), captions=True)

    def call() -> None:
        Clip(setting, str(folder))
        TextImage(setting, str(folder))
        embedded(load_encoder(str(folder), (3, 32, 32)), torch.zeros(2, 3, 32, 32), "cpu")

    return done, call


def _other_bytes(path: Path, chance: random.Random) -> str:
    path.write_bytes(damaged(path.read_bytes(), chance))
    return "other bytes"


def a_judge(chance: random.Random, root: Path) -> Given:
    """A classifier with its reference images, some of whose files are changed."""
    folder = copy_of(write_judge, root, "judge")
    kind = chance.choice(("config", "weights", "spoilt", "reference"))
    if kind == "config":
        done = change_json(folder / "config.json", chance)
    elif kind == "weights":
        done = change_weights(folder / "model.safetensors", chance)
    elif kind == "reference":
        done = _other_bytes(folder / "reference.parquet", chance)
    else:
        done = spoil(folder, chance)
    return [kind, done], lambda: check_judge(load("smoke", [f"evaluation.judge={folder}"]), (1, 28, 28), 40)


def a_student(chance: random.Random, root: Path) -> Given:
    """An exported student with other settings or files, as what is sampled and as the start of another student."""
    folder = shutil.copytree(whole(write_run) / "student", root / "student")
    done = change_json(folder / "redif.json", chance) if chance.random() < 0.6 else spoil(folder, chance)

    def call() -> None:
        load_sampled(str(folder)).sample(count=2)
        check_weights(load_model(folder).network.state_dict(), folder / "transformer")
        used(write_dit, whole(write_run).parent / "teacher", root, f"student.init={folder}")

    return done, call


def a_run(chance: random.Random, root: Path) -> Given:
    """A run folder in which one or two files are changed, whose status, student and export are asked for."""
    path = shutil.copytree(whole(write_run), root / "run")
    if chance.random() < 0.6:
        shutil.rmtree(path / "student")
    done: list[str] = []
    for _ in range(chance.choice((1, 1, 2))):
        file = chance.choice(sorted(file for file in path.rglob("*") if file.is_file() and "student" not in file.parts))
        how = chance.choice((spoil, _other_bytes, change_json if file.suffix == ".json" else _changed_lines))
        try:
            done += [str(file.relative_to(path)), str(how(path if how is spoil else file, chance))]
        except (ValueError, OSError, yaml.YAMLError):
            continue
    ask = chance.choice(("status", "status", "sample", "export", "resume"))

    def call() -> None:
        if ask == "status":
            show(path, Console(file=io.StringIO()))
        elif ask == "sample":
            load_sampled(str(path)).sample(count=2)
        elif ask == "export":
            export_student(path, root / "out")
        else:
            config = configured(
                write_dit, whole(write_run).parent / "teacher", root, f"run.root={root}", "run.name=run"
            )
            folder = RunFolder.open(config, resume=True)
            try:
                folder.conditions()
            finally:
                folder.close()

    return [ask, *done], call


def _changed_lines(path: Path, chance: random.Random) -> str:
    if path.suffix != ".jsonl":
        return _other_bytes(path, chance)
    rows = mutated([json.loads(line) for line in path.read_text().splitlines()], chance)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) if isinstance(rows, list) else str(rows))
    return str(rows)


def a_schedule(chance: random.Random, root: Path) -> Given:
    """A file of schedules with one or two mutations, which a student takes its levels from."""
    found = Found(name="searched", timesteps=(999.0, 500.0), half_log_snr=(None, -1.0), distance=0.1)
    tree: Any = yaml.safe_load(
        dump(ScheduleFile(teacher="t", student=None, solver="euler", guidance=1.0, schedules={2: found}))
    )
    for _ in range(chance.choice((1, 1, 2))):
        tree = mutated(tree, chance)
    path = root / "schedule.yaml"
    data = yaml.safe_dump(tree, allow_unicode=True).encode("utf-8", "replace")
    path.write_bytes(damaged(data, chance) if chance.random() < 0.2 else data)
    return tree, lambda: used(write_dit, whole(write_dit), root, f"student.schedule={path}")


MAKERS: dict[Any, int] = {a_lora: 60, an_encoder: 150, a_judge: 150, a_student: 150, a_run: 300, a_schedule: 150}


@pytest.mark.parametrize("make_one", MAKERS, ids=lambda maker: maker.__name__)
def test_a_part_that_nobody_meant_ends_clearly(make_one: Any, tmp_path: Path) -> None:
    tried(make_one, MAKERS[make_one], tmp_path, most_lines=8)
