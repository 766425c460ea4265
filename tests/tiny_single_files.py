"""Checkpoints in one file: the weights of tiny folders by the names that the original programs give them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import Module

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
UNET = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}
VAE = {
    "mid_block.resnets.0": "mid.block_1",
    "mid_block.resnets.1": "mid.block_2",
    "mid_block.attentions.0": "mid.attn_1",
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
    "conv_norm_out": "norm_out",
    "conv_shortcut": "nin_shortcut",
}
OPEN_CLIP = {
    "embeddings.position_embedding.weight": "positional_embedding",
    "embeddings.token_embedding": "token_embedding",
    "encoder.layers": "transformer.resblocks",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
    "final_layer_norm": "ln_final",
}


def renamed(name: str, names: dict[str, str]) -> str:
    for new, old in names.items():
        name = re.sub(rf"(^|\.){re.escape(new)}(\.|$)", rf"\1{old}\2", name)
    return name


def original_unet(network: Any) -> dict[str, Tensor]:
    each = network.config.layers_per_block + 1
    made = {}
    for name, value in network.state_dict().items():
        name = renamed(name, UNET)
        if block := re.match(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.", name):
            side, i, kind, j = block[1], int(block[2]), block[3], int(block[4])
            rest = name.removeprefix(block[0])
            if kind == "downsamplers":
                name = f"input_blocks.{(i + 1) * each}.0.{rest.replace('conv', 'op')}"
            elif kind == "upsamplers":
                last = 2 if "CrossAttn" in network.config.up_block_types[i] else 1
                name = f"output_blocks.{(i + 1) * each - 1}.{last}.{rest}"
            else:
                at = 1 + i * each + j if side == "down" else i * each + j
                name = f"{'input' if side == 'down' else 'output'}_blocks.{at}.{int(kind == 'attentions')}.{rest}"
        if not re.search(r"(time_embed|label_emb|transformer_blocks)", name):
            name = renamed(name, RESNET)
        made[f"model.diffusion_model.{name}"] = value
    return made


def original_vae(vae: Any) -> dict[str, Tensor]:
    last = len(vae.config.block_out_channels) - 1
    made = {}
    for name, value in vae.state_dict().items():
        name = renamed(name, VAE)
        if block := re.search(r"(down|up)_blocks\.(\d+)\.(resnets\.(\d+)|downsamplers\.0|upsamplers\.0)", name):
            i = int(block[2]) if block[1] == "down" else last - int(block[2])
            inner = f"block.{block[4]}" if block[4] else f"{block[1]}sample"
            name = name.replace(block[0], f"{block[1]}.{i}.{inner}")
        if re.search(r"attn_1\.(q|k|v|proj_out)\.weight", name):
            value = value[..., None, None]  # a convolution of one pixel
        made[f"first_stage_model.{name}"] = value
    return made


def original_clip(encoder: Module, begin: str) -> dict[str, Tensor]:
    return {f"{begin}text_model.{k.removeprefix('text_model.')}": v for k, v in encoder.state_dict().items()}


def original_open_clip(encoder: Module, begin: str) -> dict[str, Tensor]:
    state = {name.removeprefix("text_model."): value for name, value in encoder.state_dict().items()}
    made = {"text_projection": state.pop("text_projection.weight").T.contiguous()}
    for name in [name for name in state if "self_attn.q_proj" in name]:
        parts = [state.pop(name.replace("q_proj", f"{which}_proj")) for which in "qkv"]
        made[renamed(name, OPEN_CLIP).replace("self_attn.q_proj.", "attn.in_proj_")] = torch.cat(parts)
    return {
        f"{begin}{name}": value for name, value in (made | {renamed(k, OPEN_CLIP): v for k, v in state.items()}).items()
    }


def original_z_image(network: Any) -> dict[str, Tensor]:
    names = {
        "all_final_layer.2-1": "final_layer",
        "all_x_embedder.2-1": "x_embedder",
        "to_out.0": "out",
        "norm_q": "q_norm",
        "norm_k": "k_norm",
    }
    state = network.state_dict()
    for name in [name for name in state if ".to_q." in name]:
        state[name.replace("to_q", "qkv")] = torch.cat(
            [state.pop(name.replace("to_q", f"to_{which}")) for which in "qkv"]
        )
    return {f"model.diffusion_model.{renamed(name, names)}": value for name, value in state.items()}


SD3 = {
    "pos_embed.pos_embed": "pos_embed",
    "pos_embed.proj": "x_embedder.proj",
    "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
    "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
    "proj_out": "final_layer.linear",
    "transformer_blocks": "joint_blocks",
}
SD3_SIDES = {  # names in a block, for the image and for the caption
    "x_block": {
        "norm1.linear": "adaLN_modulation.1",
        "attn.to_out.0": "attn.proj",
        "ff.net.0.proj": "mlp.fc1",
        "ff.net.2": "mlp.fc2",
    },
    "context_block": {
        "norm1_context.linear": "adaLN_modulation.1",
        "attn.to_add_out": "attn.proj",
        "ff_context.net.0.proj": "mlp.fc1",
        "ff_context.net.2": "mlp.fc2",
    },
}


def original_sd3(network: Any) -> dict[str, Tensor]:
    state, last = network.state_dict(), network.config.num_layers - 1
    for name in [name for name in state if re.search(r"\.attn\.(to_q|add_q_proj)\.", name)]:
        side = "x_block" if "to_q" in name else "context_block"
        rows = torch.cat([state.pop(re.sub(r"(to_|add_)q", rf"\1{which}", name)) for which in "qkv"])
        state[re.sub(r"attn\.(to_q|add_q_proj)", f"{side}.attn.qkv", name)] = rows
    for name in [name for name in state if re.search(rf"(norm_out|\.{last}\.norm1_context)\.linear", name)]:
        scale, shift = state[name].chunk(2)
        state[name] = torch.cat([shift, scale])
    made = {}
    for name, value in state.items():
        for side, names in SD3_SIDES.items():
            for new, old in names.items():
                name = re.sub(rf"(blocks\.\d+)\.{re.escape(new)}\.", rf"\1.{side}.{old}.", name)
        made[f"model.diffusion_model.{renamed(name, SD3)}"] = value
    return made


def original_encoders(pipe: Any) -> dict[str, Tensor]:
    """Return CLIP and T5 as Stable Diffusion 3 names them; T5's embedding, which it uses by two names, by one."""
    small = original_clip(pipe.text_encoder, "text_encoders.clip_l.transformer.")
    state = {name: value for name, value in small.items() if "text_projection" not in name}
    for name, value in original_clip(pipe.text_encoder_2, "text_encoders.clip_g.transformer.").items():
        state[name.replace("text_model.text_projection", "text_projection")] = value
    t5 = {name: value for name, value in pipe.text_encoder_3.state_dict().items() if "embed_tokens" not in name}
    return state | {f"text_encoders.t5xxl.transformer.{name}": value for name, value in t5.items()}


def original(folder: Path) -> dict[str, Tensor]:
    """Return the weights of the pipeline of Stable Diffusion 1.5 or XL in `folder` by their original names."""
    pipe: Any = DiffusionPipeline.from_pretrained(folder)
    state = original_unet(pipe.unet) | original_vae(pipe.vae)
    if not hasattr(pipe, "text_encoder_2"):
        return state | original_clip(pipe.text_encoder, "cond_stage_model.transformer.")
    state |= original_clip(pipe.text_encoder, "conditioner.embedders.0.transformer.")
    return state | original_open_clip(pipe.text_encoder_2, "conditioner.embedders.1.model.")


def write_single(state: dict[str, Tensor], path: Path, **metadata: str) -> Path:
    save_file({name: value.contiguous().clone() for name, value in state.items()}, path, metadata or None)
    return path
