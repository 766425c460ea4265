"""A small DiT on the latents of a VAE, with random weights that matter, in the layout of facebook/DiT-XL-2-256."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import DiTTransformer2DModel
from tiny_models import randomise, scheduler
from tiny_pipelines import vae

CLASSES = 1000  # the pipeline takes label 1000 for "no class"


def write_latent_dit(folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """The network predicts a variance too; images have 16 x 16 pixels."""
    with torch.random.fork_rng(devices=[]):
        network = DiTTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=8,
            num_layers=2,
            in_channels=4,
            out_channels=8,
            sample_size=8,
            patch_size=2,
            num_embeds_ada_norm=CLASSES,
            norm_elementwise_affine=False,
        )
    randomise(network)
    network.to(dtype).save_pretrained(folder / "transformer")
    vae(4).to(dtype).save_pretrained(folder / "vae")
    scheduler(beta_schedule="linear", timestep_spacing="trailing").save_pretrained(folder / "scheduler")
    index = {
        "_class_name": "DiTPipeline",
        "scheduler": ["diffusers", "DDIMScheduler"],
        "transformer": ["diffusers", "DiTTransformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "id2label": {str(i): f"c{i}" for i in range(CLASSES)},
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder
