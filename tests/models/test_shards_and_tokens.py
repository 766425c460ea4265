"""Faults that a library tells when it reads weights or encodes a caption: the check of a folder tells them first."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import write_dit
from tiny_pipelines import write_sd

from redif_ray.config import Teacher
from redif_ray.models.captions import caption_warnings
from redif_ray.models.headers import weight_files
from redif_ray.models.locate import ModelError
from redif_ray.models.registry import load_model, teacher_outline

Change = Callable[[dict[str, Any]], Any]


def in_shards(folder: Path) -> Path:
    """Put the weights of a tiny teacher into two shards beside the whole file; return their index."""
    place = write_dit(folder) / "transformer"
    tensors = load_file(place / "diffusion_pytorch_model.safetensors")
    files = {name: f"part-{i % 2}.safetensors" for i, name in enumerate(sorted(tensors))}
    for file in set(files.values()):
        save_file({name: tensors[name] + 1 for name in files if files[name] == file}, place / file, {"format": "pt"})
    index = place / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": files}))
    return index


def test_of_a_whole_file_and_shards_the_ones_are_checked_that_diffusers_reads(tmp_path: Path) -> None:
    index = in_shards(tmp_path / "teacher")
    assert [path.name for path in weight_files(index.parent)] == ["part-0.safetensors", "part-1.safetensors"]
    weights = load_model(tmp_path / "teacher").network.state_dict()
    whole = load_file(index.parent / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(weights[name], value + 1) for name, value in whole.items())
    teacher_outline(Teacher(model=str(tmp_path / "teacher")), check=True)


@pytest.mark.parametrize(
    "change",
    [
        lambda files: files.pop("proj_out_1.weight"),
        lambda files: files.update({"proj_out_1.weight.x": files.pop("proj_out_1.weight")}),
        lambda files: files.update({"proj_out_1.weight": "part-9.safetensors"}),
        lambda files: files.update({"proj_out_1.weight": None}),
        lambda files: files.update({"proj_out_1.weight": ["part-0.safetensors"]}),
    ],
    ids=["missing", "renamed", "no such file", "no text", "a list"],
)
@pytest.mark.parametrize("whole", [False, True], ids=["shards alone", "whole beside them"])
def test_an_index_that_does_not_fit_its_shards_is_found_by_the_check(
    change: Change, whole: bool, tmp_path: Path
) -> None:
    index = in_shards(tmp_path / "teacher")
    content = json.loads(index.read_text())
    change(content["weight_map"])
    index.write_text(json.dumps(content))
    if not whole:
        (index.parent / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(ModelError, match="transformer"):
        teacher_outline(Teacher(model=str(tmp_path / "teacher")), check=True)


@pytest.mark.slow
@pytest.mark.parametrize(("key", "value"), [("eos_token", "<end>"), ("unk_token", "")])
def test_a_special_token_that_the_text_encoder_does_not_know(key: str, value: str, tmp_path: Path) -> None:
    folder = write_sd(tmp_path / "teacher")
    path = folder / "tokenizer" / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(ModelError, match=r"tokenizer: eos_token is number 190, .* knows 190 tokens|RecursionError"):
        teacher = teacher_outline(Teacher(model=str(folder)))
        teacher.encode([teacher.example])
        caption_warnings(teacher, ["a cat"])


def test_a_text_that_is_no_setting_is_not_shown_whole(tmp_path: Path) -> None:
    path = write_dit(tmp_path / "teacher") / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"prediction_type": "a" * 5000}))
    with pytest.raises(ModelError, match="'prediction_type' is a text of 5,000 characters") as error:
        load_model(tmp_path / "teacher")
    assert len(str(error.value)) < 400
