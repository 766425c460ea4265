"""Frozen networks in 4 bits, by the optional package bitsandbytes, which has an 8-bit optimiser too.

The weights of the linear layers of a network's blocks become NF4, with a float32 scale for each `BLOCK` of them (QLoRA,
Dettmers et al., arXiv 2305.14314). Embeddings, norms, convolutions and the last layer are left as they are.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from redif_ray.config import ConfigError, Quantization

if TYPE_CHECKING:
    from torch.nn import Linear

    from redif_ray.models.protocol import DiffusionModel

PACKAGE = "bitsandbytes"
BLOCK = 64  # weights that share a scale


def check_installed(key: str) -> None:
    """Raise ConfigError, which names the configuration key, where bitsandbytes is not installed."""
    if importlib.util.find_spec(PACKAGE) is None:
        raise ConfigError(f"{key}: needs {PACKAGE}, which is not installed; pip install '{PACKAGE}>=0.50'")


def bitsandbytes(key: str) -> Any:
    """Return the package. key: the configuration key that needs it. Raises ConfigError where it is not installed."""
    check_installed(key)
    return importlib.import_module(PACKAGE)


def quantize(model: DiffusionModel, kind: Quantization) -> None:
    """Replace the linear layers of the network's blocks by layers that are quantized when the network is next moved.

    A move to the device on which they are counts. They compute in the model's dtype. Raises ConfigError.
    """
    nn = bitsandbytes(f"networks.quantize={kind}").nn
    for name, linear in list(_layers(model)):
        sizes, bias = (linear.in_features, linear.out_features), linear.bias is not None
        options = {"compress_statistics": False, "quant_type": "nf4"}
        layer = nn.Linear4bit(*sizes, bias, compute_dtype=model.dtype, device="meta", **options)
        layer.weight = nn.Params4bit(linear.weight.data, requires_grad=False, **options)
        layer.bias = linear.bias
        # On some CPUs it would round the scales once more, in calls without gradients alone: rollout would see
        # another network than the update.
        layer.support_avx512bf16_for_cpu = False
        model.network.set_submodule(name, layer.eval())
    model.network.is_loaded_in_4bit = True  # peft chooses the class of its adapters by this name


def saved_bytes(model: DiffusionModel, kind: Quantization) -> int:
    """Return the bytes that the weights of a network which is not quantized would lose by `quantize`."""
    weights = [] if kind == "none" else [linear.weight for _, linear in _layers(model)]
    return sum(w.nbytes - w.numel() // 2 - 4 * -(-w.numel() // BLOCK) for w in weights)


def _layers(model: DiffusionModel) -> Iterator[tuple[str, Linear]]:
    """Yield the linear layers of the network's blocks, each with its name in the network."""
    from torch.nn import Linear

    inside = {id(module) for block in model.blocks() for module in block.modules()}
    for name, module in model.network.named_modules():
        if type(module) is Linear and id(module) in inside:
            yield name, module
