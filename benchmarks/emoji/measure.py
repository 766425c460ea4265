"""Measure how well the exported teacher draws what a caption says, by guidance, as the judge CLIP `b` sees it.

python -m benchmarks.emoji.measure
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from transformers import CLIPModel, CLIPTokenizer

from benchmarks.emoji import clip, data
from benchmarks.emoji.data import Emoji
from benchmarks.emoji.fit import single_thread
from benchmarks.emoji.teacher import TEACHER
from benchmarks.emoji.vae import decode_milliseconds
from redif_ray.diffusion import schedules
from redif_ray.evaluation.grids import write_grid
from redif_ray.models.registry import load_model
from redif_ray.sample import draw

COUNT = 200  # captions, trained on and held out
SHOWN = 50
STEPS = 20
GUIDANCES = (1.0, 2.0, 3.0, 4.0)


def call_milliseconds(model: Any, count: int = 16, repeats: int = 5) -> float:
    """A network call and image, unguided, on one thread, in batches of `count`."""
    x, encoded = torch.zeros(count, *model.latent_shape), model.encode(["red apple"] * count)
    timestep = torch.full((count,), 500.0, dtype=torch.float64)
    with torch.no_grad():
        model.output(x, timestep, encoded)
        started = time.monotonic()
        for _ in range(repeats):
            model.output(x, timestep, encoded)
    return (time.monotonic() - started) / repeats / count * 1e3


def sampled(model: Any, emoji: Emoji, guidance: float) -> Emoji:
    """A drawing of each caption, DDIM, as the real ones are kept."""
    schedule = schedules.build(model.process, STEPS, "uniform_trailing")
    rows = list(range(len(emoji)))
    parts = [
        draw(model, schedule, rows[i : i + 50], list(emoji.captions[i : i + 50]), 0, guidance)
        for i in range(0, len(rows), 50)
    ]
    images = (torch.cat(parts) * 255).round().to(torch.uint8).numpy()
    return Emoji(images, emoji.captions, emoji.tags)


def some(emoji: Emoji) -> Emoji:
    rows = np.linspace(0, len(emoji) - 1, COUNT).astype(int)
    return emoji.rows(rows.tolist())


def main() -> None:
    single_thread()
    model: Any = load_model(TEACHER)
    print(f"{call_milliseconds(model):.2f} ms a call, {decode_milliseconds(model.part('vae')):.2f} ms to decode")
    judge = clip.ENCODERS / "emoji_clip_b"
    network = CLIPModel.from_pretrained(judge, dtype=torch.float32).eval()
    tokenizer = CLIPTokenizer.from_pretrained(judge)
    emoji = data.load(data.OUT / "emoji.parquet")
    print("| captions | pictures | top-1 of 200 | top-5 of 200 |\n|---|---|---:|---:|")
    for name, real in (("trained", some(emoji.split(held=False))), ("held_out", some(emoji.split(held=True)))):
        drawings = {"real": real} | {f"guidance {g:g}": sampled(model, real, g) for g in GUIDANCES}
        for title, pictures in drawings.items():
            found = clip.retrieval(network, tokenizer, pictures)
            first, fifth = found["image to text, top 1"], found["image to text, top 5"]
            print(f"| {name} | {title} | {first:.3f} | {fifth:.3f} |", flush=True)
            shown = pictures.images[:: COUNT // SHOWN] / 255
            write_grid(data.OUT / f"{name}.{title.replace(' ', '')}.png", shown)


if __name__ == "__main__":
    main()
