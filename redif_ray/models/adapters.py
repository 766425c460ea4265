"""LoRA files of a fine-tune that are merged into a teacher: each layer becomes W + weight (alpha / rank) B A.

diffusers reads the file, whose keys may be those of diffusers, peft, kohya or ComfyUI; peft adds the product to the
weights in their precision, as `pipe.fuse_lora()` does.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from diffusers.loaders.peft import PeftAdapterMixin
from diffusers.utils import recurse_remove_peft_layers
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError, safe_open
from torch import Tensor

from redif_ray.errors import words_of
from redif_ray.models.locate import ModelError
from redif_ray.models.logging import quiet
from redif_ray.models.protocol import DiffusionModel
from redif_ray.models.text import TextModel

FILE = "pytorch_lora_weights.safetensors"  # diffusers' name of the file in a folder
NAME = "fine_tune"  # peft's name of the adapters while they are merged
FIRST = re.compile(r"[._](lora_A|lora[._]down|lora_linear_layer\.down)\.weight$")  # A, of which a layer has one
SECOND = re.compile(r"[._](lora_B|lora[._]up|lora_linear_layer\.up)\.(weight|bias)$")
REFUSED = {  # parts of keys that diffusers would drop or read as LoRA, and what they are of
    "dora_scale": "DoRA",
    "lora_magnitude_vector": "DoRA",
    "hada_": "LoHa",
    "lokr_": "LoKr",
    "oft_": "OFT",
    ".diff": "whole changes of weights or biases",
    "t5xxl": "layers of T5",
    "position_embedding": "position embeddings",
}
SCHEMES = {  # beginnings of keys by the programs that write them
    "kohya": ("lora_unet_", "lora_te"),
    "diffusers": ("transformer.", "unet.", "text_encoder"),
    "ComfyUI": ("diffusion_model.",),
    "peft": ("base_model.",),
}


class LoraFile:
    """A LoRA file for the networks of a pipeline.

    model: the pipeline, before anything is merged. source: the file, or a folder that holds `FILE`. weight: factor of
    its change. Raises ModelError for a file that cannot be merged whole, as far as its keys tell.
    """

    def __init__(self, model: TextModel, source: str, weight: float) -> None:
        self.path, self.weight = _path(source), weight
        self.kind, self.component = model.pipeline_kind, model.component
        if not hasattr(self.kind, "lora_state_dict"):
            raise ModelError(
                f"teacher.lora: {self.kind.__name__} of diffusers reads no LoRA files; merge it into the teacher by "
                "peft, as docs/fine_tunes.md shows, and name the new folder in teacher.model"
            )
        self.options = {"unet_config": model.config} if self.component == "unet" else {}
        keys = _checked_keys(self.path)
        self.layers = layers = self._layers(self._read()[0])  # numbers of changed layers by network
        known = {self.component, *(name for name in model.frozen.configs if name.startswith("text_encoder"))}
        if not layers or (other := sorted(layers.keys() - known)):
            held = f"layers of {', '.join(other)}" if layers else "no layers"
            raise ModelError(f"teacher.lora: {self.path} holds {held}; expected layers of {', '.join(sorted(known))}")
        for short, part in {"lora_te2_": "text_encoder_2", "lora_te": "text_encoder"}.items():
            if any(key.startswith(short) for key in keys) and not any(name.startswith(part) for name in layers):
                raise ModelError(f"teacher.lora: {self.path} has layers {short}..., which this pipeline's loader drops")
        self.parts = frozenset(layers)  # names of the networks that it changes

    def apply(self, name: str, network: Any) -> None:
        """Add the file's change to the weights of the network `name`, in place; do nothing if it has none for it.

        A network on the device "meta" is only checked. Raises ModelError where a layer does not fit.
        """
        if name not in self.parts:
            return
        state, alphas, metadata = self._read()
        try:
            with quiet(logging.CRITICAL):
                self._inject(name, network, state, alphas, metadata)
        except (ValueError, RuntimeError, KeyError, TypeError) as error:
            raise ModelError(f"teacher.lora: {self.path} does not fit {name}: {words_of(error)}") from error
        adapted = [module for module in network.modules() if isinstance(module, LoraLayer)]
        if len(adapted) != self.layers[name]:
            raise ModelError(
                f"teacher.lora: {self.path} changes {self.layers[name]} layers of {name}, which has {len(adapted)} of "
                "them; it was made for another model"
            )
        self._fold(network, adapted)

    def _inject(self, name: str, network: Any, state: Any, alphas: Any, metadata: Any) -> None:
        given = {"network_alphas": alphas, "metadata": metadata, "adapter_name": NAME, "low_cpu_mem_usage": True}
        if isinstance(network, PeftAdapterMixin):
            network.load_lora_adapter(state, prefix=name, **given)
        else:
            self.kind.load_lora_into_text_encoder(state, text_encoder=network, prefix=name, **given)

    def _fold(self, network: Any, adapted: Iterable[LoraLayer]) -> None:
        if next(network.parameters()).device.type != "meta":
            for layer in adapted:
                layer.set_scale(NAME, self.weight)
                layer.merge(safe_merge=True, adapter_names=[NAME])
        recurse_remove_peft_layers(network)
        if hasattr(network, "peft_config"):
            del network.peft_config
        network._hf_peft_config_loaded = False  # diffusers and transformers refuse a second file otherwise
        network.requires_grad_(False)

    def _read(self) -> tuple[dict[str, Tensor], Any, Any]:
        """Return diffusers' state dict, with its alphas or its metadata; either may be None. Raises ModelError."""
        try:
            with quiet():
                state, *alphas, metadata = self.kind.lora_state_dict(
                    str(self.path.parent),
                    weight_name=self.path.name,
                    use_safetensors=True,
                    local_files_only=True,
                    return_alphas=True,
                    return_lora_metadata=True,
                    **self.options,
                )
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise ModelError(f"teacher.lora: {self.path} cannot be read as LoRA: {words_of(error)}") from error
        if any(alphas):
            return state, alphas[0], metadata
        return _with_alpha_inside(state), None, metadata

    def _layers(self, state: Mapping[str, Any]) -> Counter[str]:
        """Count the changed layers of each network. Raises ModelError for a tensor that is no factor of a layer."""
        for key in state:
            if not (FIRST.search(key) or SECOND.search(key) or key.endswith(".alpha")):
                raise ModelError(f"teacher.lora: {self.path} holds {key}, which is no factor of a LoRA layer")
        return Counter(key.partition(".")[0] for key in state if FIRST.search(key))


