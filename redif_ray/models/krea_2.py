"""Krea 2 (Krea, 2026): one transformer over the tokens of caption and image, trained by flow matching."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import Krea2Pipeline, Krea2Transformer2DModel
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from redif_ray.models.folder import read_index
from redif_ray.models.protocol import Encoded
from redif_ray.models.qwen_image import EDGE, QwenVAETransformer

TOKENS = 512  # the most of a caption and of the words of a chat behind it
CLOSING = 5  # tokens of the chat behind the caption
DISTILLED_MU = 1.15  # of an image of any size


class Krea2(QwenVAETransformer):
    """The transformer of Krea2Pipeline, base and distilled: the states of several layers of Qwen3-VL for each token.

    The pipeline adds its guidance_scale times the difference to the output with the caption, so that it is w - 1 here,
    and 0 for no guidance. The network gives all tokens of a caption the same position and reads none that is masked, so
    that an encoding leaves these out: the pipeline fills up to 512, which are 31 MB in 16 bits.
    """

    pipeline_kind: ClassVar[Any] = Krea2Pipeline
    network_kind: ClassVar[Any] = Krea2Transformer2DModel
    token_limits: ClassVar[Mapping[str, int]] = {"tokenizer": TOKENS - CLOSING}
    # diffusers loads no network without it that keeps its norms in float32.
    also_needs: ClassVar[tuple[str, ...]] = ("accelerate",)

    @classmethod
    def read_scheduler(cls, folder: Path) -> Any:
        """Return the scheduler, whose line of mu is level where the pipeline takes one for images of all sizes."""
        scheduler = super().read_scheduler(folder)
        if read_index(folder).get("is_distilled"):
            scheduler.register_to_config(base_shift=DISTILLED_MU, max_shift=DISTILLED_MU)
        return scheduler

    def make_pipeline(self, **parts: Any) -> Any:
        return super().make_pipeline(**parts, text_encoder_select_layers=self.index.get("text_encoder_select_layers"))

    def encode_prompt(self, caption: str | None) -> Encoded:
        if self.device.type == "meta":  # where a caption's length is not known; the longest is without padding
            tokens = torch.zeros(1, TOKENS, dtype=torch.int64, device=self.device)
            hidden = self.part("text_encoder")(tokens, output_hidden_states=True).hidden_states
            states = torch.stack([hidden[layer] for layer in self.pipeline.text_encoder_select_layers], 2)
        else:
            padded, mask = self.pipeline.encode_prompt(caption or "", self.device, max_sequence_length=TOKENS)
            states = padded[mask][None]
        return {"encoder_hidden_states": states, "encoder_attention_mask": states.new_ones(states.shape[:2])}

    def output(self, x: Tensor, timestep: Tensor, encoded: Encoded) -> Tensor:
        tokens, states = pixel_unshuffle(x, EDGE), encoded["encoder_hidden_states"]
        rows, columns = (torch.arange(edge, device=x.device) for edge in tokens.shape[2:])
        cells = torch.cartesian_prod(rows.new_zeros(1), rows, columns)
        found = self.call_network(
            tokens.flatten(2).mT,
            (timestep.float() / 1000).to(self.dtype),  # as the pipeline rounds it
            encoder_hidden_states=states,
            encoder_attention_mask=encoded["encoder_attention_mask"] > 0,
            position_ids=torch.cat([cells.new_zeros(states.shape[1], 3), cells]),
        ).sample
        return pixel_shuffle(found.mT.unflatten(2, tokens.shape[2:]), EDGE)

    def pipeline_guidance(self, guidance: float) -> dict[str, Any]:
        return {"guidance_scale": guidance - 1}
