from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, EulerDiscreteScheduler, PNDMScheduler
from safetensors.torch import load_file, save_file
from tiny_models import edit, normal, write_dit, write_unet

from redif_ray.diffusion.levels import VariancePreserving
from redif_ray.errors import UserError
from redif_ray.models import locate, registry
from redif_ray.models.pixel import PixelUNet
from redif_ray.models.protocol import DiffusionModel, ModelError
from redif_ray.models.registry import fingerprint, load_model, model_folder
from redif_ray.teacher.config import TeacherConfig
from redif_ray.teacher.training import train


def copied(source: Path, target: Path) -> Path:
    return Path(shutil.copytree(source, target))


def test_loaded_models_are_frozen_float32_and_know_their_shapes(dit: DiffusionModel, unet: DiffusionModel) -> None:
    assert (dit.num_classes, dit.latent_shape, dit.image_shape) == (3, (1, 8, 8), (1, 8, 8))
    assert (unet.num_classes, unet.latent_shape, unet.image_shape) == (None, (2, 8, 8), (2, 8, 8))
    for model in (dit, unet):
        assert not model.network.training
        assert all(p.dtype == torch.float32 and not p.requires_grad for p in model.network.parameters())


def test_what_train_teacher_writes_can_be_loaded(tmp_path: Path) -> None:
    """The real thing: two steps of training on two classes of 4 x 4 images."""
    images = np.arange(4 * 16, dtype=np.uint8).reshape(4, 4, 4)
    np.savez(tmp_path / "images.npz", images=images, labels=np.array([0, 1, 0, 1]))
    data, out = str(tmp_path / "images.npz"), str(tmp_path / "teacher")
    config = TeacherConfig(data=data, out=out, patch=2, layers=1, heads=1, head_dim=8, steps=2, batch=2)
    model = load_model(train(config))
    assert (model.num_classes, model.latent_shape) == (2, (1, 4, 4))
    assert (model.prediction_type, model.clip) == ("v_prediction", None)
    x0 = model.predict(normal(1, 1, 4, 4), model.process.noisiest(), model.encode([1]), guidance=2.0).x0
    assert bool(x0.isfinite().all())


@pytest.mark.parametrize(
    ("make", "stops"),
    [
        (lambda: DDPMScheduler(beta_schedule="squaredcos_cap_v2"), False),
        (lambda: DDIMScheduler(trained_betas=[0.1, 0.2, 0.3], num_train_timesteps=3), False),
        (lambda: DDIMScheduler(prediction_type="sample", rescale_betas_zero_snr=True, set_alpha_to_one=False), True),
        (lambda: PNDMScheduler(beta_schedule="scaled_linear"), True),
        (lambda: EulerDiscreteScheduler(beta_start=0.001, final_sigmas_type="sigma_min"), True),
    ],
)
def test_noise_processes_are_read_as_diffusers_reads_them(
    unet_folder: Path, tmp_path: Path, make: Callable[[], Any], stops: bool
) -> None:
    """The betas, and where sampling ends: at alphas_cumprod[0] where the scheduler stops there."""
    scheduler, folder = make(), copied(unet_folder, tmp_path / "m")
    scheduler.save_pretrained(folder / "scheduler")
    process = load_model(folder).process
    assert isinstance(process, VariancePreserving)
    assert torch.equal(process.alphas_cumprod, scheduler.alphas_cumprod.double())
    assert process.final_alpha_cumprod == (float(scheduler.alphas_cumprod[0]) if stops else 1.0)


def test_clipping_follows_the_scheduler_class(unet_folder: Path, tmp_path: Path) -> None:
    """DDPM clips unless told otherwise; Euler's scheduler knows no clipping."""
    for name, scheduler, clip in (
        ("a", DDPMScheduler(), 1.0),
        ("b", EulerDiscreteScheduler(), None),
        ("c", DDIMScheduler(clip_sample_range=2.0), 2.0),
    ):
        folder = copied(unet_folder, tmp_path / name)
        scheduler.save_pretrained(folder / "scheduler")
        assert load_model(folder).clip == clip


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        ({"rescale_betas_zero_snr": True}, "zero terminal SNR"),
        ({"trained_betas": [0.1, 0.2, 1.0], "num_train_timesteps": 3}, "zero terminal SNR"),
        ({"prediction_type": "score"}, "prediction_type='score': expected one of epsilon, sample, v_prediction"),
        ({"thresholding": True}, "thresholding=true"),
        ({"_class_name": "Model"}, "_class_name='Model' is not a scheduler"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "no alphas_cumprod"),
    ],
)
def test_schedulers_that_cannot_be_used_say_why(
    unet_folder: Path, tmp_path: Path, scheduler: dict[str, Any], message: str
) -> None:
    folder = copied(unet_folder, tmp_path / "m")
    edit(folder / "scheduler" / "scheduler_config.json", **scheduler)
    with pytest.raises(ModelError, match=message):
        load_model(folder)


