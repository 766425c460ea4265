"""Scores of the original packages hpsv2 and image-reward on small networks, for `test_preference_rewards.py`.

The packages do not install beside this one. Run it anew, which writes rewards.json:

    python -m venv /tmp/original
    /tmp/original/bin/pip install --no-deps hpsv2==1.2.0 image-reward==1.5
    /tmp/original/bin/pip install torch==2.14.1 torchvision==0.29.1 'numpy<2.3' transformers==4.44.2 timm==0.6.13 \
        fairscale==0.4.13 ftfy regex einops clint braceexpand requests tqdm pandas
    /tmp/original/bin/python tests/golden/original_rewards.py

Weights are a function of their names, `weights`, so none are kept.
"""

from __future__ import annotations

import gzip
import io
import json
import sys
import tempfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

FILE = Path(__file__).with_name("rewards.json")
CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789,.'"
WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "cat", "dog", "##s", "on", "the", "mat", ",", ".")
CAPTIONS = ("a red cat", "Dogs on the mat, a cat.", "the " * 40, "a red cat")
HPS_TOKENS = 20  # at most
SIZES = {"hps": ((28, 28), (20, 33), (70, 43)), "image_reward": ((32, 32), (40, 47), (67, 32))}  # height, width


def weights(shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """Return a network's weights by their names: normal numbers of a size that lets signals pass, norms around 1."""
    made = {}
    for name, shape in shapes.items():
        drawn = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)  # kept for good
        fan = max(1, int(np.prod(shape[1:]))) if len(shape) > 1 else 4
        norm = len(shape) == 1 and name.endswith("weight")
        made[name] = torch.from_numpy(np.asarray(1 + 0.2 * drawn if norm else 1.2 * drawn / fan**0.5)).float()
    return made


def images(sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
    """Return an image [3, H, W] of each size, of patches from black to white with 8-bit values in [0, 1]."""
    made = []
    for i, (height, width) in enumerate(sizes):
        coarse = torch.from_numpy(np.random.RandomState(i).uniform(size=(1, 3, 5, 6)))
        smooth = nn.functional.interpolate(coarse, (height, width), mode="bilinear", align_corners=True)[0]
        made.append(((4 * smooth - 1.5).clamp(0, 1) * 255).round().float() / 255)
    return made


def fill(network: nn.Module) -> dict[str, list[int]]:
    """Fill a network with `weights`, and return the shapes of its state."""
    state = network.state_dict()
    shapes = {name: list(value.shape) for name, value in state.items() if value.is_floating_point()}
    network.load_state_dict(state | weights(shapes))
    network.eval().requires_grad_(False)
    return shapes


def scored(score: Any, sizes: Sequence[tuple[int, int]]) -> list[list[float]]:
    """Return the score of each image with each caption, [caption][image]."""
    return [[float(score(image, caption)) for image in images(sizes)] for caption in CAPTIONS]


def hps() -> dict[str, Any]:
    sys.modules["turtle"] = SimpleNamespace(forward=None)  # which hpsv2 imports by mistake, and which needs a display
    opened, gzip.open = gzip.open, lambda *_, **__: io.BytesIO(b"#version: 0.2\n")  # its vocabulary is in no package
    from hpsv2.src.open_clip import tokenizer
    from hpsv2.src.open_clip.model import CLIP
    from hpsv2.src.open_clip.transform import image_transform

    gzip.open = opened
    tokens = [*CHARACTERS, *(f"{c}</w>" for c in CHARACTERS), "<start_of_text>", "<end_of_text>"]
    tokenizer._tokenizer.encoder = {token: i for i, token in enumerate(tokens)}
    vision = {"image_size": 28, "layers": 2, "width": 160, "head_width": 80, "patch_size": 14}
    text = {"context_length": HPS_TOKENS, "vocab_size": len(tokens), "width": 128, "heads": 2, "layers": 2}
    network = CLIP(24, vision, text, output_dict=True)
    shapes = fill(network)
    transform = image_transform(28, is_train=False, resize_longest_max=True)

    def score(image: Tensor, caption: str) -> Tensor:
        found = network(transform(as_pil(image))[None], tokenizer.tokenize([caption], HPS_TOKENS))
        return (found["image_features"] @ found["text_features"].T).diagonal()

    return {"shapes": shapes, "scores": scored(score, SIZES["hps"])}


def image_reward() -> dict[str, Any]:
    package = ModuleType("ImageReward")  # in place of its own __init__, which imports all that training needs
    package.__path__ = [str(Path(place) / "ImageReward") for place in sys.path if place.endswith("site-packages")]
    models = ModuleType("ImageReward.models")
    models.__path__ = [f"{place}/models" for place in package.__path__]
    sys.modules |= {"ImageReward": package, "ImageReward.models": models}
    from ImageReward.ImageReward import MLP, ImageReward, _transform
    from ImageReward.models.BLIP.med import BertConfig, BertModel
    from ImageReward.models.BLIP.vit import VisionTransformer
    from transformers import BertTokenizer

    width = 128
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "vocab.txt").write_text("\n".join(WORDS))
        words = BertTokenizer(f"{folder}/vocab.txt")
    words.add_special_tokens({"bos_token": "[DEC]", "additional_special_tokens": ["[ENC]"]})
    config = BertConfig(  # the rest as in the published med_config.json
        vocab_size=len(words),
        hidden_size=width,
        num_hidden_layers=2,
        num_attention_heads=width // 64,
        intermediate_size=96,
        max_position_embeddings=40,
        layer_norm_eps=1e-12,
        encoder_width=192,
        add_cross_attention=True,
    )
    blip = nn.Module()
    blip.visual_encoder = VisionTransformer(img_size=32, patch_size=16, embed_dim=192, depth=2, num_heads=3)
    blip.text_encoder = BertModel(config, add_pooling_layer=False)
    blip.vision_proj, blip.text_proj = nn.Linear(192, 16), nn.Linear(width, 16)
    blip.tokenizer = words
    network = ImageReward.__new__(ImageReward)
    nn.Module.__init__(network)
    network.device, network.blip, network.mlp, network.preprocess = "cpu", blip, MLP(width), _transform(32)
    network.mean, network.std = 0.16717362830052426, 1.0333394966054072
    shapes = fill(network)
    return {
        "shapes": shapes,
        "scores": scored(lambda image, caption: network.score(caption, as_pil(image)), SIZES["image_reward"]),
    }


def as_pil(image: Tensor) -> Any:
    from PIL import Image

    return Image.fromarray((image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy())


if __name__ == "__main__":
    torch.set_num_threads(1)
    FILE.write_text(json.dumps({"hps": hps(), "image_reward": image_reward()}, indent=1) + "\n")
