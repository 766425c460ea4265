"""CLIP as a judge: features, captions, and images of the teacher to compare with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_encoders import write_clip
from transformers import CLIPModel, CLIPTokenizer

from redif_ray.diffusion.noise import Stream
from redif_ray.evaluation.arm import evaluate_arm
from redif_ray.evaluation.encoders import JudgeError, embedded, fit, make_encoder
from redif_ray.evaluation.judge import Judge
from redif_ray.evaluation.judge_source import needs_reference
from redif_ray.evaluation.seen import see
from redif_ray.rewards.preparation import CLIP_MEAN, CLIP_STD
from redif_ray.types import WorkUnit

CAPTIONS = ["a cat", "a dog", "x"] * 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_clip(tmp_path_factory.mktemp("judge") / "tiny-clip"))


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).uniform(size=(12, 3, 16, 16))).float()


@pytest.mark.slow
def test_features_and_captions_are_transformers_own(folder: str, images: torch.Tensor) -> None:
    network, tokens = CLIPModel.from_pretrained(folder).eval(), CLIPTokenizer.from_pretrained(folder)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
    with torch.no_grad():
        told = tokens(CAPTIONS, padding=True, truncation=True, return_tensors="pt")
        found = network(pixel_values=(images - mean) / std, **told)
    encoder = make_encoder(folder, (3, 16, 16))
    features = embedded(encoder, images, "cpu")
    assert encoder.name == "tiny-clip" and np.sqrt(np.square(features).mean()) == pytest.approx(1)
    expected = found.image_embeds.numpy()
    np.testing.assert_allclose(features / np.sqrt(expected.shape[1]), expected, atol=1e-5)
    cosines = (found.image_embeds * found.text_embeds).sum(1)
    np.testing.assert_allclose(fit(encoder, features, CAPTIONS)["caption_cosine"], cosines.numpy(), atol=1e-5)
    assert float(cosines.std()) > 1e-3


@pytest.mark.slow
def test_an_arm_says_how_its_images_fit_their_captions(folder: str, images: torch.Tensor) -> None:
    options: dict[str, Any] = {"nfe": 4, "resamples": 40, "seed": 0}
    for source, conditions in ((folder, CAPTIONS), (folder, [None] * 12), ("random-features", CAPTIONS)):
        encoder = make_encoder(source, (3, 16, 16))
        unit = WorkUnit(0, 0, "deploy", Stream.HELD_OUT, tuple(range(12)), tuple(conditions))
        seen = see(unit, images, images, {}, encoder)
        found = evaluate_arm(seen, Judge(encoder.name, seen.judged), teacher=seen, **options)
        assert found["class_accuracy"] is None
        if (source, conditions) == (folder, CAPTIONS):
            expected = fit(encoder, embedded(encoder, images, "cpu"), CAPTIONS)["caption_cosine"].mean()
            assert found["caption_cosine"] == pytest.approx(expected)
        else:
            assert found["caption_cosine"] is None


def test_which_judges_bring_images_of_their_own(folder: str, tmp_path: Path) -> None:
    assert needs_reference(folder) and needs_reference("random-features") and not needs_reference("fashion-mnist")
    (tmp_path / "reference.parquet").write_bytes(b"")
    assert not needs_reference(str(tmp_path))
    with pytest.raises(JudgeError, match=r"no judge 'clip'; expected fashion-mnist, random-features, .* hub id"):
        make_encoder("clip", (3, 16, 16))
    with pytest.raises(JudgeError, match=r"no judge '.*'; expected .*config.json"):
        make_encoder(str(tmp_path), (3, 16, 16))
