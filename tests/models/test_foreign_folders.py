"""Folders that somebody else made, broken in every way: the command line ends with one clear error, or works."""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import mostly_long
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file
from tiny_models import write_dit, write_unet
from tiny_pipelines import put_in_index, write_sd

from redif_ray import cli
from redif_ray.config import load
from redif_ray.errors import UserError
from redif_ray.job.preflight import preflight
from redif_ray.models.registry import model_folder
from redif_ray.planning.paths import absolute

pytestmark = pytest.mark.slow

UNET, ENCODER = "unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"
CONFIGS = ("model_index.json", "scheduler/scheduler_config.json", "unet/config.json", "vae/config.json")
TEXTS = (*CONFIGS, "text_encoder/config.json", "tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json")
COMMIT = "0123456789abcdef0123456789abcdef01234567"
Spoil = Callable[[Path], Any]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sd(tmp_path_factory.mktemp("whole") / "sd")


@pytest.fixture
def teacher(whole: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole, tmp_path / "teacher")


def redif(*arguments: object) -> None:
    """Run the command line as a user does; an exit is all that it may raise."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["redif", *map(str, arguments)])
        try:
            cli.main()
        except SystemExit as ended:
            if ended.code:
                raise


def sample(folder: Path) -> None:
    redif("sample", folder, "--count", 1, "--steps", 2, "--out", folder.parent / "x.png")


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run a command that must end with exit code 2; its error, on one line."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        redif(*arguments)
    error = " ".join(capsys.readouterr().err.split())
    assert ended.value.code == 2 and "error:" in error and "Traceback" not in error, error
    return error.rpartition("error:")[2]


def put(**changes: Any) -> Spoil:
    return lambda path: path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def text(content: bytes) -> Spoil:
    return lambda path: path.write_bytes(content)


def half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def gone(path: Path) -> None:
    path.unlink()


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def link(target: str) -> Spoil:
    def spoil(path: Path) -> None:
        path.unlink()
        path.symlink_to(target)

    return spoil


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def mark(path: Path) -> None:
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())


def sparse(path: Path) -> None:
    os.truncate(path, 2**40)


def header(size: int) -> Spoil:
    return lambda path: path.write_bytes(struct.pack("<Q", size) + path.read_bytes()[8:])


def tensors(change: Callable[[dict[str, torch.Tensor], str], Any]) -> Spoil:
    """Change the tensors of a file, given them and the name of the first."""

    def spoil(path: Path) -> None:
        held = load_file(path)
        change(held, min(held))
        save_file(held, path)

    return spoil


EVERY_TEXT: dict[str, Spoil] = {
    "cut": half,
    "empty": text(b""),
    "a list": text(b"[1]"),
    "null": text(b"null"),
    "deep": text(b"[" * 100_000),
    "latin": text(b'{"\xe9": 1}'),
    "utf-16": text('{"a": 1}'.encode("utf-16")),
    "binary": text(bytes(range(256))),
    "folder": folder,
    "pipe": pipe,
    "device": link("/dev/zero"),
    "loop": link("itself"),
    "huge": sparse,
}
ONE: list[tuple[str, str, Spoil]] = [
    *((f"mark-{name}", name, mark) for name in CONFIGS),
    *((f"gone-{name}", name, gone) for name in CONFIGS),
    ("class", "model_index.json", put(_class_name=["StableDiffusionPipeline"])),
    ("unknown class", "model_index.json", put(_class_name="NoPipeline")),
    ("part", "model_index.json", put(vae="AutoencoderKL")),
    ("part of three", "model_index.json", put(vae=["diffusers", "AutoencoderKL", 1])),
    ("part of numbers", "model_index.json", put(unet=3, vae=[1, 2])),
    ("part of os", "model_index.json", put(vae=["os", "system"])),
    ("betas", "scheduler/scheduler_config.json", put(beta_start="a")),
    ("no steps", "scheduler/scheduler_config.json", put(num_train_timesteps=-1)),
    ("nan steps", "scheduler/scheduler_config.json", put(num_train_timesteps=float("nan"))),
    ("many steps", "scheduler/scheduler_config.json", put(num_train_timesteps=10**12)),
    ("scheduler", "scheduler/scheduler_config.json", put(_class_name={})),
    ("prediction", "scheduler/scheduler_config.json", put(prediction_type=["epsilon"])),
    ("layers", "unet/config.json", put(layers_per_block=10**9)),
    ("channels", "unet/config.json", put(block_out_channels="8")),
    ("blocks", "unet/config.json", put(down_block_types=[1, 2])),
    ("size", "unet/config.json", put(sample_size=10**9)),
    ("sizes", "unet/config.json", put(sample_size=[8, "8"])),
    ("width", "unet/config.json", put(cross_attention_dim=17)),
    ("scale", "vae/config.json", put(scaling_factor="a")),
    ("groups", "vae/config.json", put(norm_num_groups=0)),
    ("latents", "vae/config.json", put(latent_channels=[])),
    ("hidden", "text_encoder/config.json", put(hidden_size=-16)),
    ("activation", "text_encoder/config.json", put(hidden_act=[1])),
    ("quantized", "text_encoder/config.json", put(quantization_config={"quant_method": "x"})),
    ("added", "tokenizer/tokenizer.json", put(added_tokens=[{}])),
    ("normalizer", "tokenizer/tokenizer.json", put(normalizer={"type": 1.5})),
    ("token", "tokenizer/tokenizer_config.json", put(eos_token=0)),
    ("limit", "tokenizer/tokenizer_config.json", put(model_max_length="x")),
    ("no limit", "tokenizer/tokenizer_config.json", put(model_max_length=10**30)),
    ("negative limit", "tokenizer/tokenizer_config.json", put(model_max_length=-1)),
    *((f"{what}-{name}", name, spoil) for name in (UNET, ENCODER) for what, spoil in {
        "cut": half,
        "gone": gone,
        "empty": text(b""),
        "pickle": text(b"\x80\x04K\x01."),
        "no header": header(2**62),
        "short header": header(9),
        "folder": folder,
        "pipe": pipe,
        "missing": tensors(lambda held, name: held.pop(name)),
        "shape": tensors(lambda held, name: held.update({name: torch.zeros(3, 3, 3)})),
        "scalar": tensors(lambda held, name: held.update({name: torch.zeros(())})),
        "integers": tensors(lambda held, name: held.update({name: held[name].to(torch.int8)})),
        "nothing": tensors(lambda held, name: held.clear()),
    }.items()),
    ("more", UNET, tensors(lambda held, name: held.update(more=torch.zeros(2)))),
]  # fmt: skip


@pytest.mark.parametrize("name", mostly_long(TEXTS, lambda name: name in TEXTS[-3:]))
def test_a_text_file_that_is_broken(name: str, teacher: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = (teacher / name).read_bytes()
    for what, spoil in EVERY_TEXT.items():
        spoil(teacher / name)
        error = refused(capsys, "sample", teacher, "--count", 1, "--steps", 1)
        assert Path(name).parts[0] in error, (what, error)
        shutil.rmtree(teacher / name) if (teacher / name).is_dir() else (teacher / name).unlink()
        (teacher / name).write_bytes(content)
    sample(teacher)  # which is whole again


@pytest.mark.parametrize(("name", "spoil"), [case[1:] for case in ONE], ids=[case[0] for case in ONE])
def test_a_folder_with_one_fault(name: str, spoil: Spoil, teacher: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spoil(teacher / name)
    error = refused(capsys, "sample", teacher, "--count", 1, "--steps", 1)
    assert name.split("/", maxsplit=1)[0] in error or "is a NoPipeline; expected one of" in error, error
    assert ";" in error  # a remedy follows


@pytest.mark.parametrize(
    ("name", "spoil", "message"),
    [
        ("tokenizer/tokenizer_config.json", put(model_max_length=10**30), r"no usable model_max_length.*; set it to"),
        ("unet/config.json", put(cross_attention_dim=17), r"unet cannot be loaded as a UNet2DConditionModel"),
        ("vae/config.json", put(layers_per_block="a"), r"vae cannot be loaded as a AutoencoderKL"),
        ("tokenizer/tokenizer.json", put(added_tokens=[{}]), r"tokenizer cannot be loaded as a CLIPTokenizer"),
        (
            UNET,
            tensors(lambda held, name: held.update({name: held[name].int()})),
            r"conv_in.bias is I32; expected weights that are not quan",
        ),
    ],
)
def test_a_run_and_doctor_say_the_same(
    name: str, spoil: Spoil, message: str, teacher: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(teacher / name)
    fixed = [f"teacher.model={teacher}", "evaluation.judge=random-features", f"run.root={teacher.parent}/runs"]
    assert re.search(message, refused(capsys, "doctor", "smoke", *fixed))
    with pytest.raises(UserError, match=message):
        preflight(load("smoke", fixed))
    assert not (teacher.parent / "runs").exists()


def test_a_link_out_of_the_folder_is_not_followed(teacher: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Not in a file, not in a folder, not in a shard's name; the cache of the hub has its own place for files."""
    outside = teacher.parent / "secret.safetensors"
    shutil.move(teacher / UNET, outside)
    (teacher / UNET).symlink_to(outside)
    assert "is a link to" in refused(capsys, "sample", teacher)
    (teacher / UNET).unlink()
    index = teacher / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    for shard in ("../../secret.safetensors", str(outside), "..", 3, None):
        index.write_text(json.dumps({"metadata": {}, "weight_map": {"conv_in.bias": shard}}))
        assert "weight_map names no .safetensors files beside it" in refused(capsys, "sample", teacher)
    index.unlink()
    shutil.move(outside, teacher / UNET)
    sample(teacher)
    shutil.move(teacher / "vae", teacher.parent / "vae")
    (teacher / "vae").symlink_to(teacher.parent / "vae")
    assert "is a link to" in refused(capsys, "sample", teacher)


