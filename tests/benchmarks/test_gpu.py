"""`python -m benchmarks.gpu` on a network that is small enough for a CPU, and the sizes of those that are not."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from real_sizes import stable_diffusion_15
from rich.console import Console

from benchmarks.gpu.networks import Case, networks
from benchmarks.gpu.random_pipelines import SD15, SDXL, TOKENS, Architecture
from benchmarks.gpu.whole_run import BASE, settings, whole_run
from redif_ray.config import Config, load
from redif_ray.data.conditions import Conditions
from redif_ray.errors import UserError
from redif_ray.interrupt import StopRequest
from redif_ray.planning.cost import estimate
from redif_ray.planning.gpu_memory import fullest_gpu_mb
from redif_ray.planning.memory import footprints

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
TINY_15 = Architecture(UNET | {"cross_attention_dim": 16}, VAE, (TEXT,), context=8)
ON_CPU = (
    "teacher.steps=3",
    "rollout={groups: 2, siblings: 4, unit_groups: 1, gpus: 0}",
    "reward.gpus=0",
    "learner={rounds: 2, microbatch: 4, gpus: 0}",
    "evaluation={held_out: 12, search: 4, batch: 4, judge: random-features}",
)


@pytest.mark.slow
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


@pytest.mark.long
def test_a_small_whole_run_beside_what_was_said_of_it(tmp_path: Path) -> None:
    """On CPUs, where the processes note their main memory: every row of the table has its numbers."""
    quiet = Console(file=io.StringIO())
    part = whole_run(tmp_path, StopRequest(), quiet, architecture=TINY_15, overrides=ON_CPU, where="cpu")
    assert [row[0] for row in part.rows] == [
        *(f"{name}, MB" for name in ("rollout", "reward", "learner", "all processes")),
        *(f"{name}, s" for name in ("warm start", "policy gradient", "validation", "evaluation", "all")),
        "rollout, images/s",
        "update, images/s",
    ]
    assert all(part.numbers[f"{role}_peak_mb"] > 200 for role in ("rollout", "reward", "learner"))
    assert all(value > 0 for name, value in part.numbers.items() if name != "all_processes_peak_mb")


@pytest.mark.slow
def test_the_whole_run_is_short_and_fits_one_gpu(tmp_path: Path) -> None:
    """The run and the plain loops take less than 12 minutes by the estimate, which assumes 100 TFLOP/s."""
    config: Config = load(BASE, settings(tmp_path, stable_diffusion_15(tmp_path / "m")))
    assert config.rollout.gpus + config.reward.gpus + config.learner.gpus == 1
    assert sum(estimate(config, Conditions(("a",), ("b",))).seconds.values()) < 8 * 60
    assert fullest_gpu_mb(config, footprints(config).roles) < 24_000


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_whole_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="one GPU, and torch finds none; start it on a machine that has one"):
        whole_run(tmp_path, StopRequest(), Console())
    assert not list(tmp_path.iterdir())
