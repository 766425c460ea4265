"""Decoding and encoding by a VAE: in bfloat16, and several small images a call."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from second_device import NO_GPU
from tiny_models import normal
from tiny_pipelines import write_sd, write_sd3
from tiny_qwen_image import write_qwen_image
from torch import Tensor

from redif_ray.models import latents
from redif_ray.models.components import channels_last
from redif_ray.models.latents import in_parts
from redif_ray.models.registry import load_model

WRITERS: dict[str, Callable[[Path], Path]] = {"sd": write_sd, "sd3": write_sd3}


@pytest.mark.slow
@pytest.mark.parametrize("last", [False, True], ids=["as loaded", "channels last"])
@pytest.mark.parametrize("name", WRITERS)
def test_images_of_bfloat16_are_within_one_of_255_levels_in_the_mean(name: str, last: bool, tmp_path: Path) -> None:
    """Also with the channels last in memory, as on a GPU."""
    folder = WRITERS[name](tmp_path / name)
    whole, half = load_model(folder), load_model(folder, dtype=torch.bfloat16)
    if last:
        kernel = channels_last(half.part("vae")).decoder.conv_in.weight
        assert kernel.is_contiguous(memory_format=torch.channels_last) and not kernel.is_contiguous()
    z = normal(8, *whole.latent_shape)
    with torch.no_grad():
        expected, found = whole.decode(z), half.decode(z)
    assert found.dtype == torch.float32 and expected.std() > 0.02
    assert 0 < float((found - expected).abs().mean()) < 1 / 255


@pytest.mark.slow
def test_a_vae_of_videos_or_in_32_bits_stays_as_it_is(tmp_path: Path) -> None:
    videos: Any = load_model(write_qwen_image(tmp_path / "qwen"), dtype=torch.bfloat16, size=(32, 32)).part("vae")
    whole: Any = load_model(write_sd(tmp_path / "sd")).part("vae")
    for vae in (videos, whole):
        assert all(weight.is_contiguous() for weight in channels_last(vae).parameters())


@pytest.mark.gpu
@NO_GPU
def test_a_gpu_holds_the_channels_of_a_vae_last(tmp_path: Path) -> None:
    model: Any = load_model(write_sd(tmp_path / "sd"), device="cuda", dtype=torch.bfloat16)
    kernel = model.part("vae").decoder.conv_in.weight
    assert kernel.is_contiguous(memory_format=torch.channels_last) and not kernel.is_contiguous()
    assert model.images(normal(2, *model.latent_shape).to("cuda")).isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_latents_of_images_are_those_of_the_vae_in_float32(dtype: torch.dtype, tmp_path: Path) -> None:
    model: Any = load_model(write_sd3(tmp_path / "sd3"), dtype=dtype)
    images = normal(3, *model.image_shape).sigmoid()
    found = model.encode_images(images)
    assert found.dtype == torch.float32 and found.shape[1:] == model.latent_shape
    torch.testing.assert_close(model.from_vae(model.to_vae(found)), found, rtol=1e-5, atol=1e-5)


def test_a_call_has_as_many_images_as_its_pixels_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def call(rows: Tensor) -> Tensor:
        seen.append(len(rows))
        return 2 * rows

    rows = normal(7, 3, 4, 4)
    assert torch.equal(in_parts(call, rows, (3, 512, 512)), 2 * rows) and seen == [4, 3]
    seen.clear()
    assert torch.equal(in_parts(call, rows, (3, 1536, 1024)), 2 * rows) and seen == [1] * 7
    monkeypatch.setattr(latents, "AT_ONCE", 16)
    seen.clear()
    in_parts(call, rows, (3, 4, 4))
    assert seen == [1] * 7


@pytest.mark.slow
def test_images_do_not_depend_on_the_images_of_their_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to the rounding of another batch."""
    model = load_model(write_sd(tmp_path / "sd"))
    z = normal(5, *model.latent_shape)
    with torch.no_grad():
        together = model.decode(z)
        monkeypatch.setattr(latents, "AT_ONCE", 1)
        alone = model.decode(z)
    assert float((together - alone).abs().max()) < 1e-5


@pytest.mark.slow
def test_images_that_overflow_are_the_decoder_s_fault(tmp_path: Path) -> None:
    model: Any = load_model(write_sd(tmp_path / "sd"))
    z = normal(1, *model.latent_shape)
    assert model.images(z).isfinite().all()
    with torch.no_grad():
        model.part("vae").decoder.conv_in.bias.fill_(torch.inf)
    with pytest.raises(FloatingPointError, match=r"StableDiffusion decodes images .* networks\.precision=float32 or b"):
        model.images(z)
