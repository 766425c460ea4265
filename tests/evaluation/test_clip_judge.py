"""CLIP as a judge: features, captions, and images of the teacher to compare with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_encoders import write_clip
from transformers import CLIPModel, CLIPTokenizer

from redif_ray.evaluation.arm import evaluate_arm
from redif_ray.evaluation.judge import JudgeError, judge_of_images, make_encoder, needs_reference
from redif_ray.rewards.preparation import CLIP_MEAN, CLIP_STD

CAPTIONS = ["a cat", "a dog", "x"] * 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_clip(tmp_path_factory.mktemp("judge") / "tiny-clip"))


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).uniform(size=(12, 3, 16, 16))).float()


def test_features_and_captions_are_transformers_own(folder: str, images: torch.Tensor) -> None:
    network, tokens = CLIPModel.from_pretrained(folder).eval(), CLIPTokenizer.from_pretrained(folder)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
    with torch.no_grad():
        told = tokens(CAPTIONS, padding=True, truncation=True, return_tensors="pt")
        found = network(pixel_values=(images - mean) / std, **told)
    judge = judge_of_images(folder, images.numpy())
    features = judge.embed(images)
    assert judge.name == "tiny-clip" and np.sqrt(np.square(features).mean()) == pytest.approx(1)
    expected = found.image_embeds.numpy()
    np.testing.assert_allclose(features / np.sqrt(expected.shape[1]), expected, atol=1e-5)
    cosines = (found.image_embeds * found.text_embeds).sum(1)
    assert judge.caption_cosine(features, CAPTIONS) == pytest.approx(float(cosines.mean()), abs=1e-5)
    assert float(cosines.std()) > 1e-3


def test_an_arm_says_how_its_images_fit_their_captions(folder: str, images: torch.Tensor) -> None:
    judge = judge_of_images(folder, images.numpy())
    seen = judge.see(images)
    options: dict[str, Any] = {"nfe": 4, "terms": {}, "resamples": 40, "seed": 0}
    told = evaluate_arm(seen, CAPTIONS, judge, teacher=seen, **options)
    assert told["caption_cosine"] == judge.caption_cosine(seen.features, CAPTIONS) and told["class_accuracy"] is None
    assert evaluate_arm(seen, [None] * 12, judge, teacher=seen, **options)["caption_cosine"] is None
    random = judge_of_images("random-features", images.numpy())
    seen = random.see(images)
    assert evaluate_arm(seen, CAPTIONS, random, teacher=seen, **options)["caption_cosine"] is None


def test_which_judges_bring_images_of_their_own(folder: str, tmp_path: Path) -> None:
    assert needs_reference(folder) and needs_reference("random-features") and not needs_reference("fashion-mnist")
    (tmp_path / "reference.parquet").write_bytes(b"")
    assert not needs_reference(str(tmp_path))
    with pytest.raises(JudgeError, match=r"no judge 'clip'; expected fashion-mnist, random-features, .* hub id"):
        make_encoder("clip", (3, 16, 16))
    with pytest.raises(JudgeError, match=r"no judge '.*'; expected .*config.json"):
        make_encoder(str(tmp_path), (3, 16, 16))
