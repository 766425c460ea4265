"""FLOPs against counts by hand; the ledger's sums."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from redif_ray.evaluation.compute import ComputeLedger, forward_flops, update_factor


def test_linear_and_convolution_by_hand() -> None:
    linear, x = nn.Linear(20, 30), torch.zeros(4, 7, 20)
    assert forward_flops(lambda: linear(x), 4) == 2 * 7 * 20 * 30
    conv, image = nn.Conv2d(3, 5, 3, stride=2, padding=1), torch.zeros(2, 3, 8, 8)
    assert forward_flops(lambda: conv(image), 2) == 2 * (4 * 4) * 5 * 3 * 9


def test_attention_by_hand() -> None:
    """q k^T and its product with v: 2 L^2 d each, a head. Left to itself the CPU's fused kernel would count as 0."""
    q, k, v = (torch.zeros(3, 2, 16, 8) for _ in range(3))
    attention = nn.functional.scaled_dot_product_attention
    assert forward_flops(lambda: attention(q, k, v), 3) == 2 * (2 * 16 * 16 * 8 + 2 * 16 * 16 * 8)


def test_nothing_counted_is_an_error() -> None:
    with pytest.raises(ValueError, match="no FLOPs"):
        forward_flops(lambda: torch.zeros(3) + 1, 1)
    with pytest.raises(ValueError, match="images=0"):
        forward_flops(lambda: None, 0)


def test_update_factors() -> None:
    assert update_factor(lora=False, checkpointing=False) == pytest.approx(2.9)
    assert update_factor(lora=True, checkpointing=True) == pytest.approx(2.9)


def test_ledger_adds_up_and_resumes() -> None:
    ledger = ComputeLedger()
    ledger.add("teacher", seconds=1.5, nfe=20, flops=200)
    ledger.add("update", seconds=2.0, nfe=4, flops=116)
    resumed = ComputeLedger(json.loads(json.dumps(ledger.state())))
    resumed.add("teacher", seconds=0.5, nfe=1, flops=10)
    found = resumed.state()
    assert found["teacher"] == {"seconds": 2.0, "nfe": 21, "flops": 210}
    assert found["update"] == {"seconds": 2.0, "nfe": 4, "flops": 116}
    assert found["rewards"] == {"seconds": 0, "nfe": 0, "flops": 0}
    assert ledger.state()["teacher"]["nfe"] == 20


def test_ledger_refuses_and_keeps_its_sums() -> None:
    ledger = ComputeLedger()
    with pytest.raises(ValueError, match="unknown component 'coffee'"):
        ledger.add("coffee", nfe=1)
    with pytest.raises(ValueError, match="nfe=-1"):
        ledger.add("teacher", seconds=1, nfe=-1)
    with pytest.raises(ValueError, match="seconds=nan"):
        ledger.add("teacher", seconds=float("nan"))
    assert ledger.state()["teacher"]["seconds"] == 0
