"""Human preference predicted by a CLIP that was trained on it (PickScore, Kirstain et al., arXiv 2305.01569)."""

from __future__ import annotations

import math
from typing import ClassVar

from pydantic.dataclasses import dataclass
from torch import Tensor

from redif_ray.rewards.pretrained import load_number
from redif_ray.rewards.term import OPTIONS, RewardInputs
from redif_ray.rewards.text_image import TextImage

DEFAULT_MODEL = "yuvalkirstain/PickScore_v1"


@dataclass(config=OPTIONS)
class PickScore(TextImage):
    """Cosine between the embeddings of image and caption times the network's own scale, 100 for PickScore_v1.

    PickScore_v1 gives about 15 to 25; a difference of 1 is a preference of 73 to 27. model: as in `text_image`; any
        CLIP that was trained on preferences with its own preparation of images.
    """

    model: str = DEFAULT_MODEL
    name: ClassVar[str] = "pick_score"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._scale = math.exp(load_number(self.model, "logit_scale"))

    def __call__(self, inputs: RewardInputs) -> Tensor:
        return self._scale * super().__call__(inputs)
