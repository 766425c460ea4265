"""FLUX.1 Kontext (Black Forest Labs, arXiv 2506.15742): FLUX.1 that sees the tokens of a picture beside the image's."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from diffusers import FluxKontextPipeline
from torch import Tensor

from redif_ray.models.edit import PICTURE, EditModel
from redif_ray.models.flux import Flux, packed, positions, unpacked
from redif_ray.models.protocol import Encoded


class FluxKontext(EditModel, Flux):
    """The transformer of FluxKontextPipeline, for pictures of the size of its images.

    The pipeline would resize a picture to one of the sizes of the model's training, and an image to 1024 x 1024 pixels
    in all, unless it is told otherwise.
    """

    pipeline_kind: ClassVar[Any] = FluxKontextPipeline

    @property
    def pipeline_options(self) -> dict[str, Any]:
        _, height, width = self.image_shape
        return {"height": height, "width": width, "max_area": height * width, "_auto_resize": False}

    def output(self, x: Tensor, timestep: Tensor, encoded: Encoded) -> Tensor:
        """Return the network's output for the tokens of x; those of the picture come after them, at time 1."""
        tokens, cells = packed(x), positions(x)
        rest = {name: value for name, value in encoded.items() if name != PICTURE}
        found = self.call_network(
            torch.cat([tokens, packed(encoded[PICTURE])], 1),
            timestep.float() / 1000,
            img_ids=torch.cat([cells, cells + cells.new_tensor([1, 0, 0])]),
            txt_ids=cells.new_zeros(encoded["encoder_hidden_states"].shape[1], 3),
            **rest,
        )
        return unpacked(found.sample[:, : tokens.shape[1]], x.shape)
