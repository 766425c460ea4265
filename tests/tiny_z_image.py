"""A tiny Z-Image with random weights that matter, saved by diffusers and transformers in the real layout."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel
from tiny_models import randomise
from tiny_pipelines import CHARACTERS, WIDTH, save
from transformers import Qwen2Tokenizer, Qwen3Config, Qwen3ForCausalLM

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHAT = (  # of Qwen3, as far as one message of the user goes
    "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}"
    "{%- endif %}"
)


def qwen_tokenizer() -> Qwen2Tokenizer:
    """Characters alone, but for the word "user" of a chat, in Qwen's own format: Ġ is a space, Ċ a new line."""
    tokens = [*CHARACTERS, "Ġ", "Ċ", "us", "use", "user", *SPECIAL]
    return Qwen2Tokenizer(
        vocab={token: i for i, token in enumerate(tokens)},
        merges=[("u", "s"), ("us", "e"), ("use", "r")],
        extra_special_tokens=SPECIAL[1:],
        eos_token="<|im_end|>",
        chat_template=CHAT,
        model_max_length=131072,
    )


def qwen3(vocabulary: int, **sizes: Any) -> Qwen3ForCausalLM:
    own = {
        "hidden_size": WIDTH,
        "intermediate_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 40960,
    }
    config = Qwen3Config(
        vocab_size=vocabulary,
        head_dim=8,
        rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
        tie_word_embeddings=True,
        **own | sizes,
    )
    with torch.random.fork_rng(devices=[]):
        model = Qwen3ForCausalLM(config)
    randomise(model, 0.5)
    return model


def flux_vae() -> AutoencoderKL:
    """The VAE of FLUX.1, which Z-Image took over; its images have twice the latents' edge."""
    with torch.random.fork_rng(devices=[]):
        model = AutoencoderKL(
            block_out_channels=(8, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            norm_num_groups=4,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=4,
            scaling_factor=0.3611,
            shift_factor=0.1159,
            use_quant_conv=False,
            use_post_quant_conv=False,
        )
    randomise(model, 0.2)
    return model


def write_z_image(folder: Path, *, dtype: torch.dtype = torch.float32, **scheduler: Any) -> Path:
    """Write Z-Image-Turbo's layout. scheduler: options in which the scheduler differs, as shift=6.0 of Z-Image."""
    with torch.random.fork_rng(devices=[]):
        transformer = ZImageTransformer2DModel(
            in_channels=4,
            dim=32,
            n_layers=2,
            n_refiner_layers=1,
            n_heads=2,
            n_kv_heads=2,
            cap_feat_dim=WIDTH,
            axes_dims=[4, 6, 6],
            axes_lens=[1536, 16, 16],
        )
    randomise(transformer, 0.2)
    tokenizer = qwen_tokenizer()
    encoder = qwen3(len(tokenizer))
    pipeline = ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**({"shift": 3.0} | scheduler)),
        vae=flux_vae(),
        text_encoder=encoder.model,
        tokenizer=tokenizer,
        transformer=transformer,
    )
    save(pipeline, folder, dtype)
    shutil.rmtree(folder / "text_encoder")  # its index names the Qwen3Model of a file that holds the whole chat model
    encoder.to(dtype).save_pretrained(folder / "text_encoder")
    return folder
