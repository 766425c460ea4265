"""A checkpoint in one .safetensors file, as ComfyUI and A1111 keep it, made into a diffusers folder once.

diffusers converts the networks (`from_single_file`). What such a file never holds, which are configurations, tokenisers
and a scheduler, is that of a base model; so are the networks that this file lacks, such as FLUX.1's text encoders.
"""

from __future__ import annotations

import fcntl
import json
import logging
import math
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.loaders import FromOriginalModelMixin
from diffusers.loaders.single_file_utils import fetch_diffusers_config
from huggingface_hub.constants import HF_HOME
from safetensors import safe_open
from torch.nn import Module
from transformers import PreTrainedModel

from redif_ray.data.targets import content_hash
from redif_ray.errors import words_of
from redif_ray.files import atomic_folder
from redif_ray.models.components import part_kinds
from redif_ray.models.folder import SCHEDULER
from redif_ray.models.foreign import LICENCES, check_header, check_part, is_known, loading, read_index, resolved
from redif_ray.models.headers import REAL, check_kinds, other_weights
from redif_ray.models.locate import INDEX, ModelError
from redif_ray.models.logging import quiet

CACHE = Path(HF_HOME) / "redif_ray"  # beside the hub's own cache
NETWORK = "model.diffusion_model."  # beginning of the names of the denoising network's weights
BEGINNINGS = {  # of the names of other parts' weights
    "vae": ("first_stage_model.", "vae."),
    "text_encoder": ("cond_stage_model.", "conditioner.embedders.0.", "text_encoders.clip_l."),
    "text_encoder_2": ("conditioner.embedders.1.", "text_encoders.clip_g."),
}
T5 = ("text_encoders.t5xxl.",)  # the second encoder of FLUX.1, the third of Stable Diffusion 3
ENCODERS = ("CLIPTextModel", "CLIPTextModelWithProjection", "T5EncoderModel")  # those that diffusers converts
SCALES = ("scaled_fp8", ".scale_weight", ".weight_scale", ".absmax")  # ends of names of what undoes a quantization
UNSAID = "stable-diffusion-2"  # in the hub ids of models whose files do not say whether they predict v or epsilon


