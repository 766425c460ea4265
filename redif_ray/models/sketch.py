"""A checksum of a model by samples of its files, which takes milliseconds where the whole files take minutes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from redif_ray.data.schedule_file import FoundFor

NETWORKS = ("transformer", "unet")  # folders of a pipeline's network; an old model of one network has no such folder
SAMPLES, BYTES = 256, 4096  # parts of a file that are read, evenly spaced, and the bytes of each
UNIMPORTANT = ("_diffusers_version", "_name_or_path")


def found_for(folder: Path, size: tuple[int, int] | None, lora: dict[str, float]) -> FoundFor:
    """Return what decides the best schedule of a model: its weights with merged LoRA files, its noise, its size.

    folder: the model's; size: (height, width) in pixels; None: the model's own. lora: weight of each file.
    """
    networks = [folder / name for name in NETWORKS if (folder / name).is_dir()] or [folder]
    weights = sorted(path for network in networks for path in network.glob("*.safetensors"))
    settings = [network / "config.json" for network in networks] + [folder / "scheduler/scheduler_config.json"]
    return FoundFor(
        weights=_sha256([sampled(path) for path in weights] + [(sampled(Path(p)), w) for p, w in lora.items()]),
        settings=_sha256([_settings(path) for path in settings]),
        size=size,
    )


def sampled(path: Path) -> str:
    """Return the sha256 of the size of a file and of `SAMPLES` parts of it."""
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        for i in range(SAMPLES):
            file.seek(max(0, size - BYTES) * i // (SAMPLES - 1))
            digest.update(file.read(BYTES))
    return digest.hexdigest()


def _settings(path: Path) -> object:
    """Return the settings in a JSON file without those that change no image, or None where there is no such file."""
    if not path.is_file():
        return None
    try:
        tree = json.loads(path.read_text())
    except ValueError:
        return path.read_text()
    return {key: value for key, value in tree.items() if key not in UNIMPORTANT} if isinstance(tree, dict) else tree


def _sha256(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