def merge_files(model: DiffusionModel, files: Mapping[str, float]) -> None:
    """Merge LoRA files, each with its weight, into the network at once, and into text encoders when they are loaded.

    Raises ModelError.
    """
    if not isinstance(model, TextModel):
        raise ModelError(f"teacher.lora: a {type(model).__name__} is no text-to-image pipeline; leave it out")
    for source, weight in files.items():
        file = LoraFile(model, source, weight)
        file.apply(model.component, model.network)
        model.frozen.change(file)


def _path(source: str) -> Path:
    path = Path(source)
    path = path / FILE if path.is_dir() else path
    if not path.is_file() or path.suffix != ".safetensors":
        raise ModelError(
            f"teacher.lora: {path} is no .safetensors file; expected one, or a folder that holds {FILE}; a file of the "
            "hub has to be downloaded first"
        )
    return path


def _with_alpha_inside(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict whose `.alpha` keys, which diffusers' loader would leave out, are multiplied into B."""
    made = {key: value for key, value in state.items() if not key.endswith(".alpha")}
    for key, alpha in state.items():
        if key.endswith(".alpha"):
            layer = [name for name in made if name.startswith(f"{key.removesuffix('alpha')}")]
            rank = next((len(made[name]) for name in layer if FIRST.search(name)), None)
            if rank is None:
                raise ModelError(f"teacher.lora: {key} belongs to no layer of the file")
            made |= {name: made[name] * (float(alpha) / rank) for name in layer if SECOND.search(name)}
    return made


def _checked_keys(path: Path) -> list[str]:
    """Return the file's keys. Raises ModelError for adapters of another kind, and for keys of several programs."""
    try:
        with safe_open(path, framework="np") as file:
            keys = list(file.keys())
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"teacher.lora: {path} is no safetensors file: {words_of(error)}; copy it once more"
        ) from error
    for part, kind in REFUSED.items():
        if found := next((key for key in keys if part in key), None):
            raise ModelError(f"teacher.lora: {path} holds {kind} ({found}), which is not supported; expected LoRA")
    schemes = [name for name, begin in SCHEMES.items() if any(key.startswith(begin) for key in keys)]
    if len(schemes) > 1:
        raise ModelError(
            f"teacher.lora: {path} holds keys of {' and of '.join(schemes)}, of which diffusers reads one kind only; "
            "save it again by one program"
        )
    return keys
