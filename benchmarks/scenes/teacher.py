"""The scenes' teacher: a small text-to-image latent diffusion model in the layout of a StableDiffusionPipeline.

    python -m benchmarks.scenes.teacher             # trains; goes on where it was cut short
    python -m benchmarks.scenes.teacher --export    # only writes what the last checkpoint holds

A UNet with cross-attention (Rombach et al., arXiv 2112.10752) on the latents of `vae.py` and a text encoder that is
trained with it; v-prediction (Salimans & Ho, arXiv 2202.00512), captions dropped so that it can be guided (Ho &
Salimans, arXiv 2207.12598).
"""

from __future__ import annotations

import functools
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor
from torch.nn import Module
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from benchmarks.emoji.clip import token_ids
from benchmarks.emoji.fit import Fit, fresh, load_average, rows_of, single_thread, train
from benchmarks.emoji.teacher import build_scheduler, noised, save_pipeline
from benchmarks.emoji.vae import latents, load
from benchmarks.scenes import vae
from benchmarks.scenes.pictures import OUT, captions, drawn, pictures
from benchmarks.scenes.scenes import COLOURS, COUNTS, RELATIONS, SHAPES
from redif_ray.checkpoint import find_checkpoint
from redif_ray.diffusion import noise
from redif_ray.diffusion.noise import Stream

TEACHER = Path("benchmarks/scenes/model")
COUNT = 60_000  # pictures of a phase
CAPTION_DROPOUT = 0.1
TOKENS, WIDTH, LAYERS = 16, 128, 2  # of the text encoder; a caption has at most 8 words, its start and its end


@dataclass(frozen=True)
class Phase:
    """A part of the training, with pictures of its own. noisier: as `noised` reads it."""

    fit: Fit
    work: Path
    noisier: float


PHASES = (
    Phase(Fit(steps=16_000, batch=64, lr=1e-3, ema=0.9995, seed=3), OUT / "teacher.training", 0.0),
    # Where an object stands is decided among the noisiest levels.
    Phase(Fit(steps=6_000, batch=64, lr=1e-3, ema=0.9995, seed=4), OUT / "teacher.training.noisier", 0.5),
)


def build_tokenizer() -> CLIPTokenizer:
    """Return a tokenizer in CLIP's format, for which each word of the grammar is one token."""
    words = [*COUNTS, *COLOURS, *SHAPES, *(f"{shape}s" for shape in SHAPES), *" ".join(RELATIONS).split(" ")]
    merges: list[tuple[str, str]] = []
    for word in dict.fromkeys(words):
        parts = [*word[:-1], f"{word[-1]}</w>"]
        for merge in merges:
            parts = _merged(parts, merge)
        while len(parts) > 1:
            merges.append((parts[0], parts[1]))
            parts = _merged(parts, merges[-1])
    letters = sorted(set("".join(words)))
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(pair) for pair in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=TOKENS)


def _merged(parts: list[str], merge: tuple[str, str]) -> list[str]:
    """Return the parts of a word with each neighbouring pair that is `merge` joined."""
    joined: list[str] = []
    for part in parts:
        if joined and (joined[-1], part) == merge:
            joined[-1] += part
        else:
            joined.append(part)
    return joined


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    end = tokenizer.eos_token_id
    return CLIPTextModel(
        CLIPTextConfig(
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            num_hidden_layers=LAYERS,
            num_attention_heads=4,
            projection_dim=WIDTH,
            hidden_act="gelu",
            vocab_size=len(tokenizer),
            max_position_embeddings=TOKENS,
            eos_token_id=end,
            pad_token_id=end,
            bos_token_id=tokenizer.bos_token_id,
        )
    )


def build_network() -> UNet2DConditionModel:
    """Return the UNet. `attention_head_dim` is the number of heads, as diffusers reads it."""
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=8,
        out_channels=8,
        block_out_channels=(64, 96),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        norm_num_groups=32,
        attention_head_dim=4,
        cross_attention_dim=WIDTH,
    )


class Denoiser(Module):
    """The UNet and the text encoder that tells it what to draw."""

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        super().__init__()
        self.text, self.unet = build_text_encoder(tokenizer), build_network()

    def forward(self, x: Tensor, t: Tensor, ids: Tensor) -> Tensor:
        """Return v, [B, 8, 8, 8]. x: latents at timesteps t [B]. ids: tokens of captions, int64 [B, 16]."""
        states = self.text(input_ids=ids).last_hidden_state
        output: Tensor = self.unet(x, t, encoder_hidden_states=states).sample
        return output


class Examples:
    """Training examples of step i of a phase as a pure function of i."""

    def __init__(self, phase: Phase, tokenizer: CLIPTokenizer) -> None:
        scenes = drawn(captions(held_out=False), COUNT, phase.fit.seed)
        ids = token_ids(tokenizer, [*map(str, scenes), ""])
        self.ids, self.nothing = ids[:-1], ids[-1]
        self.clean = latents(load(vae.FOLDER), pictures(scenes, phase.fit.seed))
        self.phase, self.alphas_cumprod = phase, build_scheduler().alphas_cumprod

    def __call__(self, step: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return x_t [B, 8, 8, 8], t [B] int64, tokens [B, 16] and v [B, 8, 8, 8]."""
        fit = self.phase.fit
        rows = torch.from_numpy(rows_of(step, len(self.clean), fit))
        x, t, v = noised(self.clean[rows], self.alphas_cumprod, step, fit.seed, noisier=self.phase.noisier)
        ids = self.ids[rows]
        dropped = noise.uniform(fit.batch, Stream.TEACHER_DROPOUT, seed=fit.seed, round=step) < CAPTION_DROPOUT
        ids[torch.from_numpy(dropped)] = self.nothing
        return x, t, ids, v


def export(denoiser: Any, tokenizer: CLIPTokenizer) -> None:
    """Write the teacher's folder."""
    save_pipeline(
        TEACHER,
        autoencoder=load(vae.FOLDER),
        text_encoder=denoiser.text,
        tokenizer=tokenizer,
        network=denoiser.unet,
    )


def fitted(denoiser: Any, phase: Phase, tokenizer: CLIPTokenizer) -> float:
    """Train by one phase; the weights become their average over steps. Returns seconds."""
    examples = functools.cache(lambda: Examples(phase, tokenizer))  # a phase that is finished needs none

    def loss(step: int) -> Tensor:
        x, t, tokens, v = examples()(step)
        with torch.autocast("cpu", torch.bfloat16):
            output = denoiser(x, t, tokens)
        return (output.float() - v).square().mean()

    return train(denoiser, loss, phase.fit, phase.work)


def main() -> None:
    if sys.argv[1:] not in ([], ["--export"]):
        raise SystemExit(__doc__)
    single_thread()
    tokenizer = build_tokenizer()
    denoiser: Any = fresh(lambda: Denoiser(tokenizer), seed=PHASES[0].fit.seed).eval()
    if sys.argv[1:]:
        begun = [phase for phase in PHASES if find_checkpoint(phase.work)][-1]
        print(f"{begun.work}: step {load_average(denoiser, begun.work)} of {begun.fit.steps}")
    else:
        denoiser.unet.set_attn_processor(AttnProcessor())  # the fused ones' backward takes a third of a step on a CPU
        denoiser.text.set_attn_implementation("eager")
        seconds = [fitted(denoiser, phase, tokenizer) for phase in PHASES]
        print(f"{sum(p.numel() for p in denoiser.parameters()):,} parameters, {sum(seconds):.0f} s of training")
    export(denoiser, tokenizer)


if __name__ == "__main__":
    main()