@pytest.fixture
def snapshot(whole: Path, tmp_path: Path) -> Path:
    """A folder in the layout of the hub's cache."""
    blobs = tmp_path / "models--org--name" / "blobs"
    snapshot = tmp_path / "models--org--name" / "snapshots" / COMMIT
    blobs.mkdir(parents=True)
    for i, path in enumerate(path for path in sorted(whole.rglob("*")) if path.is_file()):
        shutil.copy(path, blobs / str(i))
        (snapshot / path.relative_to(whole)).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / path.relative_to(whole)).symlink_to(blobs / str(i))
    return snapshot


def test_files_of_the_hub_s_cache_are_links_to_its_blobs(snapshot: Path) -> None:
    sample(snapshot)


def test_a_hub_id_means_one_commit_for_a_whole_run(snapshot: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver asks the hub what a name or a revision of it means now; all others ask for the commit."""
    asked: list[tuple[str, str | None]] = []

    def download(name: str, *, revision: str | None, use_safetensors: bool, trust_remote_code: bool) -> str:
        assert use_safetensors and not trust_remote_code
        asked.append((name, revision))
        return str(snapshot)

    monkeypatch.setattr(DiffusionPipeline, "download", download)
    config = load("smoke", ["teacher.model=org/name", "student.init=org/name@refs/pr/3"])
    own = absolute(config)
    assert (own.teacher.model, own.student.init) == (f"org/name@{COMMIT}", f"org/name@{COMMIT}")
    assert asked == [("org/name", None), ("org/name", "refs/pr/3")]
    assert absolute(own).teacher.model == own.teacher.model and model_folder(own.teacher.model) == snapshot
    assert set(asked[2:]) == {("org/name", COMMIT)}


def test_adapters_beside_an_encoder_are_not_loaded(teacher: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (teacher / "text_encoder" / "adapter_config.json").write_text('{"base_model_name_or_path": "org/other"}')
    assert "adapters beside a network are not read" in refused(capsys, "sample", teacher)


def test_what_an_exported_student_says_of_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_dit(tmp_path / "dit")
    good = {"steps": 2, "timesteps": [999, 500], "guidance": 1.0}
    for changes in ({"timesteps": "a"}, {"guidance": float("nan")}, {"timesteps": []}, {"steps": None}):
        (folder / "redif.json").write_text(json.dumps(good | changes))
        assert f"redif.json: {next(iter(changes))}" in refused(capsys, "sample", folder)
    for timesteps in ([5000, 10], [10, 999], [999, 999]):  # none of the model's, rising, twice
        (folder / "redif.json").write_text(json.dumps(good | {"timesteps": timesteps}))
        assert "redif.json: " in refused(capsys, "sample", folder)
    (folder / "redif.json").write_text(json.dumps(good))
    sample(folder)


def test_a_picture_that_cannot_be_written(teacher: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A name without a picture's end, a folder, a place below a file; told before anything is loaded or drawn."""
    for out, message in ((teacher / "x.txt", "ends in one of .png"), (teacher / "vae", "ends in one of .png")):
        assert message in refused(capsys, "sample", "no/such/model", "--out", out)
    assert f"{teacher}" in refused(
        capsys, "sample", teacher, "--count", 1, "--out", teacher / "model_index.json" / "x.png"
    )


def test_a_value_that_only_a_call_looks_at(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    unet = write_unet(tmp_path / "unet")
    put(downsample_padding=None)(unet / "unet" / "config.json")
    assert "the PixelUNet to sample cannot be loaded: TypeError" in refused(capsys, "sample", unet, "--count", 1)


def test_parts_of_hard_names(teacher: Path) -> None:
    """A part that no pipeline takes leads nowhere, whatever its name; such a teacher is not exported."""
    for name in ("../loot", "/etc", "..", "a/b", "a\\b"):
        put_in_index(teacher, **{name: ["diffusers", "AutoencoderKL"]})
        fixed = [f"teacher.model={teacher}", "evaluation.judge=random-features", f"run.root={teacher.parent}/runs"]
        with pytest.raises(UserError, match="which is no name of a folder beside it"):
            preflight(load("smoke", fixed))
        index = json.loads((teacher / "model_index.json").read_text())
        del index[name]
        (teacher / "model_index.json").write_text(json.dumps(index))
