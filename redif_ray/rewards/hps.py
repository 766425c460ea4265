"""Human preference predicted by HPSv2 and HPSv2.1, CLIPs that were trained on it (Wu et al., arXiv 2306.09341)."""

from __future__ import annotations

from dataclasses import dataclass as plain_dataclass
from typing import ClassVar

from pydantic.dataclasses import dataclass
from torch import Tensor
from torch.nn import functional as F

from redif_ray.rewards.clip_network import ClipCaptions, image_encoder
from redif_ray.rewards.open_clip import names_of_transformers
from redif_ray.rewards.preparation import Preparation
from redif_ray.rewards.pretrained import find_model, load_config, load_file_of
from redif_ray.rewards.term import OPTIONS, RewardError
from redif_ray.rewards.text_image import TextImage


@dataclass(config=OPTIONS)
class Hps(TextImage):
    """Cosine between the embeddings of image and caption by a CLIP of human preferences; HPSv2.1 gives .2 to .35.

    The whole image is seen, its longer edge at the network's size and black beside the shorter one.
    model: the weights, with open_clip's names or transformers': a .safetensors file, or a folder or hub id with
        model.safetensors. base: the CLIP that they are a fine-tune of, whose configuration and tokeniser are read, and
        no weights, a folder or hub id. batch: images per forward pass. Conditions must be captions.
    """

    model: str = "RE-N-Y/hpsv21"
    base: str = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
    name: ClassVar[str] = "hps"

    def __post_init__(self) -> None:
        base = find_model(self.base, "base")
        config = load_config(base, ("clip",), "base")
        preparation = Padded(config.vision_config.image_size)
        weights = names_of_transformers(load_file_of(self.model))
        try:
            self._images = image_encoder(base, config, preparation, self.setting, weights).at_most(self.batch)
        except RewardError as error:
            raise RewardError(f"model={self.model!r} is no fine-tune of base: {error}") from error
        self._captions = ClipCaptions(base, self.setting, weights)


@plain_dataclass(frozen=True)
class Padded(Preparation):
    """HPSv2's preparation: the longer edge has `resize` pixels, and black fills the square; nothing is clamped."""

    resize: int

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        scale = self.resize / max(height, width)
        return round(height * scale), round(width * scale)

    def _fitted(self, images: Tensor) -> Tensor:
        height, width = size = self._resized(*images.shape[2:])
        if size != tuple(images.shape[2:]):
            images = F.interpolate(images, size=size, mode=self.mode, antialias=True, align_corners=False)
        below, beside = self.resize - height, self.resize - width
        return F.pad(images, (beside // 2, beside - beside // 2, below // 2, below - below // 2))
