"""Reading of a diffusers folder: its index, its networks, its scheduler.

Weights are read from safetensors only. A missing file is an error; no default takes its place.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Literal

import diffusers
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, ModelMixin, SchedulerMixin
from pydantic import BaseModel, Field, FiniteFloat, PositiveInt, ValidationError
from transformers import PreTrainedModel

from redif_ray.diffusion.levels import FlowMatching, VariancePreserving
from redif_ray.models.foreign import AGAIN, check_part, loading, read_json, read_settings, resolved
from redif_ray.models.foreign import read_index as read_index
from redif_ray.models.headers import check_held, fits, variant_of
from redif_ray.models.locate import INDEX as INDEX
from redif_ray.models.logging import quiet
from redif_ray.models.protocol import ModelError

SCHEDULER = "scheduler_config.json"
SETTINGS = "redif.json"  # of an exported student
_without_weights = ContextVar[Literal["checked", "unseen"] | None]("without_weights", default=None)
PREDICTIONS = ("epsilon", "sample", "v_prediction")  # prediction types of variance preserving processes


class StudentSettings(BaseModel):
    """The part of `redif.json` that is read: how an exported student is sampled."""

    steps: PositiveInt
    timesteps: list[FiniteFloat] = Field(min_length=1, max_length=10_000)
    network_timesteps: list[FiniteFloat] | None = None
    guidance: FiniteFloat = Field(ge=0)
    clip_sample_range: FiniteFloat | None = None
    height: PositiveInt | None = None
    width: PositiveInt | None = None


def student_settings(folder: Path) -> dict[str, Any] | None:
    """Return what `redif.json` says of an exported student's sampling, or None for any other folder.

    Raises ModelError.
    """
    path = folder / SETTINGS
    if not path.exists():
        return None
    try:
        return dict(StudentSettings.model_validate(read_json(path, folder)).model_dump(exclude_none=True))
    except ValidationError as error:
        wrong = error.errors()[0]
        key = ".".join(map(str, wrong["loc"]))
        raise ModelError(f"{path}: {key}: {wrong['msg']}; export the student again, or copy the file again") from error


def load_network(kind: Any, folder: Path, component: str, dtype: torch.dtype, *, read: bool = True) -> Any:
    """Load the network of class `kind` in `dtype`, frozen and in eval mode.

    read: False compares the headers of the files with the network and does not read the weights; the network is on the
    device "meta". A `without_weights` block decides otherwise.
    Raises ModelError unless the file holds exactly the network's weights. Only the file of a text encoder may hold
    more, as those of old checkpoints do.
    """
    place = component_folder(folder, component)
    if not (place / "config.json").exists():
        raise ModelError(f"{folder} has no {component}/config.json; expected a {kind.__name__} there")
    from_transformers = issubclass(kind, PreTrainedModel)
    with loading(place, f"{kind.__name__} from safetensors"), quiet():
        resolved(place, folder, cache=False)
        if read_settings(place / "config.json", folder).get("quantization_config"):
            raise ModelError("its config.json has a quantization_config; expected weights that are not quantized")
        if _without_weights.get() == "unseen":
            return _skeleton(kind, place, dtype)
        check_part(place, folder)
        check_held(place)
        options: dict[str, Any] = {"dtype" if from_transformers else "torch_dtype": dtype, "variant": variant_of(place)}
        if not read or weightless():
            skeleton = _skeleton(kind, place, dtype)
            if fits(skeleton, place, may_hold_more=from_transformers):
                return skeleton
            options["device_map"] = "meta"  # the library reads the file, and tells what is wrong with it
        network, info = kind.from_pretrained(
            place, use_safetensors=True, local_files_only=True, output_loading_info=True, **options
        )
    allowed = {"unexpected_keys"} if from_transformers else set()
    wrong = {name: names for name, names in info.items() if names and name not in allowed}
    if wrong:
        raise ModelError(
            f"{place}: the weights are not those of its config.json: {str(wrong)[:400]}; copy both from one model"
        )
    return network.eval().requires_grad_(False)


def component_folder(folder: Path, component: str) -> Path:
    """Return the folder of a pipeline's network: the one of its name, or the pipeline's own where that holds the files.

    Old models of one network, such as google/ddpm-cifar10-32, have all files in one folder.
    """
    return folder if not (folder / component).is_dir() and (folder / "config.json").is_file() else folder / component


@contextmanager
def without_weights(*, check: bool = False) -> Iterator[None]:
    """Make `load_network` return networks on the device "meta" in this block, with shapes and dtypes but no weights.

    check: whether to compare the networks with the headers of their weight files, which must exist then.
    """
    token = _without_weights.set("checked" if check else "unseen")
    try:
        yield
    finally:
        _without_weights.reset(token)


def weightless() -> bool:
    """Tell whether the caller is in a `without_weights` block."""
    return _without_weights.get() is not None


def _skeleton(kind: Any, folder: Path, dtype: torch.dtype) -> Any:
    with torch.device("meta"), quiet():
        if issubclass(kind, PreTrainedModel):
            network = kind(kind.config_class.from_pretrained(folder, local_files_only=True))
        else:
            network = kind.from_config(kind.load_config(folder))
        cast(network, dtype)
        return network.eval().requires_grad_(False)


def cast(network: Any, dtype: torch.dtype) -> None:
    """Cast a network's weights in place to what they are when it is loaded in `dtype`.

    diffusers keeps some of some networks in float32; it has no public name for them.
    """
    network.to(dtype)
    kept = getattr(network, "_keep_in_fp32_modules", None) if isinstance(network, ModelMixin) else None
    for name, module in network.named_modules():
        if name.rpartition(".")[2] in (kept or ()):
            module.float()


def load_scheduler(folder: Path) -> Any:
    """Load the pipeline's scheduler as the diffusers class that it names, which reads its betas. Raises ModelError."""
    nested, flat = folder / "scheduler" / SCHEDULER, folder / SCHEDULER
    path = flat if flat.is_file() and not nested.parent.is_dir() else nested
    if not path.exists():
        raise ModelError(f"{folder} has no scheduler/{path.name}; expected the scheduler of the network's training")
    config = read_settings(path, folder)
    name = config.get("_class_name")
    kind: Any = getattr(diffusers, str(name), None)
    is_scheduler = isinstance(kind, type) and issubclass(kind, SchedulerMixin)
    if not is_scheduler:
        raise ModelError(
            f"{path}: _class_name={name!r} is not a scheduler of diffusers {diffusers.__version__}; {AGAIN}"
        )
    # diffusers keeps keys of the class that the file was converted from, and they mean nothing to this one.
    known = inspect.signature(kind).parameters
    with loading(path, kind.__name__):
        return kind.from_config({key: value for key, value in config.items() if key in known})


