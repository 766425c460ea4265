"""Z-Image (arXiv 2511.22699): one transformer over the tokens of caption and image, trained by flow matching."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from diffusers import ZImagePipeline, ZImageTransformer2DModel
from torch import Tensor

from redif_ray.models.latents import check_axes
from redif_ray.models.protocol import Encoded
from redif_ray.models.text import TextModel, shifted_by_tokens

PATCH = 2  # edge of the square of latents that is one token
TOKENS = 512  # the most of a caption and of the words of a chat around it
OPENING = 3  # tokens of the chat before the caption: <|im_start|>, user, a new line


class ZImage(TextModel):
    """The transformer of ZImagePipeline, Z-Image and Z-Image-Turbo: a chat model's states of a caption, of any length.

    The pipeline adds its guidance_scale times the difference to the output with the caption, so that it is w - 1 here,
    and 0 for no guidance.
    """

    pipeline_kind: ClassVar[Any] = ZImagePipeline
    network_kind: ClassVar[Any] = ZImageTransformer2DModel
    token_limits: ClassVar[Mapping[str, int]] = {"tokenizer": TOKENS - OPENING}
    timestep_argument: ClassVar[str] = "t"

    @classmethod
    def noise(cls, scheduler: Any, latent_shape: tuple[int, ...]) -> dict[str, Any]:
        return shifted_by_tokens(scheduler, latent_shape, PATCH)

    def at_size(self, height: int, width: int) -> Self:
        check_axes(self.config.axes_lens, height, width, PATCH * self.scale)
        return super().at_size(height, width)

    def size_multiple(self, scale: int) -> int:
        return scale * PATCH

    def pipeline_guidance(self, guidance: float) -> dict[str, float]:
        return {"guidance_scale": guidance - 1}

    def encode_prompt(self, caption: str | None) -> Encoded:
        if self.device.type == "meta":  # without data a caption's length is not known
            states = torch.empty(TOKENS, self.part("text_encoder").config.hidden_size, device=self.device)
        else:
            (states,), _ = self.pipeline.encode_prompt(
                caption or "", self.device, do_classifier_free_guidance=False, max_sequence_length=TOKENS
            )
        return {"states": states[None], "lengths": torch.tensor([len(states)], device=self.device)}

    def output(self, x: Tensor, timestep: Tensor, encoded: Encoded) -> Tensor:
        """Return minus the network's output, which points from noise to data, at its time 1 - sigma.

        The network takes a list of latents and a list of states, those of each caption without padding.
        """
        states, lengths = encoded["states"], encoded["lengths"]
        # Encodings without data have the length 0, which stands for the longest.
        counts = [0] * len(x) if lengths.is_meta else [int(length) for length in lengths.tolist()]
        captions = [row[: count or len(row)] for row, count in zip(states, counts, strict=True)]
        time = (1000 - timestep.float()) / 1000
        found = self.call_network([row[:, None] for row in x], time, cap_feats=captions).sample
        if x.is_meta:
            network: Any = self.network
            network.rope_embedder.freqs_cis = None  # kept without data, the table could not go to another device
        return -torch.stack([row[:, 0] for row in found])
