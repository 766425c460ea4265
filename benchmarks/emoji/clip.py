"""Two small CLIPs (Radford et al., arXiv 2103.00020) on emoji and their captions: `a` conditions the teacher and gives
rewards, `b` judges. They share no seed, no width and no patch.

    python -m benchmarks.emoji.clip a
    python -m benchmarks.emoji.clip b
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

from benchmarks.emoji import data
from benchmarks.emoji.data import Emoji
from benchmarks.emoji.fit import Fit, fresh, rows_of, save_half, single_thread, train
from redif_ray.classifiers.training import shifted
from redif_ray.diffusion import noise
from redif_ray.diffusion.noise import Stream

ENCODERS = Path("redif_ray/assets/encoders")
TOKENS = 16  # of a caption, with its start and end
MERGES = 1500
SHIFT = 2  # pixels
TAGS = 4  # at most, behind a caption
FITS = {
    "a": Fit(steps=600, batch=256, lr=1e-3, ema=0.99, weight_decay=0.1, seed=1),
    "b": Fit(steps=600, batch=256, lr=1e-3, ema=0.99, weight_decay=0.1, seed=2),
}
SHAPES = {"a": {"width": 128, "layers": 3, "patch": 8}, "b": {"width": 96, "layers": 3, "patch": 4}}


def train_tokenizer(emoji: Emoji) -> CLIPTokenizer:
    """Byte-level BPE in CLIP's format. The end of a text has the highest id, where old code looks for it."""
    likeness: Any = CLIPTokenizer()
    learner: Any = Tokenizer(BPE(end_of_word_suffix="</w>"))
    learner.normalizer = likeness.backend_tokenizer.normalizer
    learner.pre_tokenizer = likeness.backend_tokenizer.pre_tokenizer
    letters = sorted(ByteLevel.alphabet())
    trainer = BpeTrainer(
        vocab_size=len(letters) + 4 * MERGES,
        min_frequency=2,
        initial_alphabet=letters,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    learner.train_from_iterator([*emoji.captions, *(tag for tags in emoji.tags for tag in tags)], trainer)
    merges = [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"][:MERGES]]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(pair) for pair in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=TOKENS)


def token_ids(tokenizer: Any, texts: list[str]) -> Tensor:
    """int64 [n, 16], as diffusers' StableDiffusionPipeline makes them."""
    found = tokenizer(texts, padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt")
    return found.input_ids


def phrase(caption: str, tags: tuple[str, ...], draws: np.ndarray) -> str:
    """The caption, half of the time with one to four of its tags behind it. draws: uniform in [0, 1), [2 + 4]."""
    if draws[0] < 0.5 or not tags:
        return caption
    count = 1 + int(draws[1] * TAGS)
    chosen = dict.fromkeys(tags[int(draw * len(tags))] for draw in draws[2 : 2 + count])
    return ", ".join([caption, *chosen])


def build(tokenizer: Any, width: int, layers: int, patch: int) -> CLIPModel:
    tower = {
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "projection_dim": width,
        "hidden_act": "gelu",
    }
    end = tokenizer.eos_token_id
    text = {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": TOKENS,
        "eos_token_id": end,
        "pad_token_id": end,
        "bos_token_id": tokenizer.bos_token_id,
    }
    vision = {"image_size": data.SIZE, "patch_size": patch}
    return CLIPModel(CLIPConfig(text_config=tower | text, vision_config=tower | vision, projection_dim=width))


def image_features(clip: Any, images: np.ndarray) -> Tensor:
    """Unit vectors [n, width] of uint8 [n, 3, 32, 32]."""
    x = torch.from_numpy(images).float() / 127.5 - 1
    return normalize(clip.visual_projection(clip.vision_model(pixel_values=x).pooler_output).float(), dim=1)


def text_features(clip: Any, ids: Tensor) -> Tensor:
    """Unit vectors [n, width] of token ids [n, 16]."""
    return normalize(clip.text_projection(clip.text_model(input_ids=ids).pooler_output).float(), dim=1)


@torch.no_grad()
def retrieval(clip: Any, tokenizer: Any, emoji: Emoji, count: int = 200) -> dict[str, float]:
    """Return how often an image's own caption is the first, or among the first five, of `count`, and the reverse."""
    rows = np.linspace(0, len(emoji) - 1, count).astype(int)
    images = image_features(clip, emoji.images[rows])
    texts = text_features(clip, token_ids(tokenizer, [emoji.captions[i] for i in rows]))
    alike = images @ texts.T
    found: dict[str, float] = {}
    for name, scores in (("image to text", alike), ("text to image", alike.T)):
        rank = (scores > scores.diagonal()[:, None]).sum(1)
        found |= {f"{name}, top {k}": (rank < k).float().mean().item() for k in (1, 5)}
    return found


def main() -> None:
    name = sys.argv[1] if len(sys.argv) == 2 else ""
    if name not in FITS:
        raise SystemExit(__doc__)
    single_thread()
    fit, out = FITS[name], ENCODERS / f"emoji_clip_{name}"
    emoji = data.load(data.OUT / "emoji.parquet")
    kept, others = emoji.split(held=False), emoji.split(held=True)
    words = data.OUT / f"clip_{name}.tokenizer"
    if not words.exists():  # its trainer breaks ties by chance: once for all
        train_tokenizer(kept).save_pretrained(words)
    tokenizer = CLIPTokenizer.from_pretrained(words)
    clip: Any = fresh(lambda: build(tokenizer, **SHAPES[name]), seed=fit.seed)
    clip.set_attn_implementation("eager")  # the fused one's backward takes longer than all the rest on a CPU

    def loss(step: int) -> Tensor:
        rows = rows_of(step, len(kept), fit)
        draws = noise.uniform(len(rows) * (2 + TAGS), Stream.TEACHER_DROPOUT, seed=fit.seed, round=step)
        each = zip(rows, draws.reshape(len(rows), -1), strict=True)
        texts = [phrase(kept.captions[i], kept.tags[i], mine) for i, mine in each]
        images = 255 - shifted(255 - kept.images[rows], SHIFT, seed=fit.seed, step=step)  # white comes in
        with torch.autocast("cpu", torch.bfloat16):
            pictures, words = image_features(clip, images), text_features(clip, token_ids(tokenizer, texts))
        logits = clip.logit_scale.exp().clamp(max=100) * pictures @ words.T
        own = torch.arange(len(rows))
        return (cross_entropy(logits, own) + cross_entropy(logits.T, own)) / 2

    seconds = train(clip, loss, fit, data.OUT / f"clip_{name}.training")
    save_half(clip.eval().requires_grad_(False), out)
    CLIPTokenizer.from_pretrained(words).save_pretrained(out)  # one that was used would keep how
    half, edges = [0.5] * 3, {"height": data.SIZE, "width": data.SIZE}
    processor = CLIPImageProcessor(size={"shortest_edge": data.SIZE}, crop_size=edges, image_mean=half, image_std=half)
    processor.save_pretrained(out)
    clip = CLIPModel.from_pretrained(out, dtype=torch.float32).eval()
    print(f"{sum(p.numel() for p in clip.parameters()):,} parameters, {len(tokenizer)} tokens, {seconds:.0f} s")
    for title, some in (("trained on", kept), ("held out", others)):
        print(title, {key: round(value, 3) for key, value in retrieval(clip, tokenizer, some).items()})


if __name__ == "__main__":
    main()
