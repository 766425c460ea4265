"""Text-to-image students: the card's code, diffusers alone, makes the image that the student makes."""

from __future__ import annotations

import itertools
import json
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from cases import mostly_long
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_models import normal
from tiny_pipelines import link_out, put_in_index, run_alone, write_sd, write_sd3, write_sdxl
from torch import Tensor

from redif_ray.config import Lora
from redif_ray.diffusion import schedules, solvers
from redif_ray.diffusion.schedules import Schedule
from redif_ray.export import export_student
from redif_ray.export.adapters import FILE
from redif_ray.export.pipeline import CAPTION
from redif_ray.mlflow_model import Student
from redif_ray.models.protocol import DiffusionModel, ModelError
from redif_ray.models.registry import load_model
from redif_ray.models.student import get_weights, make_student, set_weights

pytestmark = pytest.mark.slow
UNET = Lora(rank=2, alpha=7.0, targets=("to_v", "conv1"))  # in a tiny one, attention alone changes little
LORA = {"sd": UNET, "sdxl": UNET, "sd3": Lora(rank=2, alpha=7.0, targets=("to_q", "to_v"))}
TIMES = {"sd": [999, 700, 350, 100], "sdxl": [999, 640, 350, 100], "sd3": [1000.0, 812.5, 400.25, 90.0]}
HALVES = mostly_long(
    (f"{name}-torch.{dtype}" for name in TIMES for dtype in ("float16", "bfloat16")),
    lambda half: half in ("sdxl-torch.float16", "sd3-torch.bfloat16"),
)
EXACT = 1e-4  # of a pixel's range: both round in float32
CLOSE = 3e-4  # where the pipeline decodes x / alpha, alpha = 0.9996


def write(name: str, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """sd stops at alphas_cumprod[0], as its scheduler is published; sdxl at 1."""
    if name == "sdxl":
        return write_sdxl(folder, dtype=dtype, set_alpha_to_one=True)
    return {"sd": write_sd, "sd3": write_sd3}[name](folder, dtype=dtype)


def trained(teacher: DiffusionModel, lora: Lora) -> DiffusionModel:
    student = make_student(teacher, lora)
    size = 1.0 if lora.rank else 0.1
    moved = {k: w + size * normal(*w.shape, seed=i) for i, (k, w) in enumerate(get_weights(student).items())}
    set_weights(student, moved)
    return student


def ours(model: DiffusionModel, schedule: Schedule, guidance: float) -> Tensor:
    """The image of the card's caption and noise."""
    unit = torch.randn(1, *model.latent_shape, generator=torch.Generator().manual_seed(0))
    encoded = model.encode([CAPTION])
    with torch.no_grad():
        return model.decode(
            solvers.sample("euler", lambda x, at: model.predict(x, at, encoded, guidance=guidance), unit, schedule)
        )[0]


def blocks(folder: Path) -> list[str]:
    found = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.S)
    assert all(len(block.strip().splitlines()) <= 15 and "redif" not in block for block in found)
    return found


def run(code: str, folder: Path, monkeypatch: pytest.MonkeyPatch, **scope: Any) -> Tensor:
    """The image of the card's code, as it is before it becomes 8 bits; the code as it stands must run too."""
    with monkeypatch.context() as patch:
        patch.chdir(folder)
        with warnings.catch_warnings():
            warnings.simplefilter("error", FutureWarning)  # whoever samples it would read them
            exec(code, dict(scope))
        assert (folder / "sample.png").is_file()
        (folder / "sample.png").unlink()
        floats: dict[str, Any] = dict(scope)
        exec(code.replace("guidance_scale", 'output_type="pt", guidance_scale').replace("image.save", "#"), floats)
    return floats["image"]


