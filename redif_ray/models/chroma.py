"""Chroma (lodestones, 2025): a transformer derived from FLUX.1-schnell (arXiv 2506.15742) that reads T5 alone and is
guided by its own prediction for an empty caption.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from diffusers import ChromaPipeline, ChromaTransformer2DModel
from torch import Tensor
from torch.nn import Module
from torch.utils.checkpoint import checkpoint

from redif_ray.models.flux import PATCH, T5_TOKENS, PackedTransformer
from redif_ray.models.protocol import Encoded


class Chroma(PackedTransformer):
    """The transformer of ChromaPipeline: states of T5 and a mask that is 1 for a caption's tokens and one token more.

    diffusers adds the mask, as floats, to the logits of attention: a pair of tokens that are both marked, as all tokens
    of the image are, gets 1 and every other pair 0. So the padding takes part, and the encodings keep all its tokens.
    """

    pipeline_kind: ClassVar[Any] = ChromaPipeline
    network_kind: ClassVar[Any] = ChromaTransformer2DModel

    @property
    def token_limits(self) -> Mapping[str, int]:
        return {"tokenizer": T5_TOKENS}

    def encode_prompt(self, caption: str | None) -> Encoded:
        if self.device.type == "meta":  # transformers looks at the values of a mask
            states = torch.empty(1, T5_TOKENS, self.config.joint_attention_dim, device="meta")
            return {"encoder_hidden_states": states, "attention_mask": states[..., 0]}
        states, _, mask, *_ = self.pipeline.encode_prompt(
            caption or "", device=self.device, do_classifier_free_guidance=False, max_sequence_length=T5_TOKENS
        )
        return {"encoder_hidden_states": states, "attention_mask": mask}

    def output(self, x: Tensor, timestep: Tensor, encoded: Encoded) -> Tensor:
        text = encoded["attention_mask"]
        image = text.new_ones(len(x), x[0, 0].numel() // PATCH**2)
        return super().output(x, timestep, encoded | {"attention_mask": torch.cat([text, image], 1)})

    def checkpoint_blocks(self) -> None:
        """Give the mask to blocks of a single stream too: diffusers leaves it out where activations are not kept."""
        network, masks = self.network, dict[str, Tensor]()
        single = set(network.single_transformer_blocks)

        def remember(_: Module, args: Any, named: dict[str, Any]) -> None:
            masks["last"] = named["attention_mask"]

        def run(block: Module, *args: Any) -> Any:
            whole = (*args[:3], masks["last"]) if block in single else args
            return checkpoint(block, *whole, use_reentrant=False)

        network.register_forward_pre_hook(remember, with_kwargs=True)
        network.enable_gradient_checkpointing(run)
