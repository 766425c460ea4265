from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import second_device
import torch
import yaml
from diffusers import DiTPipeline, EulerDiscreteScheduler
from tiny_models import normal, write_dit, write_unet
from tiny_pipelines import put_in_index, write_edm
from torch import Tensor

from redif_ray.config import Lora
from redif_ray.diffusion import schedules, solvers
from redif_ray.diffusion.levels import FlowMatching
from redif_ray.diffusion.schedules import Schedule
from redif_ray.export import export_student
from redif_ray.export.card import licence
from redif_ray.mlflow_model import Student
from redif_ray.mlflow_model import _sampler as sampler
from redif_ray.models.pixel import PixelUNet
from redif_ray.models.protocol import DiffusionModel, ModelError
from redif_ray.models.registry import load_model
from redif_ray.models.student import get_weights, make_student, set_weights

LORA = Lora(rank=2, alpha=6.0)
MILD = {"beta_end": 0.004}  # an untrained epsilon network blows up what strong noise leaves of x0
SUMMARY = {
    "held_out": 100,
    "seed": 7,
    "judge": "judge-b",
    "arms": {
        "student": {"nfe": 4, "frechet": 12.345, "precision": 0.5, "recall": 0.25, "paired": {"pixel_mse": 0.0123}},
        "warm_start": None,
    },
}


def trained(teacher: DiffusionModel, lora: Lora = Lora()) -> DiffusionModel:
    """A student whose weights have moved."""
    student = make_student(teacher, lora)
    start = get_weights(student)
    set_weights(student, {k: w + 0.05 * normal(*w.shape, seed=i) for i, (k, w) in enumerate(start.items())})
    return student


def export(student: DiffusionModel, schedule: Schedule, folder: Path, **options: Any) -> Path:
    defaults: dict[str, Any] = {"name": "tiny", "guidance": 1.0, "teacher": None, "summary": None}
    export_student(student, schedule, folder, **(defaults | options))
    return folder


def code(folder: Path) -> str:
    blocks = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.S)
    assert len(blocks) == 1 and len(blocks[0].strip().splitlines()) <= 15
    assert "redif" not in blocks[0]
    return blocks[0]


def run_card(folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Tensor, Tensor]:
    """The unit noise that the card's code drew, and its images."""
    drawn: list[Tensor] = []
    randn = torch.randn

    def recorded(*args: Any, **options: Any) -> Tensor:
        drawn.append(randn(*args, **options))
        return drawn[-1].clone()

    with monkeypatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(folder)
        patch.delitem(sys.modules, "sample", raising=False)
        patch.setattr(torch, "randn", recorded)
        scope: dict[str, Any] = {}
        exec(code(folder), scope)
    return drawn[0], scope["images"]


def ours(model: DiffusionModel, schedule: Schedule, unit: Tensor, guidance: float) -> Tensor:
    encoded = model.encode([None if model.num_classes is None else i % model.num_classes for i in range(len(unit))])
    with torch.no_grad():
        return model.decode(
            solvers.sample("euler", lambda x, at: model.predict(x, at, encoded, guidance=guidance), unit, schedule)
        )