@pytest.fixture
def made(tmp_path: Path) -> Callable[..., tuple[DiffusionModel, Schedule, Path]]:
    def make(name: str, lora: Lora, guidance: float) -> tuple[DiffusionModel, Schedule, Path]:
        teacher = write(name, tmp_path / "teacher")
        student = trained(load_model(teacher), lora)
        schedule = schedules.explicit(student.process, TIMES[name])
        export_student(
            student, schedule, tmp_path / "student", name="tiny", guidance=guidance, teacher=teacher, summary=None
        )
        return student, schedule, tmp_path / "student"

    return make


@pytest.mark.parametrize(
    ("name", "adapted", "guidance"),
    mostly_long(
        itertools.product(TIMES, (False, True), (1.0, 2.5)),
        lambda *case: case in [("sd", True, 2.5), ("sdxl", False, 2.5), ("sd3", False, 1.0)],
    ),
)
def test_the_card_samples_what_the_student_does(
    made: Callable[..., Any], name: str, adapted: bool, guidance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    student, schedule, folder = made(name, LORA[name] if adapted else Lora(), guidance)
    expected = ours(student, schedule, guidance)
    found = run(blocks(folder)[0], folder, monkeypatch)
    assert float(((found > 0) & (found < 1)).float().mean()) > 0.1  # decoding must not hide a difference
    torch.testing.assert_close(found, expected, rtol=0, atol=CLOSE if name == "sd" else EXACT)
    again, settings = load_model(folder), json.loads((folder / "redif.json").read_text())
    torch.testing.assert_close(
        ours(again, schedules.explicit(again.process, settings["timesteps"]), settings["guidance"]),
        expected,
        rtol=0,
        atol=EXACT,
    )
    assert settings["gpu_dtype"] == "float32"  # as the teacher's files have it, which are small
    untrained = make_student(load_model(folder.parent / "teacher"), Lora())
    assert float((ours(untrained, schedule, guidance) - expected).abs().max()) > 0.005


@pytest.mark.parametrize("name", mostly_long(TIMES, lambda name: name != "sdxl"))
def test_a_student_of_another_size(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Card, MLflow and redif-ray make images of the size that it was trained at, and that need not be square."""
    teacher, folder = write(name, tmp_path / "teacher"), tmp_path / "student"
    student = trained(load_model(teacher, size=(24, 32)), Lora())
    schedule = schedules.explicit(student.process, TIMES[name])
    export_student(student, schedule, folder, name="wide", guidance=2.5, teacher=teacher, summary=None)
    expected, atol = ours(student, schedule, 2.5), CLOSE if name == "sd" else EXACT
    assert expected.shape == (3, 24, 32)
    torch.testing.assert_close(run(blocks(folder)[0], folder, monkeypatch), expected, rtol=0, atol=atol)
    torch.testing.assert_close(ours(load_model(folder), schedule, 2.5), expected, rtol=0, atol=EXACT)
    model = Student()
    model.load_context(SimpleNamespace(artifacts={"student": str(folder)}))
    found = model.predict(None, pd.DataFrame({"seed": [0], "caption": [CAPTION]}))
    np.testing.assert_allclose(found[0], expected.numpy(), rtol=0, atol=atol)


@pytest.mark.parametrize("name", mostly_long(TIMES, lambda name: name != "sdxl"))
def test_adapters_alone_beside_the_teacher(
    made: Callable[..., Any], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """alpha is not the rank: without the file's metadata other images come out."""
    student, schedule, folder = made(name, LORA[name], 2.5)
    sampling, loading = blocks(folder)
    code = re.sub(r"(?m)^pipe = .*\n", loading, sampling)
    expected, teacher = ours(student, schedule, 2.5), str(folder.parent / "teacher")
    atol = CLOSE if name == "sd" else EXACT
    torch.testing.assert_close(run(code, folder, monkeypatch, TEACHER=teacher), expected, rtol=0, atol=atol)

    with safe_open(folder / FILE, "pt") as opened:
        assert json.loads(opened.metadata()["lora_adapter_metadata"])[f"{student.component}.lora_alpha"] == 7.0
    save_file(load_file(folder / FILE), folder / FILE, metadata={"format": "pt"})
    without = run(code, folder, monkeypatch, TEACHER=teacher)
    assert float((without - expected).abs().max()) > 10 * atol


@pytest.fixture(scope="module")
def halves(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> dict[str, tuple[DiffusionModel, Schedule, Path]]:
    """Students with adapters of teachers in 16 bits, exported; the cards' code has been run where only it runs."""
    cases = [getattr(item, "callspec", None) for item in request.session.items]
    asked = {case.params.get("half") for case in cases if case is not None}
    found = {}
    for name, dtype in itertools.product(TIMES, (torch.float16, torch.bfloat16)):
        if f"{name}-{dtype}" not in asked:
            continue
        folder = tmp_path_factory.mktemp(f"{name}-{dtype}")
        teacher = write(name, folder / "teacher", dtype)
        student = trained(load_model(teacher), LORA[name])
        schedule = schedules.explicit(student.process, TIMES[name])
        export_student(student, schedule, folder / "s", name="x", guidance=2.5, teacher=teacher, summary=None)
        found[f"{name}-{dtype}"] = student, schedule, folder / "s"
    run_alone([folder for *_, folder in found.values()])
    return found


@pytest.mark.long
@pytest.mark.parametrize("half", HALVES)
def test_a_card_of_a_teacher_in_16_bits(halves: Any, half: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Alone, from the merged weights; and the adapters beside the teacher. Both compute in float32, as `ours` does."""
    student, schedule, folder = halves[half]
    expected, atol = ours(student, schedule, 2.5), CLOSE if half.startswith("sd-") else EXACT
    torch.testing.assert_close(torch.load(folder / "image.pt"), expected, rtol=0, atol=atol)
    with Image.open(folder / "sample.png") as picture:
        bits = torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 255
    torch.testing.assert_close(bits, expected, rtol=0, atol=0.5 / 255 + atol)
    sampling, loading = blocks(folder)
    assert '("cuda", torch.bfloat16)' in sampling
    assert json.loads((folder / "redif.json").read_text())["gpu_dtype"] == "bfloat16"
    code, teacher = re.sub(r"(?m)^pipe = .*\n", loading, sampling), str(folder.parent / "teacher")
    torch.testing.assert_close(run(code, folder, monkeypatch, TEACHER=teacher), expected, rtol=0, atol=atol)


def test_a_config_that_names_another_dtype_than_its_files(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers goes by the config where no dtype is named."""
    path = plain / "text_encoder" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"dtype": "float16"}))
    export(plain, tmp_path / "s")
    teacher = load_model(plain)
    expected = ours(teacher, schedules.explicit(teacher.process, TIMES["sd"]), 1.0)
    found = run(blocks(tmp_path / "s")[0], tmp_path / "s", monkeypatch)
    torch.testing.assert_close(found, expected, rtol=0, atol=CLOSE)


@pytest.mark.parametrize("half", HALVES)
def test_the_model_for_mlflow_of_a_teacher_in_16_bits(halves: Any, half: str) -> None:
    student, schedule, folder = halves[half]
    model = Student()
    model.load_context(SimpleNamespace(artifacts={"student": str(folder)}))
    found = model.predict(None, pd.DataFrame({"seed": [0], "caption": [CAPTION]}))
    atol = CLOSE if half.startswith("sd-") else EXACT
    np.testing.assert_allclose(found[0], ours(student, schedule, 2.5).numpy(), rtol=0, atol=atol)


@pytest.mark.parametrize("name", ["sdxl", "sd3"])
def test_the_model_for_mlflow_samples_alike(made: Callable[..., Any], name: str) -> None:
    student, schedule, folder = made(name, Lora(), 2.5)
    model = Student()
    model.load_context(SimpleNamespace(artifacts={"student": str(folder)}))
    found = model.predict(None, pd.DataFrame({"seed": [3, 0], "caption": ["a cat", CAPTION]}))
    assert found.shape == (2, *student.image_shape) and found.dtype == np.float32
    np.testing.assert_allclose(found[1], ours(student, schedule, 2.5).numpy(), rtol=0, atol=EXACT)


def test_the_folder_is_the_whole_pipeline_and_nothing_that_could_be_a_pickle(tmp_path: Path) -> None:
    teacher = write("sd", tmp_path / "teacher")
    (teacher / "LICENSE").write_text("all rights\n")
    (teacher / "README.md").write_text("---\nlicense: other\n---\n")
    (teacher / "vae" / "diffusion_pytorch_model.bin").write_bytes(b"pickle")
    student = trained(load_model(teacher), Lora())
    schedule = schedules.explicit(student.process, TIMES["sd"])
    export_student(student, schedule, tmp_path / "s", name="x", guidance=1.0, teacher=teacher, summary=None)
    found = {str(p.relative_to(tmp_path / "s")) for p in (tmp_path / "s").rglob("*") if p.is_file()}
    parts = {"text_encoder/model.safetensors", "vae/diffusion_pytorch_model.safetensors", "tokenizer/tokenizer.json"}
    assert parts | {"LICENSE", "unet/diffusion_pytorch_model.safetensors"} <= found
    assert not [name for name in found if name.endswith(".bin")] and FILE not in found
    assert (tmp_path / "s" / "vae" / "config.json").read_bytes() == (teacher / "vae" / "config.json").read_bytes()
    assert "license: other" in (tmp_path / "s" / "README.md").read_text()


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    (write("sd", tmp_path / "teacher") / "LICENSE").write_text("all rights\n")
    (tmp_path / "teacher" / "README.md").write_text("---\nlicense: other\n---\n")
    return tmp_path / "teacher"


def export(teacher: Path, out: Path) -> list[str]:
    """The files of an export of the teacher itself; there is no link among them."""
    student = load_model(teacher)
    schedule = schedules.explicit(student.process, TIMES["sd"])
    export_student(student, schedule, out, name="x", guidance=1.0, teacher=teacher, summary=None)
    assert not [path for path in out.rglob("*") if path.is_symlink()]
    return sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())


