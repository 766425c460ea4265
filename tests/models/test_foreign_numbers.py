"""Numbers in configurations mean what diffusers' own classes and pipelines make of them, and nothing else."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, EulerDiscreteScheduler, SchedulerMixin
from tiny_models import edit, normal, write_unet
from tiny_pipelines import write_sd, write_sd3, write_sdxl
from tiny_pixart import write_pixart
from tiny_sana import write_sana
from torch import Tensor

from redif_ray.models.folder import load_scheduler
from redif_ray.models.protocol import ModelError
from redif_ray.models.registry import load_model

pytestmark = pytest.mark.slow

KINDS = [
    name
    for name in dir(diffusers)
    if isinstance(kind := getattr(diffusers, name), type)
    and issubclass(kind, SchedulerMixin)
    and kind is not SchedulerMixin
    and all(
        p.default is not p.empty or p.kind > p.KEYWORD_ONLY - 1 for p in inspect.signature(kind).parameters.values()
    )
]
LEFT_OVER = {
    "clip_sample": True,
    "clip_sample_range": 0.5,
    "thresholding": True,
    "rescale_betas_zero_snr": True,
    "final_sigmas_type": "sigma_min",
    "use_flow_sigmas": True,
    "shift_terminal": 0.3,
    "invert_sigmas": True,
    "use_dynamic_shifting": True,
    "steps_offset": 7,
}


@pytest.mark.parametrize("name", KINDS)
def test_a_scheduler_has_the_keys_of_its_own_class_alone(name: str, tmp_path: Path) -> None:
    kind = getattr(diffusers, name)
    known = inspect.signature(kind).parameters
    try:
        kind().save_pretrained(tmp_path / "scheduler")
    except ImportError as error:
        pytest.skip(str(error))
    edit(tmp_path / "scheduler" / "scheduler_config.json", **{k: v for k, v in LEFT_OVER.items() if k not in known})
    loaded = load_scheduler(tmp_path)
    assert type(loaded) is kind
    assert {key for key in loaded.config if not key.startswith("_")} <= known.keys()
    assert all(loaded.config.get(key) is None for key in LEFT_OVER if key not in known)


def test_clipping_of_a_class_that_does_not_clip(tmp_path: Path) -> None:
    """diffusers' from_config keeps the keys of the class that it converts from."""
    folder = write_unet(tmp_path / "m", clip_sample=True)
    assert load_model(folder).clip == 1.0
    config = DDIMScheduler.from_pretrained(folder / "scheduler").config
    EulerDiscreteScheduler.from_config(config).save_pretrained(folder / "scheduler")
    assert json.loads((folder / "scheduler" / "scheduler_config.json").read_text())["clip_sample"] is True
    assert load_model(folder).clip is None


def decoded(folder: Path, latents: Tensor) -> tuple[Tensor, Tensor]:
    """The images of this package and of the pipeline, which gets the latents as the result of one step of no change."""
    model: Any = load_model(folder)
    pipe: Any = DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    seen: list[Tensor] = []
    decode = pipe.vae.decode
    pipe.vae.decode = lambda z, *args, **kwargs: (seen.append(z), decode(z, *args, **kwargs))[1]

    def keep(_: Any, __: int, ___: Any, values: dict[str, Tensor]) -> dict[str, Tensor]:
        return {**values, "latents": latents}

    pipe(prompt="a fox", num_inference_steps=1, callback_on_step_end=keep, output_type="pt")
    return model.to_vae(latents), seen[-1]


@pytest.mark.parametrize(
    ("write", "numbers"),
    [
        (write_sd, {"latents_mean": [0.1, -0.2, 0.3, 0.4], "latents_std": [0.5, 0.6, 0.7, 0.8], "shift_factor": 0.3}),
        (write_sdxl, {"latents_mean": [0.1, -0.2, 0.3, 0.4], "latents_std": [0.5, 0.6, 0.7, 0.8], "shift_factor": 0.3}),
        (write_sdxl, {"latents_mean": [0.1, -0.2, 0.3, 0.4], "shift_factor": 0.3}),
        (write_sd3, {"latents_mean": [0.1] * 8, "latents_std": [0.5] * 8, "shift_factor": -0.3}),
    ],
)
def test_latents_of_the_vae_are_the_pipeline_s(write: Any, numbers: dict[str, Any], tmp_path: Path) -> None:
    folder = write(tmp_path / "m")
    edit(folder / "vae" / "config.json", **numbers)
    model: Any = load_model(folder)
    latents = normal(1, *model.latent_shape)
    own, pipeline = decoded(folder, latents)
    torch.testing.assert_close(own, pipeline, rtol=0, atol=1e-6)
    torch.testing.assert_close(model.from_vae(own), latents, rtol=0, atol=1e-5)


@pytest.mark.parametrize("write", [write_pixart, write_sana])
def test_families_whose_pipelines_do_not_shift(write: Any, tmp_path: Path) -> None:
    folder = write(tmp_path / "m")
    edit(folder / "vae" / "config.json", shift_factor=0.3, scaling_factor=0.5)
    model: Any = load_model(folder)
    latents = normal(1, *model.latent_shape)
    assert torch.equal(model.to_vae(latents), latents / 0.5) and torch.equal(model.from_vae(latents), latents * 0.5)


def test_statistics_that_are_no_statistics(tmp_path: Path) -> None:
    folder = write_sdxl(tmp_path / "m")
    for wrong in ({"latents_std": [0.0] * 4}, {"latents_std": [1.0]}, {"latents_mean": "abcd"}):
        edit(folder / "vae" / "config.json", **({"latents_mean": [0.1] * 4, "latents_std": [1.0] * 4} | wrong))
        with pytest.raises(
            ModelError, match=r"vae/config.json: latents_mean and latents_std are .*; expected 4 numbers"
        ):
            load_model(folder)
