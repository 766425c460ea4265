"""Pretrained encoders from a local folder or a hub: safetensors only, frozen, float32."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn import Module

from redif_ray.checkpoint import weights_sha256
from redif_ray.data.targets import content_hash
from redif_ray.errors import in_words
from redif_ray.models.foreign import check_part, is_name, loading, read_json, read_settings
from redif_ray.models.protocol import ModelError
from redif_ray.rewards.preparation import Preparation, read_preparation
from redif_ray.rewards.term import RewardError
from redif_ray.rewards.weight_file import check_finite, load_weights

FILE = "model.safetensors"
FOLDER = "a folder that save_pretrained wrote with safetensors"
SHIPPED = Path(__file__).parents[1] / "assets" / "encoders"
PREPROCESSOR, PROCESSOR = "preprocessor_config.json", "processor_config.json"  # of transformers 4 and 5


class ImageEncoder:
    """A frozen network and the preparation of its images.

    kind: name of the features, part of `identity`. forward: function from prepared images [b, 3, h, w] to features
        [b, ...].
    """

    def __init__(
        self, kind: str, network: Module, preparation: Preparation, forward: Callable[[Tensor], Tensor]
    ) -> None:
        self.kind, self.network = kind, network.eval().requires_grad_(False)
        self.preparation, self.forward, self.batch = preparation, forward, 1 << 30

    @cached_property
    def identity(self) -> str:
        """Return a hash of everything that decides an image's features: kind, preparation and weights."""
        return content_hash([self.kind, repr(self.preparation), weights_sha256(self.network.state_dict())])

    def at_most(self, batch: int) -> ImageEncoder:
        """Limit a forward pass to `batch` images and return the encoder; of terms that share it the least counts."""
        self.batch = min(self.batch, batch)
        return self

    def features(self, images: Tensor) -> Tensor:
        """Return features [B, ...] of images [B, 1 or 3, H, W] in [0, 1], differentiable, in the network's dtype."""
        images = images.to(next(self.network.parameters()).dtype)
        return torch.cat([self.forward(self.preparation(rows)) for rows in images.split(self.batch)])


def find_model(model: str, option: str = "model") -> str:
    """Return the absolute path of a folder or shipped model, or a hub id unchanged. Raises `RewardError` otherwise.

    A hub id is org/name, or org/name@revision. option: that names it, for the message.
    """
    path = Path(model).expanduser()
    for folder in (path, SHIPPED / model):
        if model and folder.is_dir():
            return str(folder.resolve())
    if path.is_absolute() or model.startswith((".", "~")) or model.partition("@")[0].count("/") > 1 or not model:
        raise RewardError(f"{option}={model!r}: no such folder; expected one that save_pretrained wrote, or a hub id")
    return model


def pinned(model: str) -> str:
    """Return a hub id with the commit that it means now, and a folder or a shipped model unchanged.

    Raises `RewardError`, also for a hub id that cannot be found.
    """
    found = find_model(model)
    if is_local(found):
        return model
    name, revision = at_hub(found)
    if revision is not None and re.fullmatch(r"[0-9a-f]{40}", revision):
        return model
    with _loading(found, "config.json"):
        return f"{name}@{_commit(name, revision)}"


def _commit(name: str, revision: str | None) -> str:
    """Return the commit that a hub's revision means, or meant when its files were fetched if the hub does not answer.

    The hub is asked once: its client would ask for a file again and again, for 20 s.
    """
    import huggingface_hub

    try:
        return str(huggingface_hub.model_info(name, revision=revision, timeout=10).sha)
    except Exception:  # the hub's client raises all kinds
        for file in ("config.json", FILE):  # a reward's weights alone have no configuration
            kept = huggingface_hub.try_to_load_from_cache(name, file, revision=revision or "main")
            if isinstance(kept, str):
                return Path(kept).parent.name
        raise


def at_hub(model: str) -> tuple[str, str | None]:
    """Return the name and the revision of a hub id; of a folder its path and None."""
    if is_local(model):
        return model, None
    name, _, revision = model.partition("@")
    return name, revision or None


def hub_file(model: str, name: str, *, required: bool = True) -> Any:
    """Return the path of a model's file `name`, downloaded where the model is a hub id; None if it has none."""
    from transformers.utils import cached_file

    source, revision = at_hub(model)
    return cached_file(source, name, revision=revision, _raise_exceptions_for_missing_entries=required)


def load_config(model: str, kinds: Sequence[str], option: str = "model") -> Any:
    """Load transformers' configuration of a model. Raises `RewardError` unless its `model_type` is one of `kinds`.

    option: that names the model, for the message.
    """
    import transformers

    check_folder(model, option)
    source, revision = at_hub(model)
    with _loading(model, "config.json", option):
        config = transformers.AutoConfig.from_pretrained(
            source, revision=revision, trust_remote_code=False, local_files_only=is_local(model)
        )
    if config.model_type not in kinds:
        raise RewardError(f"{option}={model!r} is a {config.model_type}; expected one of: {', '.join(kinds)}")
    return config