class SingleFile:
    """The header of a checkpoint in one file. Raises ModelError for a file that cannot be read."""

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        check_header(self.path, self.path.parent)
        check_kinds(self.path)
        with loading(path), safe_open(self.path, framework="np") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  # it is no mapping
            self.shapes = {name: tuple(one.get_shape()) for name, one in slices.items()}
            self.dtypes = {name: one.get_dtype() for name, one in slices.items()}
            self.said: Mapping[str, str] = file.metadata() or {}
        if scaled := next((name for name in self.shapes if name.endswith(SCALES)), None):
            raise ModelError(f"{path} holds {scaled}; expected weights that are not quantized")

    def usual_base(self) -> str:
        """Return the hub id of the base model that diffusers takes a file of this layout for. Raises ModelError."""
        hollow = {name: torch.empty(shape, device="meta") for name, shape in self.shapes.items()}
        with loading(self.path):
            found = str(fetch_diffusers_config(hollow)["pretrained_model_name_or_path"])
        if UNSAID in found:
            raise ModelError(
                f"{self.path} is a Stable Diffusion 2, and does not say whether it predicts v or epsilon; set "
                "teacher.base to the diffusers folder or hub id of the model that it was made from"
            )
        return found

    def lacking(self, base: Path, names: Sequence[str]) -> list[str]:
        """Return those of the networks `names` of the pipeline in `base` that are not in this file."""
        return [name for name, kind in _networks(base, names).items() if not self._weights(name, kind)]

    def converted(self, base: Path, component: str, names: Sequence[str]) -> Path:
        """Return the file as a diffusers folder in `CACHE`, which is made unless it exists. Raises ModelError.

        base: the folder of the base model. component: the name of its denoising network. names: the names of its other
        networks and its tokenisers.
        """
        base = base.resolve()
        files = [self.path, *(path for path in sorted(base.rglob("*")) if path.is_file())]
        made_of = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
        folder = CACHE / f"{self.path.stem}-{content_hash([made_of, component, names])[:12]}"
        with _alone(folder):
            if not folder.is_dir():
                with atomic_folder(folder) as partial:
                    self._write(partial, base, component, names)
        return folder

    def _write(self, out: Path, base: Path, component: str, names: Sequence[str]) -> None:
        networks = _networks(base, (component, *names))
        own = {name: weights for name, kind in networks.items() if (weights := self._weights(name, kind))}
        if component not in own:
            raise ModelError(
                f"{self.path} holds no {component}; expected a whole checkpoint, or one of the {component}"
            )
        self._warn_of_others({weight for weights in own.values() for weight in weights})
        for name, weights in own.items():
            network = self._network(name, networks, base, self._dtype(weights))
            if isinstance(network, PreTrainedModel):
                network.tie_weights()  # of a weight with two names, files hold one
            if absent := [key for key, value in network.state_dict().items() if value.is_meta]:
                lacking = f"{self.path} lacks {name}'s {absent[0]} ({len(absent)} in all)"
                raise ModelError(f"{lacking}; its layout is not that of {base}")
            with quiet():
                network.save_pretrained(out / name, safe_serialization=True)
        for name in ("scheduler", *names):
            if name not in own and (base / name).is_dir():
                _copy(base / name, base, out / name)
        for licence in (base / name for name in LICENCES):
            if licence.is_file():
                shutil.copyfile(resolved(licence, base), out / licence.name)
        self._say_prediction(out / "scheduler" / SCHEDULER)
        kept = {"scheduler", component, *names}
        index = {k: v if k in kept or not isinstance(v, list) else [None, None] for k, v in read_index(base).items()}
        (out / INDEX).write_text(json.dumps(index, indent=2) + "\n")

    def _network(self, name: str, networks: Mapping[str, Any], base: Path, dtype: torch.dtype) -> Module:
        """Return the network `name` with the file's weights; those that are not there are on the device "meta"."""
        how: dict[str, Any] = {"config": str(base), "torch_dtype": dtype, "local_files_only": True}
        kind = networks[name]
        with loading(self.path, f"{name} of {base}"), quiet(), _nothing_left():
            if issubclass(kind, FromOriginalModelMixin):
                network: Module = kind.from_single_file(str(self.path), subfolder=name, **how)
                return network
            index = read_index(base)
            others = dict.fromkeys(part for part, value in index.items() if isinstance(value, list) and part != name)
            pipeline = getattr(diffusers, index["_class_name"])
            return getattr(pipeline.from_single_file(str(self.path), **how, **others), name)

    def _weights(self, name: str, kind: Any) -> list[str]:
        """Return the names of the weights of the part `name`, which is a `kind`; none where diffusers converts none."""
        if name in ("unet", "transformer"):
            inside = [each for each in self.shapes if each.startswith(NETWORK)]
            others = tuple(begin for begins in (*BEGINNINGS.values(), T5) for begin in begins)
            return inside or [each for each in self.shapes if not each.startswith(others)]
        if not issubclass(kind, FromOriginalModelMixin) and kind.__name__ not in ENCODERS:
            return []
        begin = T5 if kind.__name__ == "T5EncoderModel" else BEGINNINGS.get(name, ())
        return [each for each in self.shapes if begin and each.startswith(begin)]

    def _dtype(self, weights: Sequence[str]) -> torch.dtype:
        """Return the dtype that holds most of these weights; bfloat16 for 8 bits, which it holds exactly."""
        numbers: Counter[str] = Counter()
        for name in weights:
            numbers[self.dtypes[name]] += math.prod(self.shapes[name])
        dtype = REAL.get(max(numbers, key=numbers.__getitem__), torch.float32)
        return torch.bfloat16 if dtype.itemsize == 1 else dtype

    def _warn_of_others(self, read: set[str]) -> None:
        others = {".".join(name.split(".")[:2]) for name in self.shapes.keys() - read if name.endswith(".weight")}
        if others:
            logging.getLogger(__name__).warning(
                "%s also holds %s, which is not read", self.path, ", ".join(sorted(others)[:5])
            )

    def _say_prediction(self, scheduler: Path) -> None:
        """Write into the scheduler that the network predicts v, where the file says so as ComfyUI's files do."""
        if "v_pred" not in self.shapes and self.said.get("modelspec.predict_key") != "v":
            return
        settings = json.loads(scheduler.read_text()) | {"prediction_type": "v_prediction"}
        settings |= {"rescale_betas_zero_snr": True} if "ztsnr" in self.shapes else {}
        scheduler.write_text(json.dumps(settings, indent=2) + "\n")


class _Warnings(logging.Handler):
    """Raises what a library warns of while it converts."""

    def emit(self, record: logging.LogRecord) -> None:
        raise ModelError(words_of(ValueError(record.getMessage())))


@contextmanager
def _nothing_left() -> Iterator[None]:
    """Raise ModelError in this block where diffusers leaves weights of a file unused, of which it only warns."""
    log, handler = logging.getLogger("diffusers.loaders.single_file_model"), _Warnings(logging.WARNING)
    before = log.level
    log.setLevel(logging.WARNING)
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(before)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Let one process of this machine at a time make `folder`."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f".{folder.name}.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _networks(base: Path, names: Sequence[str]) -> dict[str, Any]:
    """Return the classes of those of the parts `names` of the pipeline in `base` that are networks."""
    kinds = part_kinds(base, read_index(base), names)
    return {name: kind for name, kind in kinds.items() if kind is not None and issubclass(kind, Module)}


def _copy(part: Path, base: Path, out: Path) -> None:
    check_part(part, base)
    out.mkdir()
    again = other_weights(part)
    for path in sorted(part.iterdir()):
        if is_known(path) and path not in again:
            shutil.copyfile(resolved(path, base), out / path.name)