@pytest.mark.parametrize("name", ["vae", "vae/config.json", "tokenizer/tokenizer.json", "LICENSE", "README.md"])
def test_a_link_out_of_the_teachers_folder_is_not_followed(plain: Path, tmp_path: Path, name: str) -> None:
    outside = link_out(plain, name)
    with pytest.raises(ModelError, match=f"teacher/{name} is a link to {outside}, which is outside of .*put a copy"):
        export(plain, tmp_path / "s")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["outside", "teacher"]


def test_links_that_a_part_may_hold(plain: Path, tmp_path: Path) -> None:
    """Of files within the teacher's folder, not of folders; of what is not carried on, any."""
    (plain / "vae" / "other.json").symlink_to(plain / "unet" / "config.json")
    (plain / "vae" / "old.bin").symlink_to(tmp_path)
    assert "vae/other.json" in export(plain, tmp_path / "s") and not (tmp_path / "s" / "vae" / "old.bin").exists()
    (plain / "vae" / "more").symlink_to(plain / "unet")
    with pytest.raises(ModelError, match=r"vae/more is a link to a folder, .*unet, .* put a copy in place"):
        export(plain, tmp_path / "t")
    (plain / "vae" / "more").unlink()
    (plain / "vae" / "gone.json").symlink_to(plain / "nothing")
    with pytest.raises(ModelError, match=r"vae/gone.json leads to nothing .*copy the folder again"):
        export(plain, tmp_path / "t")


