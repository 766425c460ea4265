"""The weights of a CLIP by the names that transformers gives them, from the names that open_clip gives them."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

PREFIX = "model."  # before every name where a class of its own holds the CLIP, as in the package imscore
OUTSIDE = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.": "vision_model.embeddings.patch_embedding.",
    "visual.ln_pre.": "vision_model.pre_layrnorm.",
    "visual.ln_post.": "vision_model.post_layernorm.",
    "visual.proj": "visual_projection.weight",
    "token_embedding.": "text_model.embeddings.token_embedding.",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.": "text_model.final_layer_norm.",
    "text_projection": "text_projection.weight",
    "visual.transformer.resblocks.": "vision_model.encoder.layers.",
    "transformer.resblocks.": "text_model.encoder.layers.",
}
INSIDE = {
    ".ln_1.": ".layer_norm1.",
    ".ln_2.": ".layer_norm2.",
    ".attn.": ".self_attn.",
    ".mlp.c_fc.": ".mlp.fc1.",
    ".mlp.c_proj.": ".mlp.fc2.",
}
PROJECTIONS = ("visual.proj", "text_projection")  # open_clip multiplies from the right with them


def names_of_transformers(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a CLIP's weights by transformers' names, which they may have already."""
    given = {name.removeprefix(PREFIX): weight for name, weight in weights.items()}
    if "visual.proj" not in given:
        return given
    named: dict[str, Tensor] = {}
    for name, weight in given.items():
        theirs = _renamed(name)
        if ".in_proj_" in theirs:
            for part, rows in zip("qkv", weight.chunk(3), strict=True):
                named[theirs.replace("in_proj_", f"{part}_proj.")] = rows
        else:
            named[theirs] = weight.T if name in PROJECTIONS else weight
    return named


def _renamed(name: str) -> str:
    start = next((known for known in OUTSIDE if name.startswith(known)), "")
    renamed = OUTSIDE.get(start, "") + name.removeprefix(start)
    for ours, theirs in INSIDE.items():
        renamed = renamed.replace(ours, theirs)
    return renamed
