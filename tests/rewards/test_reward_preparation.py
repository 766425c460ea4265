"""What an encoder is shown: against transformers' own image processors, which resize with PIL on 8-bit pixels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from redif_ray.rewards.preparation import IMAGENET_MEAN, IMAGENET_STD, Preparation, read_preparation
from redif_ray.rewards.pretrained import load_preparation
from redif_ray.rewards.term import RewardError

OTHER = Preparation(resize=1, crop=(1, 1), mode="bilinear", mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))


@pytest.mark.parametrize("shape", [(3, 16, 16), (3, 40, 40), (3, 21, 34), (3, 45, 29), (3, 9, 7)])
@pytest.mark.parametrize(
    ("processor", "options"),
    [
        (CLIPImageProcessorPil, {"size": {"shortest_edge": 16}, "crop_size": 16}),
        (
            BitImageProcessorPil,
            {
                "size": {"shortest_edge": 19},
                "crop_size": {"height": 14, "width": 12},
                "image_mean": IMAGENET_MEAN,
                "image_std": IMAGENET_STD,
            },
        ),
        (CLIPImageProcessorPil, {"size": {"height": 18, "width": 15}, "do_center_crop": False, "resample": 2}),
        (CLIPImageProcessorPil, {"do_resize": False, "crop_size": 7, "do_normalize": False}),
    ],
)
def test_prepared_images_are_those_of_transformers(processor, options, shape, pair, tmp_path):
    """Up to PIL's rounding to 8 bits, after each of its two passes: one and a half grey levels. Pixels stay away from
    black and white, where PIL also clamps after its first pass.
    """
    pixels = np.rint(60 + 135 * pair(shape=(2, *shape)).student.numpy()).astype(np.uint8)
    own = processor(**options)
    own.save_pretrained(tmp_path)
    expected = own(list(pixels.transpose(0, 2, 3, 1)), return_tensors="pt")["pixel_values"]
    preparation = load_preparation(str(tmp_path), OTHER)
    preparation.check(shape)
    got = preparation(torch.from_numpy(pixels / 255))
    assert got.shape == expected.shape
    levels = 255 * torch.tensor(preparation.std)[:, None, None] * (got - expected)
    assert levels.abs().max() < 1.5 and levels.abs().mean() < 0.4


@pytest.mark.parametrize("size", [(7, 5), (30, 33), (20, 8)])
@pytest.mark.parametrize("mode", ["bicubic", "bilinear"])
def test_resampling_is_pils_on_floats(mode, size, pair):
    kind = Image.Resampling[mode.upper()]
    image = pair(shape=(1, 1, 16, 17), dtype=torch.float32).student
    expected = np.asarray(Image.fromarray(image[0, 0].numpy()).resize(size[::-1], kind)).clip(0, 1)
    got = Preparation(resize=size, mode=mode, mean=(0, 0, 0), std=(1, 1, 1))(image)[0, 0]
    np.testing.assert_allclose(got, expected, atol=2e-6)


def test_preparation_is_differentiable_and_repeats_grey(pair):
    images = pair(shape=(2, 1, 11, 9)).student
    preparation = Preparation(resize=7, crop=(6, 7))
    colour = preparation(images.expand(-1, 3, -1, -1))
    torch.testing.assert_close(preparation(images), colour)
    inside = (0.3 + 0.4 * images).requires_grad_()  # clamped nowhere
    assert torch.autograd.gradcheck(preparation, inside)


def test_a_reward_may_look_at_the_whole_image():
    preparation = Preparation(resize=32, crop=(28, 28), mode="bilinear")
    images = torch.zeros(1, 3, 64, 64, requires_grad=True)
    preparation(images + 0.5).sum().backward()
    assert (images.grad[..., :3] == 0).all() and (images.grad[..., 16:48, 16:48] != 0).all()
    images.grad = None
    assert preparation.whole(images + 0.5).shape == (1, 3, 28, 28)
    preparation.whole(images + 0.5).sum().backward()
    assert (images.grad != 0).all()


def test_keys_that_are_absent_are_the_encoders_own():
    assert read_preparation({}, OTHER, "f") == OTHER
    assert read_preparation({"size": 5, "crop_size": 4, "resample": 3}, OTHER, "f") == Preparation(
        resize=5, crop=(4, 4), mode="bicubic", mean=OTHER.mean, std=OTHER.std
    )
    assert read_preparation({"do_resize": False, "do_center_crop": False, "do_normalize": False}, OTHER, "f") == (
        Preparation(resize=None, crop=None, mode="bilinear", mean=(0, 0, 0), std=(1, 1, 1))
    )


@pytest.mark.parametrize(
    "spoil",
    [
        {"resample": 1},
        {"size": {"longest_edge": 8}},
        {"size": {"shortest_edge": 8, "longest_edge": 9}},
        {"size": "8"},
        {"crop_size": {"height": 8}},
        {"image_mean": [0.5]},
        {"image_std": 0.5},
        {"rescale_factor": 1 / 127.5},
        {"do_rescale": False},
    ],
)
def test_processors_that_do_something_else(spoil):
    with pytest.raises(RewardError, match=r"^f: .*expected size \(shortest_edge.*rescale_factor 1/255"):
        read_preparation(spoil, OTHER, "f")


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 8, 8), r"\(2, 8, 8\); the encoder takes 1 or 3 channels"),
        ((3, 8, 8), r"crop_size \(9, 4\) is larger than the resized image \(8, 8\)"),
    ],
)
def test_images_that_cannot_be_prepared(shape, message):
    with pytest.raises(RewardError, match=message):
        Preparation(resize=None, crop=(9, 4)).check(shape)


def test_where_the_processor_is_read_from(tmp_path: Path):
    def write(name: str, content: Any) -> None:
        (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content))

    with pytest.raises(RewardError, match=r"has no preprocessor_config.json.*copy it from the source of the model"):
        load_preparation(str(tmp_path), OTHER)
    write("processor_config.json", {"image_processor": {"size": 3}})
    assert load_preparation(str(tmp_path), OTHER).resize == 3
    write("preprocessor_config.json", {"size": 4})
    assert load_preparation(str(tmp_path), OTHER).resize == 4
    for content in ("{", "[]"):
        write("preprocessor_config.json", content)
        with pytest.raises(RewardError, match=r"preprocessor_config\.json is not an image processor's"):
            load_preparation(str(tmp_path), OTHER)
