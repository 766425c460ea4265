"""The example of a reward by an object detector: demands by hand, and a small detector of transformers behind HTTP."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageDraw
from test_reward_http import free_port
from transformers import YolosConfig, YolosForObjectDetection
from transformers.models.yolos.image_processing_pil_yolos import YolosImageProcessorPil

from redif_ray.config import Term
from redif_ray.rewards.base import RewardInputs, build_terms

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "detector_server.py"
DOG, APPLES = [40.0, 10.0, 60.0, 30.0], [[2.0, 12.0, 14.0, 24.0], [18.0, 12.0, 30.0, 24.0]]


@pytest.fixture(scope="module")
def example() -> Any:
    spec = importlib.util.spec_from_file_location("detector_server", EXAMPLE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def scene() -> Image.Image:
    """Two apples, red and green, left of a brown dog."""
    image = Image.new("RGB", (64, 32), "white")
    draw = ImageDraw.Draw(image)
    for box, colour in zip((*APPLES, DOG), ("#d01818", "#209030", "#704020"), strict=True):
        draw.rectangle(box, fill=colour)
    return image


@pytest.mark.parametrize(
    ("include", "share"),
    [
        ([{"class": "apple", "count": 2}], 1),
        ([{"class": "apple", "count": 3}], 0),
        ([{"class": "apple"}, {"class": "dog"}], 0.5),
        ([{"class": "apple", "count": 1, "color": "red"}, {"class": "apple", "count": 1, "color": "green"}], 1),
        ([{"class": "apple", "count": 1, "color": "blue"}, {"class": "dog", "color": "brown"}], 0.5),
        ([{"class": "apple", "count": 2}, {"class": "dog", "position": ["right of", 0]}], 1),
        ([{"class": "apple", "count": 2}, {"class": "dog", "position": ["left of", 0]}], 0.5),
        ([{"class": "dog"}, {"class": "apple", "count": 2, "position": ["left of", 0]}], 1),
        ([{"class": "dog"}, {"class": "apple", "count": 2, "position": ["above", 0]}], 0.5),
        ([{"class": "cat"}], 0),
        ([], 1),
    ],
)
def test_the_share_of_demands_that_an_image_meets(example: Any, include: list[Any], share: float) -> None:
    assert example.score(scene(), {"apple": APPLES, "dog": [DOG]}, include) == share


def test_demands_may_come_from_parquet_which_fills_up_what_they_lack(example: Any) -> None:
    demand = {"class": "dog", "count": None, "color": None, "position": None}
    assert example.score(scene(), {"dog": [DOG]}, [demand]) == 1


def test_boxes_that_lie_on_each_other_are_one(example: Any) -> None:
    assert example.shared([0, 0, 10, 10], [0, 0, 10, 9]) == 1 and example.shared([0, 0, 10, 10], [5, 0, 15, 10]) == 0.5
    assert example.shared([0, 0, 1, 1], [2, 2, 3, 3]) == 0


@pytest.mark.long
def test_a_detector_behind_http_scores(example: Any, tmp_path: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        config = YolosConfig(
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            image_size=[32, 32],
            patch_size=8,
            num_detection_tokens=6,
            id2label={0: "apple", 1: "dog"},
            label2id={"apple": 0, "dog": 1},
        )
        network = YolosForObjectDetection(config)
    with torch.no_grad():
        network.class_labels_classifier.layers[-1].bias += torch.tensor([3.0, 0.0, -3.0])  # all are apples
    network.save_pretrained(tmp_path)
    YolosImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    objects = {name: len(boxes) for name, boxes in example.Detector(tmp_path)(scene()).items()}
    assert 1 <= objects["apple"] <= 6 and "dog" not in objects
    count = len(example.Detector(tmp_path)(_png(images[0]))["apple"])
    told = {
        "a": {"include": [{"class": "apple", "count": count}, {"class": "dog"}]},
        "b": {"include": [{"class": "dog"}]},
    }
    port = free_port()
    process = subprocess.Popen([sys.executable, str(EXAMPLE), str(tmp_path), str(port)], stderr=subprocess.DEVNULL)
    try:
        rewards = build_terms(
            {"mine": Term(options={"url": f"http://127.0.0.1:{port}", "teacher": False, "retries": 20})},
            num_classes=0,
            image_shape=(3, 32, 32),
            device="cpu",
            captions=True,
            metadata=told,
        )
        found = rewards(RewardInputs(images, images, ["a", "b", "a"]))["mine"]
    finally:
        process.terminate()
        process.wait()
    assert found[:2].tolist() == [0.5, 0] and found[2] in (0, 0.5)


def _png(image: torch.Tensor) -> Image.Image:
    return Image.fromarray((255 * image).round().byte().movedim(0, -1).numpy())