def variance_preserving(scheduler: Any) -> dict[str, Any]:
    """Return the fields of a DiffusionModel that follow from a DDPM-like scheduler. Raises ModelError."""
    config, name = scheduler.config, type(scheduler).__name__
    if not hasattr(scheduler, "alphas_cumprod"):
        raise ModelError(f"{name} has no alphas_cumprod; expected a DDPM-like scheduler (variance preserving)")
    if config.prediction_type not in PREDICTIONS:
        raise ModelError(
            f"{name} has prediction_type={config.prediction_type!r}: expected one of {', '.join(PREDICTIONS)}; "
            "set it in scheduler_config.json"
        )
    if config.get("thresholding", False):
        raise ModelError(f"{name} has thresholding=true, which is not supported; set it to false, or use clip_sample")
    alphas = scheduler.alphas_cumprod
    if config.prediction_type == "epsilon" and (config.get("rescale_betas_zero_snr", False) or alphas[-1] == 0):
        raise ModelError(
            "zero terminal SNR with prediction_type=epsilon: at alpha = 0 the noise does not determine x0; "
            "expected v_prediction or sample, or betas that are not rescaled"
        )
    process = VariancePreserving(alphas, final_alpha_cumprod=_final_alpha_cumprod(scheduler))
    clip = float(config.get("clip_sample_range", 1.0)) if config.get("clip_sample", False) else None
    return {"process": process, "prediction_type": config.prediction_type, "clip": clip, "scheduler": scheduler}


def _final_alpha_cumprod(scheduler: Any) -> float:
    """Return alphas_cumprod where sampling ends: 1, or alphas_cumprod[0] if the scheduler stops there."""
    if hasattr(scheduler, "final_alpha_cumprod"):  # DDIM and its relatives: set_alpha_to_one
        return float(scheduler.final_alpha_cumprod)
    stops = scheduler.config.get("final_sigmas_type", "zero") == "sigma_min"  # Euler and its relatives
    return float(scheduler.alphas_cumprod[0]) if stops else 1.0


def flow_matching(scheduler: Any, mu: tuple[float, float] | None = None) -> dict[str, Any]:
    """Return the fields of a DiffusionModel that follow from a flow-matching scheduler. Raises ModelError.

    Besides the scheduler that is for flows alone, diffusers' solvers for several processes are read where they have
    use_flow_sigmas. mu: numbers a, b of the family's rule mu = a + b N for an image of this size in N steps, which
    decides the shift where the scheduler has use_dynamic_shifting; None: the family has no such rule.
    """
    config, name = scheduler.config, type(scheduler).__name__
    solver = bool(config.get("use_flow_sigmas"))
    if not solver and not isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        raise ModelError(
            f"the scheduler is a {name}; expected a FlowMatchEulerDiscreteScheduler, or one with use_flow_sigmas=true"
        )
    if solver and config.prediction_type != "flow_prediction":
        raise ModelError(
            f"{name} has use_flow_sigmas=true and prediction_type={config.prediction_type!r}; expected flow_prediction"
        )
    for option in ("invert_sigmas", "thresholding", *(() if mu else ("use_dynamic_shifting",))):
        if config.get(option):
            raise ModelError(f"{name} has {option}={config[option]}, which is not supported; expected false or null")
    fixed = config.flow_shift if solver else config.shift
    shift, growth = _dynamic_shift(config, *mu) if mu and config.get("use_dynamic_shifting") else (fixed, 0.0)
    last = config.get("shift_terminal") or 0.0
    process = FlowMatching(scale=config.num_train_timesteps, shift=shift, growth=growth, last=last)
    return {"process": process, "prediction_type": "flow_prediction", "clip": None, "scheduler": scheduler}


def mu_by_tokens(scheduler: Any, tokens: int) -> tuple[float, float]:
    """Return `mu` of `flow_matching` by the scheduler's own line: linear in the tokens of an image, alike for all N."""
    c = scheduler.config
    slope = (c.max_shift - c.base_shift) / (c.max_image_seq_len - c.base_image_seq_len)
    return c.base_shift + slope * (tokens - c.base_image_seq_len), 0.0


def _dynamic_shift(config: Any, mu: float, growth: float) -> tuple[float, float]:
    """Return shift and growth of `FlowMatching` for mu + growth N: its exponential, or mu itself. Raises ModelError."""
    if config.get("time_shift_type", "exponential") == "exponential":
        return math.exp(mu), growth
    if growth:
        raise ModelError("time_shift_type=linear with a mu that depends on the steps; expected exponential")
    return mu, 0.0