@pytest.mark.slow
@pytest.mark.parametrize("network_timesteps", [False, True], ids=["", "network_timesteps"])
@pytest.mark.parametrize(
    ("write", "options", "lora", "guidance"),
    [
        (write_dit, {}, Lora(), 1.0),
        (write_dit, {"beta_schedule": "scaled_linear"}, LORA, 2.5),
        (write_dit, {"out_channels": 2, "classes": 5}, Lora(), 0.0),
        (write_unet, MILD, Lora(), 1.0),
        (write_unet, MILD, LORA, 1.0),
        (write_unet, {"clip_sample": True, "clip_sample_range": 0.8}, Lora(), 1.0),
        (write_unet, MILD | {"set_alpha_to_one": False, "classes": 2}, Lora(), 1.0),
        (write_edm, {}, Lora(), 1.0),
        (write_edm, {"classes": None}, Lora(rank=2, targets=("conv1",)), 1.0),
        (write_unet, {"prediction_type": "sample", "out_channels": 4}, Lora(), 1.0),
        (
            write_unet,
            {"trained_betas": torch.linspace(0.001, 0.03, 100).tolist(), "num_train_timesteps": 100},
            Lora(),
            1.0,
        ),
    ],
    ids=[
        "dit-v-cosine",
        "dit-lora-guided",
        "dit-variance-guided",
        "unet-epsilon",
        "unet-lora",
        "unet-clipped",
        "unet-classes-ends-noisy",
        "edm",
        "edm-lora",
        "unet-sample-variance",
        "unet-own-betas",
    ],
)
def test_the_card_samples_what_the_student_does(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    write: Callable[..., Path],
    options: dict[str, Any],
    lora: Lora,
    guidance: float,
    network_timesteps: bool,
) -> None:
    """Save, load and sample with diffusers alone, and with this package again: the same images each time."""
    student = trained(load_model(write(tmp_path / "teacher", **options)), lora)
    last = student.scheduler.config.num_train_timesteps
    times = [80.0, 9.5, 1.25, 0.3] if write is write_edm else [last - 1, last * 0.7, last * 0.4, last * 0.1]
    said = [0.8 * t if write is write_edm else 0.8 * t // 1 for t in times] if network_timesteps else None
    schedule = schedules.explicit(student.process, times, network_timesteps=said)
    folder = export(student, schedule, tmp_path / "student", guidance=guidance)

    unit, images = run_card(folder, monkeypatch)
    expected = ours(student, schedule, unit, guidance)
    assert images.shape == (4, *student.image_shape)
    assert float(((images > 0) & (images < 1)).float().mean()) > 0.2  # decoding must not hide a difference
    torch.testing.assert_close(images, expected, rtol=0, atol=2e-5)

    again, settings = load_model(folder), json.loads((folder / "redif.json").read_text())
    own = schedules.explicit(again.process, settings["timesteps"], network_timesteps=settings.get("network_timesteps"))
    torch.testing.assert_close(ours(again, own, unit, settings["guidance"]), expected, rtol=0, atol=2e-5)
    assert settings["steps"] == 4 and settings["guidance"] == guidance


@pytest.mark.slow
@pytest.mark.parametrize(
    ("write", "options", "times"),
    [(write_dit, {}, [999, 600, 100]), (write_unet, MILD, [999, 600, 100]), (write_edm, {}, [80.0, 9.5, 1.25])],
)
def test_the_sampler_on_another_device(
    tmp_path: Path, write: Callable[..., Path], options: dict[str, Any], times: list[float]
) -> None:
    student = trained(load_model(write(tmp_path / "teacher", **options)))
    folder = export(student, schedules.explicit(student.process, times), tmp_path / "student")
    noise = normal(3, *student.latent_shape)
    labels = None if student.num_classes is None else torch.tensor([0, 1, 2])
    here, there = (sampler(folder).Student(folder, device)(noise, labels) for device in ("cpu", second_device.NAME))
    assert there.device.type == "cpu"
    torch.testing.assert_close(there, here, rtol=0, atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("network_timesteps", [False, True], ids=["", "network_timesteps"])
@pytest.mark.parametrize(
    ("write", "options", "guidance"),
    [
        (write_dit, {}, 2.0),
        (write_unet, MILD, 1.0),
        (write_unet, {"clip_sample": True, "clip_sample_range": 0.8}, 1.0),
        (write_edm, {}, 1.0),
    ],
)
def test_the_model_for_mlflow_samples_alike(
    tmp_path: Path, write: Callable[..., Path], options: dict[str, Any], guidance: float, network_timesteps: bool
) -> None:
    student = trained(load_model(write(tmp_path / "teacher", **options)))
    times, said = ([80.0, 9.5, 1.25], [60.0, 9.5, 2.0]) if write is write_edm else ([999, 600, 100], [900, 600, 130])
    schedule = schedules.explicit(student.process, times, network_timesteps=said if network_timesteps else None)
    folder = export(student, schedule, tmp_path / "student", guidance=guidance)
    model = Student()
    model.load_context(SimpleNamespace(artifacts={"student": str(folder)}))
    rows: dict[str, list[int]] = {"seed": [5, 6, 7]} | ({} if student.num_classes is None else {"label": [0, 1, 2]})
    drawn = [torch.randn(student.latent_shape, generator=torch.Generator().manual_seed(s)) for s in rows["seed"]]
    expected = ours(student, schedule, torch.stack(drawn), guidance)
    np.testing.assert_allclose(model.predict(None, pd.DataFrame(rows)), expected.numpy(), rtol=0, atol=2e-5)


def test_zero_terminal_snr_is_close(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Euler's scheduler takes sigma = 4096 for infinity; that is all that differs."""
    teacher = write_dit(tmp_path / "teacher", beta_schedule="scaled_linear", rescale_betas_zero_snr=True)
    student = trained(load_model(teacher))
    schedule = schedules.build(student.process, 4, "uniform_trailing")
    assert schedule[0].alpha == 0
    unit, images = run_card(export(student, schedule, tmp_path / "student"), monkeypatch)
    torch.testing.assert_close(images, ours(student, schedule, unit, 1.0), rtol=0, atol=2e-3)


@pytest.mark.slow
def test_diffusers_own_euler_step_agrees_where_float32_lets_it(tmp_path: Path) -> None:
    """The loop of diffusers' documentation, on the exported scheduler as it stands."""
    student = trained(load_model(write_unet(tmp_path / "teacher", **MILD)))
    schedule = schedules.build(student.process, 4, "uniform_trailing")
    folder = export(student, schedule, tmp_path / "student")
    scheduler = EulerDiscreteScheduler.from_pretrained(folder / "scheduler")
    scheduler.set_timesteps(4)
    assert scheduler.timesteps.tolist() == json.loads((folder / "redif.json").read_text())["timesteps"]
    unit = normal(4, 2, 8, 8)
    x = unit * scheduler.init_noise_sigma
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(student.network(scheduler.scale_model_input(x, t), t).sample, t, x).prev_sample
    torch.testing.assert_close(student.decode(x), ours(student, schedule, unit, 1.0), rtol=0, atol=1e-4)


def test_the_folder_is_the_teachers_layout_and_says_what_it_is(tmp_path: Path) -> None:
    teacher = write_dit(tmp_path / "teacher")
    (teacher / "LICENSE").write_text("Do what you like.\n")
    (teacher / "README.md").write_text("---\nlicense: other\nlicense_name: likeable\nlanguage: en\n---\n\n# Teacher\n")
    student = trained(load_model(teacher), LORA)
    schedule = schedules.build(student.process, 4, "uniform_trailing")
    folder = export(student, schedule, tmp_path / "student", guidance=1.5, teacher=teacher, summary=SUMMARY)

    assert sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()) == [
        "LICENSE",
        "README.md",
        "model_index.json",
        "redif.json",
        "sample.py",
        "scheduler/scheduler_config.json",
        "transformer/config.json",
        "transformer/diffusion_pytorch_model.safetensors",
    ]
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []
    assert (folder / "LICENSE").read_text() == "Do what you like.\n"
    index = json.loads((folder / "model_index.json").read_text())
    assert index["_class_name"] == "DiTPipeline" and index["scheduler"] == ["diffusers", "EulerDiscreteScheduler"]
    assert index["id2label"] == {"0": "c0", "1": "c1", "2": "c2"}
    assert str(tmp_path) not in "".join(p.read_text() for p in folder.rglob("*.json"))
    settings = json.loads((folder / "redif.json").read_text())
    assert settings["timesteps"] == [999, 749, 499, 249] and settings["guidance"] == 1.5
    sigmas = (schedule.levels.sigma / schedule.levels.alpha).float()
    torch.testing.assert_close(torch.tensor(settings["sigmas"]), sigmas, rtol=1e-3, atol=0)

    card = (folder / "README.md").read_text()
    matter = yaml.safe_load(card.split("---")[1])
    assert {k: matter[k] for k in matter if k.startswith("license")} == {"license": "other", "license_name": "likeable"}
    assert "4 steps at guidance 1.5 (8 network calls an image)" in card
    assert "| student | 4 | 12.35 | 0.5 | 0.25 | 0.0123 |" in card and "warm_start" not in card
    assert "100 held-out noises, seed 7" in card and "judge-b (not FID)" in card


def test_the_pipeline_class_reads_the_folder(tmp_path: Path) -> None:
    student = trained(load_model(write_dit(tmp_path / "teacher")))
    folder = export(student, schedules.build(student.process, 2, "uniform_trailing"), tmp_path / "student")
    pipeline = DiTPipeline.from_pretrained(folder, vae=None, use_safetensors=True)
    assert isinstance(pipeline.scheduler, EulerDiscreteScheduler) and pipeline.labels == {"c0": 0, "c1": 1, "c2": 2}
    for name, value in student.network.state_dict().items():
        assert torch.equal(pipeline.transformer.state_dict()[name], value)


@pytest.mark.slow
def test_what_cannot_be_exported_leaves_nothing_behind(tmp_path: Path) -> None:
    student = trained(load_model(write_unet(tmp_path / "teacher")))
    schedule = schedules.build(student.process, 2, "uniform_trailing")
    broken = make_student(student, Lora())
    with torch.no_grad():
        broken.network.conv_in.bias[0] = float("inf")  # type: ignore[union-attr, index]
    other = load_model(write_unet(tmp_path / "other", beta_end=0.03))
    flow = schedules.build(FlowMatching(), 2, "uniform_trailing")
    for model, grid, options, message in (
        (broken, schedule, {}, "weight conv_in.bias is not finite"),
        (student, schedule, {"guidance": 2.0}, "nothing to guide by"),
        (student, schedules.build(other.process, 2, "uniform_trailing"), {}, "this model's own noise process"),
        (student, flow, {}, "this model's own noise process"),
    ):
        with pytest.raises(ModelError, match=message):
            export(model, grid, tmp_path / "student", **options)
    export(student, schedule, tmp_path / "student")
    with pytest.raises(FileExistsError, match="student exists"):
        export(replace(student), schedule, tmp_path / "student")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["other", "student", "teacher"]
    assert load_model(tmp_path / "student").num_classes is None


@pytest.mark.slow
def test_a_teachers_card_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    teacher = write_unet(tmp_path / "teacher")
    student = load_model(teacher)
    schedule = schedules.build(student.process, 2, "uniform_trailing")
    (teacher / "README.md").write_text("---\nlicense: [\n---\n")
    with pytest.raises(ModelError, match=r"README\.md: its front matter is not valid YAML"):
        export(student, schedule, tmp_path / "student", teacher=teacher)
    for content, message in (
        (b"\xff\xfe-\0", "is no text in UTF-8"),
        (b"---\nlicense: " + b"[" * 10_000, "is not valid YAML .*more than 50 deep"),
        (b"---\na: &a [x]\nlicense: {a: *a}", "license in its front matter is no text"),
    ):
        (teacher / "README.md").write_bytes(content + b"\n---\n")
        with pytest.raises(ModelError, match=rf"README\.md.*{message}"):
            licence(teacher)
    (teacher / "README.md").write_bytes("\ufeff---\nlicense: no\nlicense_name: 2020-01-01\n---\n".encode())
    assert licence(teacher) == {"license": "no", "license_name": "2020-01-01"}
    (teacher / "README.md").write_text("# No front matter\n---\nlicense: mit\n---\n")
    folder = export(student, schedule, tmp_path / "student", teacher=teacher)
    assert "license:" not in (folder / "README.md").read_text()


class Own(PixelUNet):
    """A family of another package: it alone knows what its parts are for."""


@pytest.mark.slow
def test_parts_of_pixels_and_of_another_packages_family(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    teacher = put_in_index(write_unet(tmp_path / "teacher"), extra=["own", "Part"], sizes=[1, 2], empty=[])
    (teacher / "extra" / "deep").mkdir(parents=True)
    (teacher / "extra" / "deep" / "words.txt").write_text("a b c")
    (teacher / "extra" / "old.bin").write_bytes(b"pickle")
    for name, model in (("s", load_model(teacher)), ("own", Own.load(teacher, torch.float32))):
        schedule = schedules.build(model.process, 2, "uniform_trailing")
        folder = export(model, schedule, tmp_path / name, teacher=teacher)
        index = json.loads((folder / "model_index.json").read_text())
        assert (folder / "extra" / "deep" / "words.txt").is_file() == ("extra" in index) == (name == "own")
        assert index["sizes"] == [1, 2] and index["empty"] == [] and not (folder / "extra" / "old.bin").exists()
        assert ("It needs no more than `pip install torch diffusers`." in (folder / "README.md").read_text()) == (
            name == "s"
        )
    assert caplog.text.count("lists the parts extra, which DDPMPipeline does not take") == 1
    model.index["a/b"] = ["own", "Part"]
    with pytest.raises(ModelError, match="lists the part 'a/b', which is no name of a folder beside it"):
        export(model, schedule, tmp_path / "t")