def _weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / "unet" / "diffusion_pytorch_model.safetensors"
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path, metadata={"format": "pt"})

    return damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "model_index.json").unlink(), "is not a diffusers pipeline: it has no model_index.json"),
        (lambda f: (f / "model_index.json").write_text("{"), "not valid JSON"),
        (lambda f: edit(f / "model_index.json", _class_name=3), "expected a key _class_name"),
        (
            lambda f: edit(f / "model_index.json", _class_name="KandinskyPipeline"),
            "is a KandinskyPipeline; expected one of .*DDIMPipeline, DDPMPipeline, DiTPipeline",
        ),
        (
            lambda f: edit(f / "model_index.json", _class_name="SanaSprintPipeline"),
            "is a SanaSprintPipeline, which is no teacher: its scheduler draws fresh noise .* with a SanaPipeline",
        ),
        (
            lambda f: edit(f / "model_index.json", _class_name="QwenImageEditPipeline"),
            "is a QwenImageEditPipeline, which is no teacher: .* a FluxKontextPipeline",
        ),
        (
            lambda f: edit(f / "model_index.json", _class_name="LDMTextToImagePipeline"),
            "is a LDMTextToImagePipeline, which is no teacher: its text encoder .* with a StableDiffusionPipeline",
        ),
        (
            lambda f: edit(f / "model_index.json", _class_name="LDMPipeline"),
            "is a LDMPipeline, which is no teacher: its decoder .* a DDPMPipeline, or .* a DiTPipeline",
        ),
        (lambda f: shutil.rmtree(f / "unet"), "no unet/config.json; expected a UNet2DModel"),
        (lambda f: shutil.rmtree(f / "scheduler"), "no scheduler/scheduler_config.json"),
        (
            lambda f: (f / "unet" / "diffusion_pytorch_model.safetensors").rename(
                f / "unet" / "diffusion_pytorch_model.bin"
            ),
            "from safetensors",
        ),
        (lambda f: (f / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"x" * 99), "from safetensors"),
        (_weights(lambda w: w.pop("conv_in.weight")), r"missing_keys': \['conv_in.weight'\]"),
        (_weights(lambda w: w.update({"lora_A": torch.zeros(1)})), r"unexpected_keys': \['lora_A'\]"),
        (lambda f: edit(f / "unet" / "config.json", sample_size=None), "sample_size is null"),
    ],
)
def test_folders_that_cannot_be_used_say_why(
    unet_folder: Path, tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    folder = copied(unet_folder, tmp_path / "m")
    damage(folder)
    with pytest.raises(ModelError, match=message) as error:
        load_model(folder)
    assert isinstance(error.value, UserError)


@pytest.mark.parametrize("network", [{"class_embed_type": "timestep"}, {"time_embedding_type": "fourier"}])
def test_embeddings_that_are_no_class_or_no_timestep_are_refused(tmp_path: Path, network: dict[str, str]) -> None:
    folder = write_unet(tmp_path / "m", network=network)
    with pytest.raises(ModelError, match=f"{next(iter(network))}='{next(iter(network.values()))}'"):
        load_model(folder)


def test_a_vae_that_is_not_there_is_named(dit_folder: Path, tmp_path: Path) -> None:
    folder = copied(dit_folder, tmp_path / "m")
    edit(folder / "model_index.json", vae=["diffusers", "AutoencoderKL"])
    with pytest.raises(ModelError, match=r"has no vae.config\.json; expected a AutoencoderKL there"):
        load_model(folder)


def test_names_of_shipped_teachers(dit_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locate, "TEACHERS", tmp_path)
    shipped = copied(dit_folder, tmp_path / "digits")
    assert model_folder("digits") == shipped and load_model("digits").num_classes == 3
    with pytest.raises(ModelError, match=r"no model 'digit': expected a folder, a hub id \(org/name\).*\(digits\)"):
        load_model("digit")
    with pytest.raises(ModelError, match="no model 'a/b/c'"):
        load_model("a/b/c")


class Inverted(PixelUNet):
    """A family of another package: its images are negatives."""

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return 1 - super().decode(latents)


def load_inverted(folder: Path, dtype: torch.dtype) -> DiffusionModel:
    return Inverted.load(folder, dtype)


def test_another_package_adds_a_family(unet_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    point = EntryPoint("NegativePipeline", f"{__name__}:load_inverted", registry.GROUP)
    monkeypatch.setattr(registry, "entry_points", lambda group, name=point.name: [point] if name == point.name else [])
    folder = copied(unet_folder, tmp_path / "m")
    edit(folder / "model_index.json", _class_name="NegativePipeline")
    assert load_model(folder).decode(torch.ones(1, 2, 8, 8)).max() == 0
    edit(folder / "model_index.json", _class_name="Other")
    with pytest.raises(ModelError, match=r"DiTPipeline, EDMPipeline, .*NegativePipeline, .*XLPipeline, .*; or code of"):
        load_model(folder)


@pytest.mark.slow
def test_the_fingerprint_is_of_all_that_decides_an_image(tmp_path: Path) -> None:
    """Equal for a copy; another for other weights, betas, prediction type, clipping, end or width of the heads."""
    base = load_model(write_dit(tmp_path / "a"))
    assert fingerprint(load_model(copied(tmp_path / "a", tmp_path / "copy"))) == fingerprint(base)
    others = [
        load_model(write_dit(tmp_path / "betas", beta_schedule="linear")),
        load_model(write_dit(tmp_path / "end", set_alpha_to_one=False)),
        load_model(write_dit(tmp_path / "clip", clip_sample=True)),
        replace(base, prediction_type="sample"),
    ]
    folder = copied(tmp_path / "a", tmp_path / "heads")
    edit(folder / "transformer" / "config.json", num_attention_heads=4, attention_head_dim=4)
    others.append(load_model(folder))
    changed = load_model(tmp_path / "copy")
    with torch.no_grad():
        next(changed.network.parameters())[0] += 1e-6
    others.append(changed)
    assert len({fingerprint(m) for m in [base, *others]}) == 1 + len(others)


def test_rectangles_keep_their_shape(tmp_path: Path) -> None:
    model = load_model(write_unet(tmp_path / "m", network={"sample_size": (4, 8)}))
    assert model.image_shape == (2, 4, 8)


def test_a_name_below_a_folder_here_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not asked of the hub, which would take its time; with a revision it is."""
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=r"no model 'runs/nope': .*the folder runs has no nope, and runs/nope@main is"):
        model_folder("runs/nope")
    assert locate.local_folder("runs/nope@main") is None and locate.local_folder("org/name") is None
