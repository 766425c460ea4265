"""The three points of every term, by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from redif_ray.rewards.base import RewardError
from redif_ray.rewards.calibration import blind, by_agreement, calibrate, check_range, table


def test_points_are_the_means_of_their_own_images(pair, build):
    teacher = pair()
    same = replace(teacher, student=teacher.teacher)
    other = replace(same, student=same.teacher.roll(1, 0))
    init = replace(same, student=same.teacher * 0.9)
    rewards = build("mse", "ssim")
    points = ({name: value.numpy() for name, value in rewards(inputs).items()} for inputs in (same, other, init))
    found = calibrate(*points)
    assert list(found) == ["mse", "ssim"] and list(found["mse"]) == ["self", "other_seed", "init", "spread"]
    assert found["mse"]["self"] == 0 and found["ssim"]["self"] == pytest.approx(1)
    assert found["mse"]["other_seed"] == pytest.approx(-(other.student - other.teacher).square().mean().item())
    assert found["mse"]["init"] == pytest.approx(-0.01 * init.teacher.square().mean().item())
    squares = 0.01 * init.teacher.square().mean((1, 2, 3))
    assert found["mse"]["spread"] == pytest.approx(squares.std(correction=0).item()) and squares.std() > 0
    assert found["ssim"]["other_seed"] < found["ssim"]["init"] < found["ssim"]["self"]


def test_images_in_the_upper_half_of_the_range_are_refused():
    check_range(0.0)
    with pytest.raises(RewardError, match=r"below 0\.5.*twice"):
        check_range(0.5)


def test_table_names_every_number():
    text = table(
        {
            "mse": {"self": 0.0, "other_seed": -0.25, "init": -0.125, "spread": 0.5},
            "histogram_kl": {"self": 0.0, "other_seed": -3.5, "init": -1.0, "spread": 2.0},
        }
    )
    head, first, second = text.splitlines()
    assert head.split() == ["term", "self", "other", "seed", "init", "to", "gain", "spread"]
    assert first.split() == ["mse", "0", "-0.25", "-0.125", "0.125", "0.5"]
    assert second.split() == ["histogram_kl", "0", "-3.5", "-1", "1", "2"]
    assert len({len(line) for line in text.splitlines()}) == 1


def test_the_teacher_s_image_is_the_best_of_a_term_that_compares_with_it_alone() -> None:
    images = torch.rand(64, 1, 8, 8, generator=torch.Generator().manual_seed(0)).numpy()
    others, near = images[::-1], images * 0.8
    terms = {
        "mse": lambda own, teacher: -((own - teacher) ** 2).mean((1, 2, 3)),
        "bright": lambda own, teacher: own.mean((1, 2, 3)),
    }
    pairs = ((images, images), (others, images), (near, images))
    found = calibrate(*({name: term(*pair) for name, term in terms.items()} for pair in pairs))
    assert by_agreement(found["mse"]) and not by_agreement(found["bright"])
    assert blind(found) == []
    verdict = {"verdict": np.zeros(4, np.float32)}
    assert blind(calibrate(verdict, verdict, verdict)) == ["verdict"]
