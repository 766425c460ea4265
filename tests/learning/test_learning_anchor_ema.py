from __future__ import annotations

import pytest
import torch

from redif_ray.checkpoint import pack, unpack
from redif_ray.learning.anchor import anchor_loss
from redif_ray.learning.ema import ExponentialAverage

ERRORS = torch.tensor([[[0.05, -0.3], [1.0, 0.0]], [[-0.1, 0.2], [-2.0, 0.09]]])  # [2, 2, 2], delta 0.1
TARGET = torch.full((2, 2, 2), 3.0)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("l1", [(0.05 + 0.3 + 1.0) / 4, (0.1 + 0.2 + 2.0 + 0.09) / 4]),
        ("mse", [(0.0025 + 0.09 + 1.0) / 4, (0.01 + 0.04 + 4.0 + 0.0081) / 4]),
        ("huber", [(0.00125 + 0.025 + 0.095) / 4, (0.005 + 0.015 + 0.195 + 0.00405) / 4]),
    ],
)
def test_anchor_closed_forms(kind: str, expected: list[float]) -> None:
    found = anchor_loss(TARGET + ERRORS, TARGET, kind, 0.1)
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-5, atol=1e-7)
    gated = anchor_loss(TARGET + ERRORS, TARGET, kind, 0.1, torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(gated, torch.tensor([0.0, expected[1]]), rtol=1e-5, atol=1e-7)


def test_anchor_refuses_another_shape_and_name() -> None:
    with pytest.raises(ValueError, match=r"\[2, 2\]; expected the mean's \[2, 2, 2\]"):
        anchor_loss(TARGET, TARGET[..., 0], "l1", 0.1)
    with pytest.raises(ValueError, match="'l3': expected l1"):
        anchor_loss(TARGET, TARGET, "l3", 0.1)


def test_average_is_a_weighted_sum_of_all_weights() -> None:
    series = [torch.tensor([float(v), -float(v)]) for v in (1, 5, 2, 8, 3, 7)]
    average = ExponentialAverage({"w": series[0]}, 0.3)
    decays = [min(0.3, (1 + t) / (10 + t)) for t in range(5)]
    assert decays[1] < 0.3 == decays[3]  # both branches occur
    for weights in series[1:]:
        average.update({"w": weights})
    expected = torch.zeros(2)
    for i, weights in enumerate(series):
        share = 1.0 if i == 0 else 1 - decays[i - 1]
        for decay in decays[i:]:
            share *= decay
        expected = expected + share * weights
    torch.testing.assert_close(average.weights()["w"], expected)


def test_average_continues_from_its_state() -> None:
    def run(average: ExponentialAverage, steps: range) -> None:
        for t in steps:
            average.update({"w": torch.full((3,), float(t * t))})

    whole, first = (ExponentialAverage({"w": torch.zeros(3)}, 0.9) for _ in range(2))
    run(whole, range(8))
    run(first, range(5))
    second = ExponentialAverage({"w": torch.ones(3)}, 0.9)
    second.load_state_dict(unpack("ema", pack("ema", first.state_dict())))
    run(second, range(5, 8))
    assert torch.equal(second.weights()["w"], whole.weights()["w"])


def test_average_is_a_copy_and_knows_its_names() -> None:
    weights = {"w": torch.zeros(2)}
    average = ExponentialAverage(weights, 0.5)
    weights["w"] += 1
    average.weights()["w"].add_(1)
    assert not average.weights()["w"].any()
    with pytest.raises(ValueError, match="such as v"):
        average.update({"w": torch.zeros(2), "v": torch.zeros(2)})
    with pytest.raises(ValueError, match="decay=1"):
        ExponentialAverage(weights, 1.0)
