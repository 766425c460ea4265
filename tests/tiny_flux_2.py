"""Tiny FLUX.2 klein and dev with random weights that matter, saved by diffusers in the real layout."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import (
    AutoencoderKLFlux2,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Pipeline,
    Flux2Transformer2DModel,
)
from tiny_models import normal, randomise
from tiny_pipelines import WIDTH, save
from tiny_z_image import qwen3
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    PreTrainedTokenizerFast,
    Qwen2TokenizerFast,
)

SPECIAL = ("<unk>", "<s>", "</s>", "<pad>", "[IMG]", "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]")
MISTRAL = (  # as much of Mistral's as a caption meets
    "{{- bos_token }}{%- for message in messages %}"
    "{%- set mark = 'SYSTEM_PROMPT' if message.role == 'system' else 'INST' %}"
    "{{- '[' + mark + ']' }}{%- for block in message.content %}{{- block.text }}{%- endfor %}{{- '[/' + mark + ']' }}"
    "{%- endfor %}"
)
LAYERS = 28  # the pipeline stacks the states after 9, 18 and 27 layers
QWEN3 = {
    "hidden_size": WIDTH,
    "intermediate_size": 16,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 1024,
}
TEMPLATE = (  # as much of Qwen3's as a caption meets
    "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\n\n</think>\n\n' }}"
    "{%- endif %}{%- endif %}"
)


def qwen_tokenizer() -> Qwen2TokenizerFast:
    """Bytes and the word `user`, in Qwen's own format."""
    words = [*sorted(ByteLevel.alphabet()), "us", "er", "user", "<|endoftext|>"]
    tokenizer = Qwen2TokenizerFast(
        vocab={word: i for i, word in enumerate(words)},
        merges=[("u", "s"), ("e", "r"), ("us", "er")],
        chat_template=TEMPLATE,
        padding_side="right",
        model_max_length=131072,
    )
    tokenizer.add_tokens(
        [AddedToken(token, special=True, normalized=False) for token in ("<|im_start|>", "<|im_end|>")]
    )
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in ("<think>", "</think>")])
    return tokenizer


def mistral_tokenizer() -> PreTrainedTokenizerFast:
    """Bytes and the special tokens of Mistral's format."""
    words = [*SPECIAL, *sorted(ByteLevel.alphabet())]
    bytewise = Tokenizer(BPE(vocab={word: i for i, word in enumerate(words)}, merges=[]))
    bytewise.pre_tokenizer = ByteLevel(add_prefix_space=False)
    bytewise.add_special_tokens(list(SPECIAL))
    return PreTrainedTokenizerFast(
        tokenizer_object=bytewise,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        padding_side="left",
        chat_template=MISTRAL,
        model_max_length=131072,
    )


def mistral3(words: int) -> Mistral3ForConditionalGeneration:
    """The model has eyes of one layer, which captions do not use."""
    narrow = {"hidden_size": WIDTH, "intermediate_size": 16, "num_attention_heads": 2, "head_dim": 8}
    text = {"num_hidden_layers": 31, "num_key_value_heads": 1, "vocab_size": words, "max_position_embeddings": 1024}
    config = Mistral3Config(
        text_config={"model_type": "mistral", **narrow, **text},
        vision_config={"model_type": "pixtral", **narrow, "num_hidden_layers": 1, "image_size": 28, "patch_size": 14},
        image_token_index=SPECIAL.index("[IMG]"),
    )
    with torch.random.fork_rng(devices=[]):
        model = Mistral3ForConditionalGeneration(config)
    randomise(model, 0.5)
    return model


def vae_flux_2() -> AutoencoderKLFlux2:
    """Twice the latents' edge; some channels of a patch vary so little that the batch norm's epsilon matters."""
    with torch.random.fork_rng(devices=[]):
        model = AutoencoderKLFlux2(
            block_out_channels=(8, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            layers_per_block=1,
            norm_num_groups=4,
            latent_channels=4,
            sample_size=32,
        )
    randomise(model, 0.2)
    channels = len(model.bn.running_mean)
    model.bn.running_mean.copy_(0.3 * normal(channels, seed=1))
    model.bn.running_var.copy_(normal(channels, seed=2).square() + 0.01)
    return model


def transformer_flux_2(*, guidance: bool) -> Flux2Transformer2DModel:
    with torch.random.fork_rng(devices=[]):
        model = Flux2Transformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=3 * WIDTH,
            timestep_guidance_channels=32,
            axes_dims_rope=(4, 4, 4, 4),
            guidance_embeds=guidance,
        )
    randomise(model, 0.2)
    return model


def scheduler_flux_2(*, dynamic: bool) -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(
        shift=3.0,
        use_dynamic_shifting=dynamic,
        base_shift=0.5,
        max_shift=1.15,
        base_image_seq_len=256,
        max_image_seq_len=4096,
    )


def write_flux_2_klein(
    folder: Path, *, distilled: bool = False, dynamic: bool = True, dtype: torch.dtype = torch.float32
) -> Path:
    """distilled: as `is_distilled` in the index. dynamic: as the scheduler's `use_dynamic_shifting`."""
    tokenizer = qwen_tokenizer()
    pipeline = Flux2KleinPipeline(
        transformer=transformer_flux_2(guidance=False),
        vae=vae_flux_2(),
        text_encoder=qwen3(len(tokenizer), **QWEN3),
        tokenizer=tokenizer,
        scheduler=scheduler_flux_2(dynamic=dynamic),
        is_distilled=distilled,
    )
    return save(pipeline, folder, dtype)


def write_flux_2_dev(folder: Path, *, dtype: torch.dtype = torch.float32) -> Path:
    """The index names the class of the tokeniser alone; that of FLUX.2 dev names PixtralProcessor, which wants
    torchvision.
    """
    tokenizer = mistral_tokenizer()
    pipeline = Flux2Pipeline(
        transformer=transformer_flux_2(guidance=True),
        vae=vae_flux_2(),
        text_encoder=mistral3(len(tokenizer)),
        tokenizer=tokenizer,
        scheduler=scheduler_flux_2(dynamic=True),
    )
    return save(pipeline, folder, dtype)
