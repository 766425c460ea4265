"""The network of a small teacher, and the diffusers folder in which it is saved.

A DiT (Peebles & Xie, arXiv 2212.09748) with v-prediction (Salimans & Ho, arXiv 2202.00512) on the cosine schedule
(Nichol & Dhariwal, arXiv 2102.09672).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler, DiTTransformer2DModel

from redif_ray.data.images import ImageSet
from redif_ray.files import atomic_folder
from redif_ray.teacher.config import TeacherConfig, TeacherError


def build_scheduler(config: TeacherConfig) -> Any:
    return DDPMScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type=config.parameterization,
        clip_sample=False,
        timestep_spacing="trailing",
    )


def build_network(config: TeacherConfig, images: ImageSet) -> Any:
    """Build a `DiTTransformer2DModel` for these images, with weights drawn from the seed alone.

    Raises TeacherError if the images are not square or their edge is no multiple of the patch.
    """
    edge = images.images.shape[-1]
    if images.images.shape[-2] != edge or edge % config.patch:
        raise TeacherError(
            f"images are {images.images.shape[-2:]} pixels; expected squares whose edge is a multiple of "
            f"patch={config.patch}; set size, or another patch"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        network = DiTTransformer2DModel(
            num_attention_heads=config.heads,
            attention_head_dim=config.head_dim,
            num_layers=config.layers,
            in_channels=images.images.shape[1],
            out_channels=images.images.shape[1],
            sample_size=edge,
            patch_size=config.patch,
            num_embeds_ada_norm=max(1, len(images.classes)),
            norm_type="ada_norm_zero",
            norm_elementwise_affine=False,
        )
        zero_gates(network)
    return network


def zero_gates(network: Any) -> None:
    """Zero the gates (adaLN-zero): blocks start as the identity and the output as zero, unlike diffusers' default."""
    for block in network.transformer_blocks:
        torch.nn.init.zeros_(block.norm1.linear.weight)
        torch.nn.init.zeros_(block.norm1.linear.bias)
    for layer in (network.proj_out_1, network.proj_out_2):
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)


def save_folder(out: Path, network: Any, scheduler: Any, images: ImageSet) -> None:
    """Write the network in the layout of diffusers' DiTPipeline, without a VAE, since the model works on pixels."""
    with atomic_folder(out) as partial:
        network.to("cpu").save_pretrained(partial / "transformer")
        scheduler.save_pretrained(partial / "scheduler")
        index = {
            "_class_name": "DiTPipeline",
            "scheduler": ["diffusers", type(scheduler).__name__],
            "transformer": ["diffusers", "DiTTransformer2DModel"],
            "vae": [None, None],
            "id2label": {str(i): name for i, name in enumerate(images.classes)},
        }
        (partial / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
