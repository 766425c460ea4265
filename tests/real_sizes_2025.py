"""Pipelines of real size of the models of 2025, as `real_sizes.py` makes them. Vocabularies alone are small."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffusers import (
    AutoencoderDC,
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    Flux2Transformer2DModel,
    Krea2Transformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SanaTransformer2DModel,
    ZImageTransformer2DModel,
)
from real_sizes import META, diffusers_part, index, transformers_part, vae
from tiny_qwen_image import qwen2_tokenizer
from tiny_sana import gemma
from tiny_z_image import qwen_tokenizer
from transformers import (
    Gemma2Config,
    Gemma2Model,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3Config,
    Qwen3Model,
    Qwen3VLConfig,
    Qwen3VLModel,
)

FLUX_VAE = {"scaling_factor": 0.3611, "shift_factor": 0.1159, "use_quant_conv": False, "use_post_quant_conv": False}
DYNAMIC = {"use_dynamic_shifting": True, "base_image_seq_len": 256, "base_shift": 0.5}
TEMPLATE = QwenImagePipeline(None, None, None, None, None).prompt_template_encode  # Krea 2 has it, too
QWEN3_4B: dict[str, Any] = {
    "vocab_size": 151936,
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
}


def z_image(folder: Path) -> Path:
    """6.2 G parameters in the network; Qwen3-4B encodes captions."""
    with META:
        network = ZImageTransformer2DModel()
    diffusers_part(network, folder / "transformer")
    diffusers_part(vae(16, **FLUX_VAE), folder / "vae")
    return _qwen3_pipeline(
        folder,
        "ZImagePipeline",
        "ZImageTransformer2DModel",
        "AutoencoderKL",
        FlowMatchEulerDiscreteScheduler(shift=3.0),
    )


def flux_2_klein_4b(folder: Path) -> Path:
    """3.9 G parameters in the network, 128 channels of latents; Qwen3-4B encodes captions."""
    with META:
        network = Flux2Transformer2DModel(
            num_layers=5,
            num_single_layers=20,
            num_attention_heads=24,
            joint_attention_dim=7680,
            guidance_embeds=False,
        )
        own_vae = AutoencoderKLFlux2()
    diffusers_part(network, folder / "transformer")
    diffusers_part(own_vae, folder / "vae")
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, max_shift=1.15, max_image_seq_len=4096, **DYNAMIC)
    return _qwen3_pipeline(
        folder, "Flux2KleinPipeline", "Flux2Transformer2DModel", "AutoencoderKLFlux2", scheduler, is_distilled=False
    )


def qwen_image(folder: Path) -> Path:
    """20.4 G parameters in the network; Qwen2.5-VL-7B encodes captions."""
    with META:
        network, own_vae = QwenImageTransformer2DModel(), AutoencoderKLQwenImage()
        encoder = Qwen2_5_VLForConditionalGeneration(
            Qwen2_5_VLConfig(
                text_config={
                    "vocab_size": 152064,
                    "hidden_size": 3584,
                    "intermediate_size": 18944,
                    "num_hidden_layers": 28,
                    "num_attention_heads": 28,
                    "num_key_value_heads": 4,
                },
                vision_config={"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "out_hidden_size": 3584},
            )
        )
    diffusers_part(network, folder / "transformer")
    diffusers_part(own_vae, folder / "vae")
    transformers_part(encoder, folder / "text_encoder")
    qwen2_tokenizer(TEMPLATE).save_pretrained(folder / "tokenizer")
    scheduler = FlowMatchEulerDiscreteScheduler(
        shift=1.0, max_shift=0.9, max_image_seq_len=8192, shift_terminal=0.02, **DYNAMIC
    )
    scheduler.save_pretrained(folder / "scheduler")
    return index(
        folder,
        "QwenImagePipeline",
        transformer=["diffusers", "QwenImageTransformer2DModel"],
        vae=["diffusers", "AutoencoderKLQwenImage"],
        text_encoder=["transformers", "Qwen2_5_VLForConditionalGeneration"],
        tokenizer=["transformers", "Qwen2Tokenizer"],
        scheduler=["diffusers", "FlowMatchEulerDiscreteScheduler"],
    )


def krea_2(folder: Path) -> Path:
    """12.9 G parameters in the network; Qwen3-VL-4B encodes captions."""
    with META:
        network, own_vae = Krea2Transformer2DModel(), AutoencoderKLQwenImage()
        encoder = Qwen3VLModel(
            Qwen3VLConfig(
                text_config=QWEN3_4B,
                vision_config={
                    "depth": 24,
                    "hidden_size": 1024,
                    "intermediate_size": 4096,
                    "out_hidden_size": 2560,
                    "deepstack_visual_indexes": [5, 11, 17],
                },
            )
        )
    diffusers_part(network, folder / "transformer")
    diffusers_part(own_vae, folder / "vae")
    transformers_part(encoder, folder / "text_encoder")
    qwen2_tokenizer(TEMPLATE).save_pretrained(folder / "tokenizer")
    scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0, max_shift=1.15, max_image_seq_len=6400, **DYNAMIC)
    scheduler.save_pretrained(folder / "scheduler")
    return index(
        folder,
        "Krea2Pipeline",
        transformer=["diffusers", "Krea2Transformer2DModel"],
        vae=["diffusers", "AutoencoderKLQwenImage"],
        text_encoder=["transformers", "Qwen3VLModel"],
        tokenizer=["transformers", "Qwen2Tokenizer"],
        scheduler=["diffusers", "FlowMatchEulerDiscreteScheduler"],
        is_distilled=False,
    )


def sana_1600m(folder: Path) -> Path:
    """1.6 G parameters in the network, 32 x 32 x 32 latents of 1,024 pixels; Gemma-2-2B encodes captions."""
    with META:
        network = SanaTransformer2DModel(sample_size=32)
        blocks = {
            f"{side}_block_types": ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3 for side in ("encoder", "decoder")
        }
        scales = {f"{side}_qkv_multiscales": ((), (), (), (5,), (5,), (5,)) for side in ("encoder", "decoder")}
        own_vae = AutoencoderDC(
            latent_channels=32,
            encoder_block_out_channels=(128, 256, 512, 512, 1024, 1024),
            decoder_block_out_channels=(128, 256, 512, 512, 1024, 1024),
            encoder_layers_per_block=(2, 2, 2, 3, 3, 3),
            decoder_layers_per_block=(3,) * 6,
            downsample_block_type="conv",
            upsample_block_type="interpolate",
            scaling_factor=0.41407,
            **blocks,
            **scales,
        )
        encoder = Gemma2Model(Gemma2Config())
    diffusers_part(network, folder / "transformer")
    diffusers_part(own_vae, folder / "vae")
    transformers_part(encoder, folder / "text_encoder")
    gemma()[0].save_pretrained(folder / "tokenizer")
    DPMSolverMultistepScheduler(
        use_flow_sigmas=True, flow_shift=3.0, prediction_type="flow_prediction", final_sigmas_type="zero"
    ).save_pretrained(folder / "scheduler")
    return index(
        folder,
        "SanaPipeline",
        transformer=["diffusers", "SanaTransformer2DModel"],
        vae=["diffusers", "AutoencoderDC"],
        text_encoder=["transformers", "Gemma2Model"],
        tokenizer=["transformers", "GemmaTokenizerFast"],
        scheduler=["diffusers", "DPMSolverMultistepScheduler"],
    )


def _qwen3_pipeline(folder: Path, kind: str, network: str, vae: str, scheduler: Any, **options: Any) -> Path:
    with META:
        encoder = Qwen3Model(Qwen3Config(tie_word_embeddings=True, **QWEN3_4B))
    transformers_part(encoder, folder / "text_encoder")
    qwen_tokenizer().save_pretrained(folder / "tokenizer")
    scheduler.save_pretrained(folder / "scheduler")
    return index(
        folder,
        kind,
        transformer=["diffusers", network],
        vae=["diffusers", vae],
        text_encoder=["transformers", "Qwen3Model"],
        tokenizer=["transformers", "Qwen2Tokenizer"],
        scheduler=["diffusers", "FlowMatchEulerDiscreteScheduler"],
        **options,
    )