def test_a_part_is_a_folder_beside_the_index(plain: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").mkdir()
    for name in ("../secret", str(tmp_path / "secret"), "..", "unet/.."):
        put_in_index(plain, **{name: ["diffusers", "AutoencoderKL"]})
        with pytest.raises(ModelError, match=f"lists the part '{name}', which is no name of a folder beside it"):
            export(plain, tmp_path / "s")
        index = json.loads((plain / "model_index.json").read_text())
        (plain / "model_index.json").write_text(json.dumps({k: v for k, v in index.items() if k != name}))
    put_in_index(plain, safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"])
    with pytest.raises(ModelError, match=r"has no folder safety_checker, .*\[null, null\]"):
        export(plain, tmp_path / "s")


def test_a_part_that_the_pipeline_does_not_take_is_left_out(
    plain: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put_in_index(plain, extra=["diffusers", "AutoencoderKL"], image_encoder=["transformers", "CLIPModel"])
    for name in ("extra", "image_encoder", "not_listed"):
        (plain / name).mkdir()
        (plain / name / "config.json").write_text("{}")
    found, index = export(plain, tmp_path / "s"), json.loads((tmp_path / "s" / "model_index.json").read_text())
    assert "image_encoder/config.json" in found and "extra/config.json" not in found
    assert "not_listed/config.json" not in found and "extra" not in index and "image_encoder" in index
    assert "lists the parts extra, which StableDiffusionPipeline does not take" in caplog.text


def test_a_snapshot_in_the_cache_of_hugging_face(plain: Path, tmp_path: Path) -> None:
    """Its files are links to the model's blobs, one of which is a link to a blob that all models share."""
    names = {path.relative_to(plain) for path in plain.rglob("*") if path.is_file()}
    content = {name: (plain / name).read_bytes() for name in names}
    cache = tmp_path / "hub"
    model, shared = cache / "models--org--tiny", cache / "blobs" / "ab" / "abcd"
    snapshot = model / "snapshots" / "0123"
    (model / "blobs").mkdir(parents=True)
    for i, name in enumerate(names):
        blob, link = model / "blobs" / str(i), snapshot / name
        (plain / name).rename(blob)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(Path(*[".."] * (len(name.parts) + 1), "blobs", str(i)))
    blob = (snapshot / "vae" / "config.json").resolve()
    shared.parent.mkdir(parents=True)
    blob.rename(shared)
    blob.symlink_to(Path("../../blobs/ab/abcd"))
    (tmp_path / "link").symlink_to(snapshot)
    found = export(tmp_path / "link", tmp_path / "s")
    copied = {"LICENSE", "vae/config.json", "vae/diffusion_pytorch_model.safetensors", "tokenizer/tokenizer.json"}
    assert copied <= set(found)
    assert all((tmp_path / "s" / name).read_bytes() == content[Path(name)] for name in copied)

    elsewhere = cache / "models--org--other" / "blobs" / "0"
    elsewhere.parent.mkdir(parents=True)
    shared.rename(elsewhere)
    blob.unlink()
    blob.symlink_to(elsewhere)
    with pytest.raises(ModelError, match=f"vae/config.json is a link to {elsewhere}, which is outside"):
        export(snapshot, tmp_path / "t")


def test_what_a_pipeline_would_not_do(tmp_path: Path) -> None:
    teacher = load_model(write_sdxl(tmp_path / "teacher", clip_sample=True))
    schedule = schedules.explicit(teacher.process, TIMES["sdxl"])
    with pytest.raises(ModelError, match="clip_sample=true, and diffusers' Euler scheduler does not clip"):
        export_student(teacher, schedule, tmp_path / "s", name="x", guidance=2.0, teacher=None, summary=None)
    with pytest.raises(ModelError, match=r"student.guidance=0: diffusers' pipelines guide above 1 only"):
        export_student(teacher, schedule, tmp_path / "s", name="x", guidance=0.0, teacher=None, summary=None)
    assert not (tmp_path / "s").exists()
