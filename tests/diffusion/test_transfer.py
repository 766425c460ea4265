from __future__ import annotations

import pytest
import second_device
import torch

from redif_ray.diffusion.transfer import sent


@pytest.mark.parametrize("device", ["cpu", *second_device.DEVICES])
def test_what_is_sent_arrives(device: str) -> None:
    """Parts of a larger tensor and images of 8 bits arrive, and the sender may write over them afterwards."""
    whole = torch.arange(12.0).reshape(3, 4)
    for values in (whole[1:], whole.t(), torch.arange(256, dtype=torch.uint8)):
        expected = values.clone()
        there = sent(values, device)
        assert there.device.type == torch.device(device).type and torch.equal(there.cpu(), expected)
        if device == "cuda":
            values.zero_()
            assert torch.equal(there.cpu(), expected)
            values.copy_(expected)
