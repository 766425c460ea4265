"""`python -m benchmarks.gpu` on a network that is small enough for a CPU, and the sizes of those that are not."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from rich.console import Console

from benchmarks.gpu.networks import Case, networks
from benchmarks.gpu.random_pipelines import SD15, SDXL, TOKENS, Architecture
from redif_ray.interrupt import StopRequest

TEXT = {
    "vocab_size": len(TOKENS),
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
UNET = {
    "sample_size": 8,
    "block_out_channels": (8, 16),
    "norm_num_groups": 4,
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "attention_head_dim": 4,
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "cross_attention_dim": 32,
}
VAE = {
    "block_out_channels": (8, 8),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "norm_num_groups": 4,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "latent_channels": 4,
}
ADDED = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 4,
    "projection_class_embeddings_input_dim": 6 * 4 + 16,
}
TINY = Architecture(UNET | ADDED, VAE, (TEXT, TEXT | {"projection_dim": 16}), context=8)


@pytest.mark.parametrize(("architecture", "parameters"), [(SD15, 859_520_964), (SDXL, 2_567_463_684)])
def test_networks_have_the_published_size(architecture: Architecture, parameters: int) -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in architecture.network().parameters()) == parameters


@pytest.mark.long
@pytest.mark.cluster
def test_a_small_one_beside_plain_diffusers(cluster: None, tmp_path: Path) -> None:
    shape = ("rollout.groups=2", "rollout.siblings=4", "learner.microbatch=3", "teacher.steps=3")
    case = Case("tiny", "Tiny", TINY, "sdxl_4step_lora", shape)
    part = networks(tmp_path, StopRequest(), Console(file=io.StringIO()), case=case, rounds=3)
    assert all(value > 0 for name, value in part.numbers.items() if name != "peak_gb")
    assert "2 groups of 4, N = 4, guidance 1;" in part.notes[0]
    assert [row[0] for row in part.rows][:2] == ["rollout, images/s", "update, s"]
