"""Editing models: the condition is a picture, which the network sees as latents of the VAE, and a caption."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from redif_ray.data.pictures import PictureStore
from redif_ray.models.protocol import Encoded, ModelError
from redif_ray.models.text import TextModel
from redif_ray.models.vae import VAE
from redif_ray.types import Condition, Edit

PICTURE = "picture"  # the name of a picture's latents among the encodings


@dataclass(eq=False, kw_only=True)
class EditModel(TextModel):
    """A model whose condition is an `Edit`. Its encodings hold the picture's latents, [B, *latent_shape], besides.

    pictures: the store that holds the pictures; a process that finds all encodings in `store` needs none.
    """

    takes_pictures: ClassVar[bool] = True
    pictures: PictureStore | None = None

    def check_condition(self, condition: Condition) -> None:
        if not isinstance(condition, Edit):
            raise ModelError(f"condition {condition!r}: expected a caption and a picture, which the caption changes")

    def encode_condition(self, condition: Any) -> Encoded:
        if self.device.type == "meta":
            picture = torch.empty(self.image_shape, device="meta")
        elif self.pictures is None:
            raise ModelError(f"a {type(self).__name__} has no store of pictures to read {condition.picture} from")
        else:
            picture = self.pictures.read(condition.picture).to(self.device)
        latents = self.encode_images(picture[None]).to(self.dtype)
        return self.encode_prompt(condition.caption) | {PICTURE: latents}

    @property
    def encoding_parts(self) -> list[str]:
        return [*super().encoding_parts, VAE]

    @property
    def example(self) -> Condition:
        return Edit("a caption", "")

    def check_guidance(self) -> None:
        """Raise ModelError for a network that is guided by what it predicts without a caption."""
        if not self.embeds_guidance:
            raise ModelError("this network takes no guidance as an input, which editing models need; expected 1")
