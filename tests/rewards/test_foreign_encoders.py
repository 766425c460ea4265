"""Encoders of rewards and judges that somebody else made: no code of theirs runs, and what is broken is an error."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_encoders import write_clip

from redif_ray.evaluation.encoders import JudgeError, load_encoder
from redif_ray.rewards.clip_network import ClipCaptions, clip_images
from redif_ray.rewards.term import RewardError, Setting
from redif_ray.rewards.weight_file import load_weights


def both(model: Path) -> None:
    """Load the network of images, and the network of captions with its tokeniser."""
    setting = Setting(0, (3, 32, 32), torch.device("cpu"))
    clip_images(str(model), 4, setting)
    ClipCaptions(str(model), setting)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("whole") / "clip")


@pytest.fixture
def clip(whole: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole, tmp_path / "clip")


def put(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_code_beside_an_encoder_is_neither_run_nor_asked_about(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (clip / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass C: ...\nCLIPConfig = CLIPModel = C\n")
    put(clip / "config.json", auto_map={"AutoConfig": "evil.CLIPConfig", "AutoModel": "evil.CLIPModel"})
    put(clip / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.C", None]})
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked on the terminal"))
    both(clip)
    put(clip / "config.json", model_type="evil")  # which only that code could read
    with pytest.raises(RewardError, match=r"model='.*clip' cannot be loaded \(config.json; the folder\)"):
        both(clip)
    assert not (tmp_path / "ran").exists()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:40])


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def out(path: Path) -> None:
    outside = path.parent.parent / f"outside-{path.name}"
    path.rename(outside)
    path.symlink_to(outside)


def nan(path: Path) -> None:
    held = load_file(path)
    save_file(held | {name: torch.full_like(held[name], math.nan) for name in [max(held)]}, path)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "preprocessor_config.json", "tokenizer.json"])
@pytest.mark.parametrize("spoil", [cut, pipe, out])
def test_a_file_that_is_broken(name: str, spoil: Callable[[Path], None], clip: Path) -> None:
    if not (clip / name).exists():
        pytest.skip("this folder has no such file")
    spoil(clip / name)
    with pytest.raises(RewardError, match=r"clip"):
        both(clip)
    if name == "tokenizer.json":  # a judge reads it with the first captions
        return
    with pytest.raises(JudgeError, match=r"no judge '.*clip'"):
        load_encoder(str(clip), (3, 32, 32))


@pytest.mark.parametrize(
    ("name", "change"),
    [("tokenizer_config.json", {"unk_token": ["a"]}), ("tokenizer.json", {"model": {"type": "BPE", "vocab": 3}})],
)
def test_a_broken_tokeniser_is_told_in_one_line(name: str, change: Any, clip: Path) -> None:
    put(clip / name, **change)
    with pytest.raises(RewardError, match="has no CLIP tokeniser: ") as error:
        both(clip)
    assert str(error.value).isprintable() and "<class" not in str(error.value)


def test_weights_that_are_not_finite(clip: Path, tmp_path: Path) -> None:
    nan(clip / "model.safetensors")
    with pytest.raises(RewardError, match=r"weight .* is NaN or infinite; copy the file from its source again"):
        both(clip)
    save_file({"lin0": torch.tensor([math.inf])}, tmp_path / "lin.safetensors")
    with pytest.raises(RewardError, match=r"weights='.*lin\.safetensors': weight lin0 is NaN or infinite"):
        load_weights("weights", str(tmp_path / "lin.safetensors"))
