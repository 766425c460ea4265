"""The interface of a diffusion model: encode conditions, predict at a noise level, decode latents."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn import Module, ModuleDict, ModuleList

from redif_ray.checkpoint import weights_sha256
from redif_ray.diffusion.levels import Level, NoiseProcess
from redif_ray.diffusion.solvers import Predict
from redif_ray.diffusion.transfer import sent
from redif_ray.diffusion.transition import Prediction
from redif_ray.models.locate import ModelError as ModelError
from redif_ray.models.prediction import to_prediction
from redif_ray.types import Condition

Encoded = dict[str, Tensor]
SIZE_KEYS = "teacher.height and teacher.width (--height and --width of redif sample and redif evaluate)"


@dataclass(frozen=True, slots=True)
class OwnFamily:
    """The user's code that loaded a model.

    name: `file.py:load`, without its folder, or `package.module:load`. sha256: checksums of the files that define the
    loader and the model's class.
    """

    name: str
    sha256: tuple[str, ...]


@dataclass(eq=False, kw_only=True)
class DiffusionModel(ABC):
    """A denoising network of a diffusers pipeline with its noise process.

    The network stays in eval mode: dropout, and DiT's random dropping of labels, would draw from a global generator.
    The network may compute in 16 bits; latents, predictions and all terms of a policy's mean are float32.
    A family implements the four abstract methods.
    """

    network: Module  # a diffusers ModelMixin
    process: NoiseProcess
    prediction_type: str  # a key of prediction.CONVERSIONS
    clip: float | None  # bound to which |x0_hat| is clamped; None: no clamping
    latent_shape: tuple[int, ...]  # (C, H, W); (C,) until `at_size` is called where the config.json names no size
    image_shape: tuple[int, ...]  # likewise
    num_classes: int | None  # None: not conditional on a class
    component: str  # the network's folder in the pipeline
    index: dict[str, Any]  # the pipeline's model_index.json
    scheduler: Any  # the pipeline's diffusers scheduler, for its noise process; its `step` is never called

    size: tuple[int, int] | None = None  # (height, width) of images in pixels where it is not the config.json's own
    dtype: torch.dtype = torch.float32  # of the network's computation
    family: OwnFamily | None = None  # None: a family of this package

    takes_captions: ClassVar[bool] = False  # True: conditions are captions
    takes_pictures: ClassVar[bool] = False  # True: conditions are captions with a picture each
    timestep_argument: ClassVar[str] = "timestep"  # its name in the network's `forward`

    @property
    def config(self) -> Any:
        """The network's own configuration, as diffusers keeps it."""
        return self.network.config

    @property
    def embeds_guidance(self) -> bool:
        """The value is True where the network takes the guidance scale as an input, as `encoded["guidance"]`."""
        return False

    @property
    def class_names(self) -> dict[int, str]:
        """The names of classes that the pipeline's index gives, by number."""
        named = self.index.get("id2label")
        pairs = named.items() if isinstance(named, Mapping) else ()
        return {int(number): str(name) for number, name in pairs if str(number).isdecimal()}

    @property
    def parts(self) -> dict[str, Module]:
        """The loaded frozen networks beside the denoising one, by name: they encode conditions and decode latents."""
        return {}

    def parts_sha256(self, digest: Callable[[Path], str]) -> dict[str, str]:
        """Return checksums of all that decides what the parts do, loaded or not, by name. digest: sha256 of a file.

        A family that reads its parts from files and hashes these overrides the method; here the weights are hashed,
        and an outline without weights has no checksums.
        """
        parts = {name: part.state_dict() for name, part in self.parts.items()}
        if any(value.is_meta for weights in parts.values() for value in weights.values()):
            return {}
        return {name: weights_sha256(weights) for name, weights in parts.items()}

    def part_weights(self) -> list[Path]:
        """Return the files that hold the weights of the parts, where the family reads them from files."""
        return []

    def to(self, device: str | torch.device) -> Self:
        """Move every network that is loaded to `device`."""
        for network in (self.network, *self.parts.values()):
            network.to(device)
        return self

    def at_size(self, height: int, width: int) -> Self:
        """Return this model for images of `height` x `width` pixels, with the same networks.

        A family whose network takes other sizes than its own overrides this method, which refuses all other sizes.
        Raises ModelError for a size that the network does not take.
        """
        if (height, width) == self.image_shape[1:]:
            return self
        own = " x ".join(str(edge) for edge in self.image_shape[1:])
        raise ModelError(
            f"images of {height} x {width} pixels: this {type(self.network).__name__} makes images of {own} pixels "
            f"only; leave out {SIZE_KEYS}"
        )

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    def blocks(self) -> list[Module]:
        """Return the modules whose weights are gathered one module at a time when the network is sharded, outer first.

        All other weights are gathered for the length of a call. The blocks are the modules that diffusers never splits,
        or else the members of the network's outermost lists. A module inside a block that the network also calls from
        outside of the block must be in the list too.
        """
        names = getattr(self.network, "_no_split_modules", None) or ()  # diffusers has no public name for it
        return [m for m in self.network.modules() if type(m).__name__ in names] or list(_members(self.network))

    @abstractmethod
    def encode(self, conditions: Sequence[Condition]) -> Encoded:
        """Return tensors of B rows by name, on the network's device. Raises ModelError naming an invalid condition."""

    @abstractmethod
    def null_conditions(self, batch: int) -> Encoded:
        """Return the encoding of "no condition", `batch` rows. Raises ModelError if the network never learned one."""

    def check_guidance(self) -> None:
        """Raise ModelError if the network has no conditions to guide by."""
        self.null_conditions(1)

    @property
    def example(self) -> Condition:
        """A valid condition for `encode`."""
        return "a caption" if self.takes_captions else 0 if self.num_classes else None

    def cut_short(self, captions: Sequence[str]) -> list[str]:
        """Return the captions whose end the network does not see."""
        return []

    def unreadable(self, captions: Sequence[str]) -> list[str]:
        """Return the captions in which some characters mean nothing to the network."""
        return []

    def blank(self, batch: int) -> Encoded:
        """Return an encoding of `batch` rows with the shapes of `encode`, for callers that need only the shapes."""
        return self.encode([self.example] * batch)

    @abstractmethod
    def output(self, x: Tensor, timestep: Tensor, encoded: Encoded) -> Tensor:
        """Return the network's raw output for x [B, *latent_shape], in the shape of x. timestep: float64 [B]."""

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Return the images [B, *image_shape], float in [0, 1], of latents [B, *latent_shape]."""

    def images(self, latents: Tensor) -> Tensor:
        """Return the images [B, *image_shape], float in [0, 1], as `decode` does.

        Raises FloatingPointError where they are NaN, which a reward or a judge would be blamed for.
        """
        images = self.decode(latents)
        if not bool(torch.isfinite(images).all()):
            raise FloatingPointError(
                f"{type(self).__name__} decodes images that are not finite; check the weights of what decodes, or "
                "choose networks.precision=float32 or bfloat16, which overflow later than float16"
            )
        return images

    def encode_images(self, images: Tensor) -> Tensor:
        """Return the latents [B, *latent_shape] whose images these are, [B, *image_shape] in [0, 1], on `device`.

        Only methods that train on the teacher's noised images need it. Raises ModelError for a family without it.
        """
        raise ModelError(
            f"{type(self).__name__} has no encode_images, which turns images into latents for a method that trains on "
            "the teacher's images; add it to the family, or use another method"
        )

    def checkpoint_blocks(self) -> None:
        """Make the network keep few activations, and compute the others again in the backward pass.

        A family whose network then predicts otherwise overrides this method. Raises ValueError if it cannot.
        """
        self.network.enable_gradient_checkpointing()

    def call_network(self, x: Tensor | list[Tensor], timestep: Tensor, **conditions: Any) -> Any:
        """Call the network in `dtype`: weights that are kept in more bits are cast as autocast does.

        x: latents, or a list of those of each row. timestep: passed on without a cast, since 999 in bfloat16 would be
        1000.
        """
        weights = first_weight(self.network)
        x, conditions = _cast(x, weights.dtype), _cast(conditions, weights.dtype)
        conditions[self.timestep_argument] = timestep
        if weights.dtype == self.dtype:
            return self.network(x, **conditions)
        sharded = isinstance(weights, DTensor)  # a cached cast would outlive the gathered block
        with torch.autocast(timestep.device.type, self.dtype, cache_enabled=not sharded):
            return self.network(x, **conditions)

    def predict(self, x: Tensor, level: Level, encoded: Encoded, *, guidance: float = 1.0) -> Prediction:
        """Return x0_hat and eps_hat, float32, for x [B, *latent_shape] float32 at `level`, scalar or [B].

        guidance w: the output is `guided`, both halves in one call of 2B rows; w = 1 calls with B rows, and a network
        that embeds its guidance always does. Raises ModelError if the network has no conditions to guide by.
        """
        self._check(x, level, encoded)
        dtype = torch.float32 if x.device.type == "mps" else None  # it has no float64
        timestep = sent(level.timestep, x.device, dtype)
        timestep = timestep.expand(len(x))
        if self.embeds_guidance:
            scale = torch.full((len(x),), guidance, dtype=torch.float32, device=x.device)
            output = self.output(x, timestep, encoded | {"guidance": scale}).float()
        elif guidance == 1:
            output = self.output(x, timestep, encoded).float()
        else:
            both = stacked([encoded, self.null_conditions(len(x))])
            cond, uncond = self.output(torch.cat([x, x]), timestep.repeat(2), both).float().chunk(2)
            output = self.guided(cond, uncond, guidance)
        return to_prediction(self.prediction_type, output, x, level, self.clip)

    def guided(self, cond: Tensor, uncond: Tensor, guidance: float) -> Tensor:
        """Return uncond + w (cond - uncond), classifier-free guidance w (Ho & Salimans, arXiv 2207.12598).

        cond, uncond: outputs with and without the condition, float32 [B, *latent_shape]. A family whose pipeline
        combines them in another way overrides this method.
        """
        return uncond + guidance * (cond - uncond)

    def predictor(self, encoded: Encoded, guidance: float) -> Predict:
        """Return `predict` of x and level alone, for rows with the conditions `encoded`."""
        return partial(self.predict, encoded=encoded, guidance=guidance)

    def calls_per_step(self, guidance: float) -> int:
        """Return the number of network evaluations that one prediction of one image takes."""
        return 1 if guidance == 1 or self.embeds_guidance else 2

    def _check(self, x: Tensor, level: Level, encoded: Encoded) -> None:
        if tuple(x.shape[1:]) != self.latent_shape:
            raise ValueError(f"x has shape {list(x.shape)}; expected [B, {', '.join(map(str, self.latent_shape))}]")
        rows = {"level": level.timestep, **encoded} if level.timestep.ndim else encoded
        for name, value in rows.items():
            if len(value) != len(x):
                raise ValueError(f"{name} has {len(value)} rows, x has {len(x)}; expected one row for each row of x")


def repeated(encoded: Encoded, siblings: int) -> Encoded:
    """Return the encoded conditions of each row, given those of each group, which its siblings share."""
    return {name: value.repeat_interleave(siblings, 0) for name, value in encoded.items()}


def stacked(parts: Sequence[Encoded]) -> Encoded:
    """Return the rows of several encodings as one. Shorter states, along the second axis, are filled up with zeros.

    A family whose captions differ in length encodes a mask too, which is zero there.
    """
    return {name: torch.cat(_as_long([part[name] for part in parts])) for name in parts[0]}


def _as_long(rows: list[Tensor]) -> list[Tensor]:
    if rows[0].ndim == 1 or len({row.shape[1] for row in rows}) == 1:
        return rows
    longest = max(row.shape[1] for row in rows)
    return [torch.cat([row, row.new_zeros(len(row), longest - row.shape[1], *row.shape[2:])], 1) for row in rows]


def first_weight(network: Module) -> Tensor:
    """Return the first weight of a network that is not quantized, whose dtype is that of the others, too."""
    return next(p for p in network.parameters() if p.is_floating_point())


def _members(module: Module) -> Iterator[Module]:
    for child in module.children():
        if isinstance(child, ModuleList):
            yield from (m for m in child if not isinstance(m, ModuleList | ModuleDict))
        else:
            yield from _members(child)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    """Return floating tensors cast to `dtype`, also inside dicts and lists, and other values unchanged."""
    if isinstance(value, dict):
        return {name: _cast(v, dtype) for name, v in value.items()}
    if isinstance(value, list):
        return [_cast(v, dtype) for v in value]
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def is_finite(values: Tensor) -> bool:
    """Tell whether no value is NaN or infinite; this takes a twentieth of the time of `isfinite(values).all()`."""
    return not values.numel() or bool(torch.isfinite(torch.stack(torch.aminmax(values))).all())
