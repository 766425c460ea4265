"""FLUX.2 (Black Forest Labs, 2025, without a paper): a transformer trained by rectified flow (arXiv 2403.03206)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import Flux2KleinPipeline, Flux2Pipeline, Flux2Transformer2DModel
from diffusers.pipelines.flux2.pipeline_flux2 import SYSTEM_MESSAGE, compute_empirical_mu, format_input
from torch import Tensor

from redif_ray.models.folder import flow_matching
from redif_ray.models.latents import latent_shapes, vae_scale
from redif_ray.models.logging import quiet
from redif_ray.models.protocol import Encoded, ModelError
from redif_ray.models.text import TextModel
from redif_ray.models.vae import VAE

TOKENIZER = "tokenizer"
PATCH = 2  # edge of the square of the VAE's latents whose channels are one token's
EDGE = 64  # tokens along the edge of an image where the user names no size, as in diffusers' pipelines
TOKENS = 512  # of a caption with its chat template
OPENING, CLOSING = 3, 1  # tokens of Qwen's chat template before the caption, and of Mistral's after it


class Flux2(TextModel):
    """A transformer that takes stacked states of three layers of a language model, and position ids.

    Latents are laid out as diffusers draws their noise: patches of 2 x 2 of the VAE's latents, whose channels the
    statistics of the VAE's batch norm normalise: [4 x 32, H / 16, W / 16] for an image of H x W pixels. The network
    attends to all 512 tokens of a caption, also to those that fill it up, so every encoding has the same length. The
    names to_q, to_k, to_v and to_out.0 are layers of its double-stream blocks alone; to_qkv_mlp_proj is the layer of
    its single-stream blocks.
    """

    network_kind: ClassVar[Any] = Flux2Transformer2DModel

    @classmethod
    def shapes(cls, network: Any, vae: Any, where: Path) -> dict[str, Any]:
        (channels,) = latent_shapes(network, vae, where, PATCH)["latent_shape"]
        edge = EDGE * PATCH * vae_scale(vae)
        return {"latent_shape": (channels * PATCH**2, EDGE, EDGE), "image_shape": (vae.out_channels, edge, edge)}

    @classmethod
    def noise(cls, scheduler: Any, latent_shape: tuple[int, ...]) -> dict[str, Any]:
        return flow_matching(scheduler, empirical_mu(math.prod(latent_shape[1:])))

    @property
    def scale(self) -> int:
        return PATCH * super().scale

    def encode_prompt(self, caption: str | None) -> Encoded:
        if self.device.type == "meta":  # where the encoder could not read the mask of its padding
            return {"encoder_hidden_states": torch.empty(1, TOKENS, self.config.joint_attention_dim, device="meta")}
        states, _ = self.pipeline.encode_prompt(caption or "", device=self.device, max_sequence_length=TOKENS)
        return {"encoder_hidden_states": states}

    def output(self, x: Tensor, timestep: Tensor, encoded: Encoded) -> Tensor:
        ids = {
            "img_ids": positions((1, *x.shape[2:], 1), x.device),
            "txt_ids": positions((1, 1, 1, encoded["encoder_hidden_states"].shape[1]), x.device),
        }
        tokens = Flux2Pipeline._pack_latents(x)
        found = self.call_network(tokens, timestep.float() / 1000, **ids, **encoded).sample
        return found.transpose(1, 2).reshape(x.shape)

    def to_vae(self, latents: Tensor) -> Tensor:
        mean, std = self._statistics()
        return Flux2Pipeline._unpatchify_latents(latents * std + mean)

    def from_vae(self, z: Tensor) -> Tensor:
        mean, std = self._statistics()
        return (Flux2Pipeline._patchify_latents(z) - mean) / std

    def _statistics(self) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of the channels of a patch, [1, C, 1, 1], as the VAE's batch norm."""
        vae = self.part(VAE)
        mean, variance = (value.view(1, -1, 1, 1) for value in (vae.bn.running_mean, vae.bn.running_var))
        return mean, (variance + vae.config.batch_norm_eps).sqrt()


class Flux2Klein(Flux2):
    """The transformer of Flux2KleinPipeline, whose captions Qwen3 encodes.

    The Base models take classifier-free guidance; those that were distilled take none.
    """

    pipeline_kind: ClassVar[Any] = Flux2KleinPipeline
    token_limits: ClassVar[Mapping[str, int]] = {TOKENIZER: TOKENS - OPENING}

    def check_guidance(self) -> None:
        """Raise ModelError for a network that was distilled: its pipeline ignores the guidance scale."""
        if self.index.get("is_distilled"):
            raise ModelError("the model was distilled to make images without guidance (is_distilled); expected 1")

    def null_conditions(self, batch: int) -> Encoded:
        self.check_guidance()
        return super().null_conditions(batch)


class Flux2Dev(Flux2):
    """The transformer of Flux2Pipeline, which takes the guidance scale as an input; Mistral encodes its captions."""

    pipeline_kind: ClassVar[Any] = Flux2Pipeline
    # A PixtralProcessor needs it; only the processor's tokeniser is read here.
    also_needs: ClassVar[tuple[str, ...]] = ("torchvision",)

    @property
    def embeds_guidance(self) -> bool:
        return True

    def cut_short(self, captions: Sequence[str]) -> list[str]:
        """Return the captions that do not fit behind the system message, which takes as many tokens as it has."""
        tokenizer = self.part(TOKENIZER)
        with quiet():
            told = [tokenizer.apply_chat_template(format_input([c], SYSTEM_MESSAGE)[0]) for c in captions]
        return [c for c, made in zip(captions, told, strict=True) if len(made["input_ids"]) > TOKENS + CLOSING]


def positions(shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Return the position ids of the cells of a grid of this shape (time, rows, columns, words), int64 [cells, 4]."""
    cells = torch.arange(math.prod(shape), device=device)
    return torch.stack(torch.unravel_index(cells, shape), -1)


def empirical_mu(tokens: int) -> tuple[float, float]:
    """Return `mu` of `flow_matching` for an image of `tokens` tokens: a line in the steps, by diffusers' own rule."""
    start = compute_empirical_mu(tokens, 0)
    return start, compute_empirical_mu(tokens, 1) - start
