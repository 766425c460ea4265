"""Weights in a file that the user names: safetensors only, whole and finite."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from redif_ray.errors import words_of
from redif_ray.models.foreign import check_header
from redif_ray.models.protocol import ModelError, is_finite
from redif_ray.rewards.term import RewardError

TO_SAFETENSORS = (
    "import torch, safetensors.torch as s; w = torch.load('FILE.pth', map_location='cpu', weights_only=True); "
    "s.save_file({k: v.contiguous().clone() for k, v in w.get('state_dict', w).items()}, 'FILE.safetensors')"
)


def load_weights(option: str, path: str) -> dict[str, Tensor]:
    """Return the tensors of the safetensors file `path`, the value of the user's `option`. Raises `RewardError`."""
    file = Path(path).expanduser()
    if file.suffix != ".safetensors":
        raise RewardError(
            f"{option}={path!r}: expected a .safetensors file, since others may run code when they are "
            f'read; convert it: python -c "{TO_SAFETENSORS}"'
        )
    if not file.is_file():
        raise RewardError(f"{option}={path!r}: no such file; expected a .safetensors file")
    try:
        check_header(file, file.parent)
        weights = load_file(file)
    except (SafetensorError, OSError, ModelError) as error:
        raise RewardError(
            f"{option}={path!r} is not a whole safetensors file: {words_of(error)}; copy it again"
        ) from error
    check_finite(weights, f"{option}={path!r}")
    return weights


def check_finite(weights: Mapping[str, Tensor], where: str) -> None:
    """Raise `RewardError` where a weight is NaN or infinite. where: the user's option and its value."""
    for name, value in weights.items():
        if value.is_floating_point() and not is_finite(value):
            raise RewardError(f"{where}: weight {name} is NaN or infinite; copy the file from its source again")
