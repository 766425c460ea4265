"""The emoji teacher: a small text-to-image latent diffusion model, in the layout of diffusers' StableDiffusionPipeline.

    python -m benchmarks.emoji.teacher             # trains; goes on where it was cut short
    python -m benchmarks.emoji.teacher --export    # only writes what the last checkpoint holds

A UNet with cross-attention (Rombach et al., arXiv 2112.10752) on the latents of `vae.py`, told what to draw by the text
tower of CLIP `a`; v-prediction (Salimans & Ho, arXiv 2202.00512) on Stable Diffusion's betas, captions dropped so that
it can be guided (Ho & Salimans, arXiv 2207.12598).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from benchmarks.emoji import clip, data, vae
from benchmarks.emoji.data import Emoji
from benchmarks.emoji.fit import Fit, fresh, load_average, rows_of, single_thread, train
from redif_ray.diffusion import noise
from redif_ray.diffusion.noise import Stream

TEACHER = Path("redif_ray/assets/teachers/emoji")
CLIP_A = clip.ENCODERS / "emoji_clip_a"
WORK = data.OUT / "teacher.training"
FIT = Fit(steps=7_000, batch=48, lr=1e-3, ema=0.9995, seed=3)
CAPTION_DROPOUT = 0.1
PHRASES = 8  # of each emoji, the first its caption alone


def build_network(width: int) -> UNet2DConditionModel:
    """width: of the text encoder's states. `attention_head_dim` is the number of heads, as diffusers reads it."""
    return UNet2DConditionModel(
        sample_size=data.SIZE // 2,
        in_channels=4,
        out_channels=4,
        block_out_channels=(64, 96),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=32,
        attention_head_dim=4,
        cross_attention_dim=width,
    )


def build_scheduler() -> DDIMScheduler:
    """Stable Diffusion's noise process."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="trailing",
        prediction_type="v_prediction",
    )


@torch.no_grad()
def text_states(encoder: Any, tokenizer: Any, texts: list[str]) -> Tensor:
    """Return the encodings that the pipeline gives the network for these texts, [n, 16, width]."""
    ids = clip.token_ids(tokenizer, texts)
    return torch.cat([encoder(ids[i : i + 64]).last_hidden_state for i in range(0, len(ids), 64)])


def phrase_states(encoder: Any, tokenizer: Any, emoji: Emoji) -> Tensor:
    """States of every emoji's phrases, [n, PHRASES, 16, width]."""
    found = [text_states(encoder, tokenizer, list(emoji.captions))]
    for i in range(1, PHRASES):
        draws = noise.uniform(len(emoji) * (2 + clip.TAGS), Stream.TEACHER_DROPOUT, seed=FIT.seed, group=i)
        each = draws.reshape(len(emoji), -1)
        each[:, 0] = 0.5  # with its caption, and tags behind it
        texts = [clip.phrase(*about) for about in zip(emoji.captions, emoji.tags, each, strict=True)]
        found.append(text_states(encoder, tokenizer, texts))
    return torch.stack(found, 1)


def noised(
    x0: Tensor, alphas_cumprod: Tensor, step: int, seed: int, *, noisier: float = 0.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Return x_t [B, *latent], t [B] int64 and v [B, *latent] of a step of training, a function of step and seed.

    noisier: the share of the batch whose level is among the noisiest 30 %; that of the others is anywhere.
    """
    eps = noise.normal(x0.numel(), Stream.TEACHER_NOISE, seed=seed, round=step)
    unit = torch.from_numpy(eps).reshape(x0.shape)
    # One level in each of B equal slices of [0, T): the same expectation as uniform draws, less variance.
    shift = noise.uniform(1, Stream.TEACHER_LEVEL, seed=seed, round=step)
    levels = (np.arange(len(x0)) + shift) / len(x0)
    levels = np.where(levels < noisier, 0.7 + 0.3 * levels / max(noisier, 1e-9), (levels - noisier) / (1 - noisier))
    t = torch.from_numpy((levels * len(alphas_cumprod)).astype(np.int64))
    alpha = alphas_cumprod[t].sqrt()[:, None, None, None]
    sigma = (1 - alphas_cumprod[t]).sqrt()[:, None, None, None]
    return alpha * x0 + sigma * unit, t, alpha * unit - sigma * x0


def save_pipeline(folder: Path, *, autoencoder: Any, text_encoder: Any, tokenizer: CLIPTokenizer, network: Any) -> None:
    """Write a pipeline's folder in half precision: files are half as long, and images the same to the eye."""
    autoencoder.register_to_config(_name_or_path="")
    pipeline: Any = StableDiffusionPipeline(
        vae=autoencoder,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=network,
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.to(torch.float16).save_pretrained(folder)


class Examples:
    """Training examples of step i as a pure function of i."""

    def __init__(self, latents: Tensor, states: Tensor, nothing: Tensor, alphas_cumprod: Tensor) -> None:
        self.latents, self.states, self.nothing, self.alphas_cumprod = latents, states, nothing, alphas_cumprod

    def __call__(self, step: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x_t [B, 4, 16, 16], t [B] int64, text states [B, 16, width], v [B, 4, 16, 16]."""
        rows = torch.from_numpy(rows_of(step, len(self.latents), FIT))
        x, t, v = noised(self.latents[rows], self.alphas_cumprod, step, FIT.seed)
        drop, tagged, which = noise.uniform(3 * FIT.batch, Stream.TEACHER_DROPOUT, seed=FIT.seed, round=step).reshape(
            3, FIT.batch
        )
        phrase = np.where(tagged < 0.5, 0, 1 + (which * (PHRASES - 1)).astype(np.int64))
        states = self.states[rows, torch.from_numpy(phrase)]
        states[torch.from_numpy(drop < CAPTION_DROPOUT)] = self.nothing
        return x, t, states, v


def text_encoder() -> Any:
    """CLIP a's text tower, frozen."""
    return CLIPTextModel.from_pretrained(CLIP_A, dtype=torch.float32).eval().requires_grad_(False)


def export(network: Any) -> None:
    """Write the teacher's folder."""
    tokenizer = CLIPTokenizer.from_pretrained(CLIP_A)
    save_pipeline(TEACHER, autoencoder=vae.load(), text_encoder=text_encoder(), tokenizer=tokenizer, network=network)


def main() -> None:
    if sys.argv[1:] not in ([], ["--export"]):
        raise SystemExit(__doc__)
    single_thread()
    encoder = text_encoder()
    network: Any = fresh(lambda: build_network(encoder.config.hidden_size), seed=FIT.seed).eval()
    if sys.argv[1:]:
        print(f"step {load_average(network, WORK)} of {FIT.steps}")
        export(network)
        return
    kept = data.load(data.OUT / "emoji.parquet").split(held=False)
    tokenizer = CLIPTokenizer.from_pretrained(CLIP_A)
    examples = Examples(
        vae.latents(vae.load(), kept.images),
        phrase_states(encoder, tokenizer, kept),
        text_states(encoder, tokenizer, [""])[0],
        build_scheduler().alphas_cumprod,
    )
    network.set_attn_processor(AttnProcessor())  # the fused one's backward takes a third of a step on a CPU

    def loss(step: int) -> Tensor:
        x, t, states, v = examples(step)
        with torch.autocast("cpu", torch.bfloat16):
            output = network(x, t, encoder_hidden_states=states).sample
        return (output.float() - v).square().mean()

    seconds = train(network, loss, FIT, WORK)
    print(f"{sum(p.numel() for p in network.parameters()):,} parameters, {seconds:.0f} s of training")
    export(network)


if __name__ == "__main__":
    main()
