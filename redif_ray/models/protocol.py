"""What the rest of the package knows of a diffusion model: encode conditions, predict at a level, decode."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
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
from redif_ray.diffusion.transition import Prediction
from redif_ray.models.places import ModelError as ModelError
from redif_ray.models.prediction import to_prediction
from redif_ray.types import Condition

Encoded = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class OwnFamily:
    """Code of the user's that loaded a model. name: `file.py:load`, without its folder, or `package.module:load`;
    sha256: of the files that it and the model's class are written in.
    """

    name: str
    sha256: tuple[str, ...]


@dataclass(eq=False, kw_only=True)
class DiffusionModel(ABC):
    """A denoising network of a diffusers pipeline with its noise process.

    The network stays in eval mode: dropout, and DiT's random dropping of labels, would draw from a global generator.
    It may compute in 16 bits; latents, predictions and what a policy's mean is made of are float32.
    A family implements the four abstract methods.
    """

    network: Module  # a diffusers ModelMixin
    process: NoiseProcess
    prediction_type: str  # a key of prediction.CONVERSIONS
    clip: float | None  # x0_hat is clamped to +-clip; None: it is not
    latent_shape: tuple[int, ...]
    image_shape: tuple[int, ...]
    num_classes: int | None  # None: unconditional
    component: str  # the network's folder in the pipeline
    index: dict[str, Any]  # the pipeline's model_index.json
    scheduler: Any  # the pipeline's (diffusers), for its noise process; nothing here steps with it

    dtype: torch.dtype = torch.float32  # that the network computes in
    family: OwnFamily | None = None  # None: one of this package's

    takes_captions: ClassVar[bool] = False  # whether a condition is a text

    @property
    def config(self) -> Any:
        """The network's own configuration, as diffusers keeps it."""
        return self.network.config

    @property
    def parts(self) -> dict[str, Module]:
        """Frozen networks beside the denoising one that are loaded, by name: they encode conditions, decode latents."""
        return {}

    def parts_sha256(self, digest: Callable[[Path], str]) -> dict[str, str]:
        """Checksums of all that decides what the parts do, loaded or not, by name. digest: sha256 of a file."""
        return {name: weights_sha256(part.state_dict()) for name, part in self.parts.items()}

    def to(self, device: str | torch.device) -> Self:
        """Move every network that is loaded to `device`."""
        for network in (self.network, *self.parts.values()):
            network.to(device)
        return self

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    def blocks(self) -> list[Module]:
        """Parts of the network, outer ones first, that are gathered one at a time where it is sharded; the rest is for
        the length of a call. Those that diffusers never splits, else the members of its outermost lists.

        A network that reaches into a block from outside needs what it reaches for in this list too.
        """
        names = getattr(self.network, "_no_split_modules", None) or ()  # diffusers says it nowhere else
        return [m for m in self.network.modules() if type(m).__name__ in names] or list(_members(self.network))

    @abstractmethod
    def encode(self, conditions: Sequence[Condition]) -> Encoded:
        """Tensors of B rows by name, on the network's device. Raises ModelError naming a condition of no use to it."""

    @abstractmethod
    def null_conditions(self, batch: int) -> Encoded:
        """What `encode` gives for "no condition", `batch` rows. Raises ModelError if the network never learned one."""

    def check_guidance(self) -> None:
        """Raises ModelError where there is nothing to guide by."""
        self.null_conditions(1)

    @property
    def example(self) -> Condition:
        """A condition that `encode` takes."""
        return "a caption" if self.takes_captions else 0 if self.num_classes else None

    def cut_short(self, captions: Sequence[str]) -> list[str]:
        """Those that the network is not told to their end."""
        return []

    def blank(self, batch: int) -> Encoded:
        """Some encoding in the shapes of what `encode` gives, for whoever needs no more of it."""
        return self.encode([self.example] * batch)

    @abstractmethod
    def output(self, x: Tensor, timestep: Tensor, encoded: Encoded) -> Tensor:
        """The network's raw output for x [B, *latent_shape], in that shape. timestep: float64 [B]."""

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Images [B, *image_shape], float in [0, 1]."""

    def call_network(self, x: Tensor, timestep: Tensor, **conditions: Any) -> Any:
        """What the network answers, computed in `dtype`: weights that are kept in more bits are cast as autocast does.

        timestep: as it is; 999 in bfloat16 would be 1000.
        """
        weights = next(self.network.parameters())
        x, conditions = x.to(weights.dtype), _cast(conditions, weights.dtype)
        if weights.dtype == self.dtype:
            return self.network(x, timestep=timestep, **conditions)
        shared = isinstance(weights, DTensor)  # a cast that is kept would outlive the block that was gathered
        with torch.autocast(x.device.type, self.dtype, cache_enabled=not shared):
            return self.network(x, timestep=timestep, **conditions)

    def predict(self, x: Tensor, level: Level, encoded: Encoded, *, guidance: float = 1.0) -> Prediction:
        """x0_hat and eps_hat, float32, of x [B, *latent_shape] float32 at `level`, scalar or [B].

        guidance w: output = uncond + w (cond - uncond) (Ho & Salimans, arXiv 2207.12598), both halves in one call of 2B
        rows; w = 1 calls with B rows. Raises ModelError where there is nothing to guide by.
        """
        self._check(x, level, encoded)
        timestep = level.timestep.to(x.device).expand(len(x))
        if guidance == 1:
            output = self.output(x, timestep, encoded).float()
        else:
            null = self.null_conditions(len(x))
            both = {name: torch.cat([encoded[name], null[name]]) for name in encoded}
            cond, uncond = self.output(torch.cat([x, x]), timestep.repeat(2), both).float().chunk(2)
            output = uncond + guidance * (cond - uncond)
        return to_prediction(self.prediction_type, output, x, level, self.clip)

    def predictor(self, encoded: Encoded, guidance: float) -> Predict:
        """Return `predict` of x and level alone, for rows with the conditions `encoded`."""
        return partial(self.predict, encoded=encoded, guidance=guidance)

    def calls_per_step(self, guidance: float) -> int:
        """Network evaluations of one image in one prediction."""
        return 1 if guidance == 1 else 2

    def _check(self, x: Tensor, level: Level, encoded: Encoded) -> None:
        if tuple(x.shape[1:]) != self.latent_shape:
            raise ValueError(f"x has shape {list(x.shape)}; expected [B, {', '.join(map(str, self.latent_shape))}]")
        rows = {"level": level.timestep, **encoded} if level.timestep.ndim else encoded
        for name, value in rows.items():
            if len(value) != len(x):
                raise ValueError(f"{name} has {len(value)} rows, x has {len(x)}; expected one a row of x")


def repeated(encoded: Encoded, siblings: int) -> Encoded:
    """Return the conditions of each row, from those of each group: siblings share them."""
    return {name: value.repeat_interleave(siblings, 0) for name, value in encoded.items()}


def _members(module: Module) -> Iterator[Module]:
    for child in module.children():
        if isinstance(child, ModuleList):
            yield from (m for m in child if not isinstance(m, ModuleList | ModuleDict))
        else:
            yield from _members(child)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    """Floating tensors in `dtype`, those in dicts too."""
    if isinstance(value, dict):
        return {name: _cast(v, dtype) for name, v in value.items()}
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value
