"""The device and the precision in which a model is sampled, chosen where the user names none."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from redif_ray.config import Precision
from redif_ray.models.protocol import ModelError

NETWORKS = ("unet", "transformer")  # folders of denoising networks in a pipeline
HALVES = {"F16": torch.float16, "BF16": torch.bfloat16}  # 16-bit dtypes by their names in safetensors files
LARGE = 500_000_000  # weights beyond which a GPU computes in 16 bits whatever the files hold


def sampling_device(asked: str | None, option: str = "--device ") -> str:
    """Return `asked`, or with None "cuda" or "mps" where this machine has one, else "cpu".

    option: how the user set it, for errors.

    Raises ModelError for a device that torch cannot use here.
    """
    if asked is None:
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.empty(1, device=asked)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ModelError(f"{option}{asked}: {reason}; expected cpu, or a device that this machine has") from error
    return asked


def sampling_dtype(asked: Precision | None, folder: Path, device: str) -> torch.dtype:
    """Return the dtype named `asked`, or with None the one that suits the model in `folder` on `device`.

    The CPU computes in float32. A GPU computes in the 16 bits of the network's files, in bfloat16 for a network of more
    than `LARGE` weights, and else in float32.
    """
    if asked is not None:
        dtype: torch.dtype = getattr(torch, asked)
        return dtype
    if device == "cpu":
        return torch.float32
    numbers = _numbers(folder)
    most = max(numbers, key=numbers.__getitem__, default="F32")
    return HALVES.get(most, torch.bfloat16 if numbers.total() > LARGE else torch.float32)


def _numbers(folder: Path) -> Counter[str]:
    """Return how many weights of each dtype the files of the network in `folder` hold."""
    numbers: Counter[str] = Counter()
    for path in (path for name in NETWORKS for path in (folder / name).glob("*.safetensors")):
        try:
            with safe_open(path, framework="np") as file:
                slices = [file.get_slice(name) for name in file.keys()]  # noqa: SIM118  # it is no mapping
                for one in slices:
                    numbers[one.get_dtype()] += math.prod(one.get_shape())
        except (OSError, SafetensorError):
            continue  # loading names the file
    return numbers
