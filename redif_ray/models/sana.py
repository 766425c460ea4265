"""SANA (Xie et al., arXiv 2410.10629): a transformer with linear attention on latents of 32 pixels' edge."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from diffusers import SanaPipeline, SanaTransformer2DModel
from torch import Tensor

from redif_ray.models.protocol import Encoded
from redif_ray.models.text import TextModel

TOKENS = 300
# The lines that the encoder reads before a caption; an absent caption is encoded without them.
INSTRUCTION: list[str] = inspect.signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default


class Sana(TextModel):
    """The transformer of SanaPipeline: cross-attention to the states of Gemma 2, under a mask; it predicts a flow."""

    pipeline_kind: ClassVar[Any] = SanaPipeline
    network_kind: ClassVar[Any] = SanaTransformer2DModel
    shifts_latents: ClassVar[bool] = False
    token_limits: ClassVar[Mapping[str, int]] = {"tokenizer": TOKENS}

    def size_multiple(self, scale: int) -> int:
        return math.lcm(scale * int(self.config.patch_size), 32)  # the pipeline refuses other sizes, whatever its VAE

    @property
    def pipeline_options(self) -> dict[str, Any]:
        _, height, width = self.image_shape  # the pipeline's own default is 1024, whatever its network
        return {"height": height, "width": width, "use_resolution_binning": False}

    def encode_prompt(self, caption: str | None) -> Encoded:
        if self.device.type == "meta":  # where the encoder's masks cannot be read
            states = torch.empty(1, TOKENS, self.config.caption_channels, device=self.device)
            return {"encoder_hidden_states": states, "encoder_attention_mask": states[..., 0]}
        states, mask, _, _ = self.pipeline.encode_prompt(
            caption or "",
            do_classifier_free_guidance=False,
            device=self.device,
            max_sequence_length=TOKENS,
            complex_human_instruction=None if caption is None else INSTRUCTION,
        )
        # Masked states are not read, and zeros take no room in the store.
        return {"encoder_hidden_states": states * mask[..., None], "encoder_attention_mask": mask}

    def output(self, x: Tensor, timestep: Tensor, encoded: Encoded) -> Tensor:
        output = self.call_network(x, timestep.float() * self.config.timestep_scale, **encoded).sample
        return output[:, : x.shape[1]]  # channels of a learned variance may follow