def load_network(
    kind: str, model: str, config: Any, weights: Mapping[str, Tensor] | None = None, **options: Any
) -> Module:
    """Load a network of transformers' class `kind`, frozen, in eval mode.

    weights: the network's, by transformers' names; None: those in the model's file. options: of the class.
    Raises `RewardError` unless all its weights are there; there may be more, as CLIP's file holds two networks.
    """
    import transformers

    from redif_ray.models.logging import quiet

    source, revision = at_hub(model)
    with _loading(model, f"a {kind} from safetensors"), quiet():  # transformers logs every unused weight
        network, report = getattr(transformers, kind).from_pretrained(
            source if weights is None else None,
            revision=revision,
            config=config,
            state_dict=weights,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=is_local(model),
            output_loading_info=True,
            **options,
        )
    wrong = {name: sorted(map(str, keys)) for name, keys in report.items() if keys and name != "unexpected_keys"}
    if wrong:
        whose = "its config.json" if weights is None else f"this {kind}"
        raise RewardError(f"model={model!r}: the weights are not those of {whose}: {str(wrong)[:300]}")
    check_finite(network.state_dict(), f"model={model!r}")
    return network.eval().requires_grad_(False)


def load_number(model: str, name: str) -> float:
    """Return the weight `name`, a single number, of a model. Raises `RewardError` where its file holds none."""
    model = find_model(model)
    with _loading(model, f"the number {name} from safetensors"):
        index = hub_file(model, f"{FILE}.index.json", required=False)
        file = read_json(Path(index), Path(index).parent)["weight_map"][name] if index else FILE
        if not is_name(file):
            raise ModelError(f"its index names the file {file!r}")
        with safe_open(hub_file(model, file), framework="pt") as opened:
            return float(opened.get_tensor(name))


def load_preparation(model: str, default: Preparation) -> Preparation:
    """Read the preparation of a model's images from the `preprocessor_config.json` beside it.

    default: the preparation whose values stand in for absent keys. Raises `RewardError` without a valid file.
    """
    for name in (PREPROCESSOR, PROCESSOR):
        with _loading(model, name):
            file = hub_file(model, name, required=False)
        if file is not None:
            return read_preparation(_read(Path(file), nested=name == PROCESSOR), default, f"{model}: {name}")
    raise RewardError(
        f"model={model!r} has no {PREPROCESSOR}, which says the size, mean and std of its images; "
        "copy it from the source of the model"
    )


def _read(path: Path, *, nested: bool) -> Mapping[str, Any]:
    try:
        content = read_json(path, path.parent)
        config = content["image_processor"] if nested else content
        if not isinstance(config, dict):
            raise TypeError("not an object")
    except (ValueError, KeyError, TypeError) as error:
        raise RewardError(
            f"{path} is not an image processor's configuration ({in_words(error)}); copy it again"
        ) from error
    return config


def is_local(model: str) -> bool:
    """Tell whether `model`, as `find_model` returns it, is a folder; otherwise it is a hub id."""
    return Path(model).is_dir()


@contextmanager
def _loading(model: str, what: str, option: str = "model", expected: str = FOLDER) -> Iterator[None]:
    """Turn whatever transformers raises in this block into a RewardError that names the model and what it may be."""
    try:
        with loading(model):
            yield
    except ModelError as error:
        where = "the folder" if is_local(model) else "no such folder, so it was looked for on the hub"
        reason = in_words(error.__cause__ or error)
        raise RewardError(
            f"{option}={model!r} cannot be loaded ({what}; {where}): {reason}; give as `{option}` {expected}, "
            "or fetch it first: hf download ID --local-dir DIR"
        ) from error


def check_folder(model: str, option: str = "model") -> None:
    """Raise `RewardError` where `model` is a folder with a file that must not be read; see `models.foreign`."""
    if is_local(model):
        with _loading(model, "config.json", option):
            check_part(Path(model), Path(model))
            read_settings(Path(model) / "config.json", Path(model))


def load_file_of(model: str) -> dict[str, Tensor]:
    """Return the tensors of a model that is one safetensors file: the file `model`, or the one of a folder or hub id.

    Raises `RewardError`.
    """
    if Path(model).suffix == ".safetensors" or Path(model).expanduser().is_file():
        return load_weights("model", model)
    found = find_model(model)
    with _loading(found, FILE, expected="the .safetensors file"):
        file = hub_file(found, FILE)
    return load_weights("model", file)


def imported(package: str, pip: str) -> Any:
    """Import and return a package. Raises `RewardError` with the command `pip`, which installs it."""
    try:
        return importlib.import_module(package)
    except Exception as error:  # a package built for another torch may raise any exception
        raise RewardError(f"{package} cannot be imported ({type(error).__name__}: {error}); run {pip}") from error
