"""Stable Diffusion 3 and 3.5 (Esser et al., arXiv 2403.03206): a transformer trained by flow matching."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline
from torch import Tensor

from redif_ray.models.protocol import SIZE_KEYS, Encoded, ModelError
from redif_ray.models.text import TextModel

T5_TOKENS = 256


class StableDiffusion3(TextModel):
    """The transformer of StableDiffusion3Pipeline: states of two CLIP encoders, their pooled states, and states of T5,
    which may be absent.
    """

    pipeline_kind: ClassVar[Any] = StableDiffusion3Pipeline
    network_kind: ClassVar[Any] = SD3Transformer2DModel
    names: ClassVar[tuple[str, ...]] = ("vae", "tokenizer", "tokenizer_2", "text_encoder", "text_encoder_2")
    optional: ClassVar[tuple[str, ...]] = ("tokenizer_3", "text_encoder_3")
    token_limits: ClassVar[Mapping[str, int]] = {"tokenizer_3": T5_TOKENS}

    def at_size(self, height: int, width: int) -> Self:
        model = super().at_size(height, width)
        longest, patch = self.config.pos_embed_max_size, self.config.patch_size
        if longest is not None and max(model.latent_shape[1:]) > longest * patch:
            limit = longest * patch * self.scale
            raise ModelError(
                f"images of {height} x {width} pixels: the network's position embeddings "
                f"(pos_embed_max_size={longest}) reach to {limit} pixels; set {SIZE_KEYS} to at most as many"
            )
        return model

    def size_multiple(self, scale: int) -> int:
        return scale * int(self.config.patch_size)

    def make_pipeline(self, **parts: Any) -> Any:
        return StableDiffusion3Pipeline(
            **parts,
            vae=None,
            transformer=self.network,  # the pipeline reads its width
            scheduler=self.scheduler,
        )

    def encode_prompt(self, caption: str | None) -> Encoded:
        states, _, pooled, _ = self.pipeline.encode_prompt(
            caption or "",
            None,
            None,
            device=self.device,
            do_classifier_free_guidance=False,
            max_sequence_length=T5_TOKENS,
        )
        return {"encoder_hidden_states": states, "pooled_projections": pooled}

    def output(self, x: Tensor, timestep: Tensor, encoded: Encoded) -> Tensor:
        return self.call_network(x, timestep.float(), **encoded).sample
