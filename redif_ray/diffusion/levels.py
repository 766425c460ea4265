"""Noise levels: x = alpha x0 + sigma eps, for every family of models.

A `Level` is one point of a noise process. A process gives (alpha, sigma) at each timestep of the network and the finite
range of its half log-SNR, lambda = ln(alpha / sigma) (Kingma et al., arXiv 2107.00630). All level arithmetic is
float64; values are cast to a latent's dtype when they multiply it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from redif_ray.diffusion.transfer import sent


@dataclass(frozen=True, slots=True)
class Level:
    """A noise level: `alpha`, `sigma` >= 0 and the network's `timestep`, float64, all of shape [] or [B]."""

    alpha: Tensor
    sigma: Tensor
    timestep: Tensor

    @property
    def half_log_snr(self) -> Tensor:
        """lambda = ln(alpha / sigma); +inf at the clean end, -inf at pure noise."""
        return torch.log(self.alpha) - torch.log(self.sigma)

    def __getitem__(self, index: int | slice | Tensor) -> Level:
        return Level(self.alpha[index], self.sigma[index], self.timestep[index])


def like(value: Tensor, x: Tensor) -> Tensor:
    """Return `value` ([] or [B]) in the dtype and on the device of `x` [B, ...], shaped to multiply it."""
    return sent(value, x.device, x.dtype).reshape(value.shape + (1,) * (x.ndim - value.ndim))


class NoiseProcess(Protocol):
    """A family's path from noise to data: (alpha, sigma) at each timestep."""

    @property
    def span(self) -> tuple[float, float]:
        """The half log-SNR of the noisiest and of the cleanest level at which the network is called; both finite."""
        ...

    def at(self, timestep: Tensor) -> Level:
        """Return the level at these timesteps. Raises ValueError for a timestep that the network does not accept."""
        ...

    def nearest(self, half_log_snr: Tensor) -> Level:
        """Return the level nearest to this half log-SNR among those with a timestep that the network accepts."""
        ...

    def between(self, half_log_snr: Tensor) -> Level:
        """Return the level at exactly this half log-SNR, its timestep interpolated; gradients flow through it."""
        ...

    def noisiest(self) -> Level:
        """Return the level where sampling starts; it is exact even if its half log-SNR is infinite."""
        ...

    def terminal(self) -> Level:
        """Return the level where sampling ends; the network is not called there."""
        ...


def _level(alpha: float, sigma: float, timestep: float) -> Level:
    return Level(*(torch.tensor(v, dtype=torch.float64) for v in (alpha, sigma, timestep)))


class VariancePreserving:
    """The discrete process of DDPM: alpha^2 = alphas_cumprod[t], sigma^2 = 1 - alpha^2, integer t in [0, T)."""

    def __init__(self, alphas_cumprod: Tensor, *, final_alpha_cumprod: float = 1.0) -> None:
        table = alphas_cumprod.to(torch.float64)
        if table.ndim != 1 or not bool((table[1:] < table[:-1]).all()) or table[0] >= 1 or table[-1] < 0:
            raise ValueError("alphas_cumprod: expected a vector that falls strictly within [0, 1)")
        self.alphas_cumprod = table
        self.final_alpha_cumprod = final_alpha_cumprod
        self._lambda = 0.5 * (torch.log(table) - torch.log1p(-table))

    @property
    def timesteps(self) -> int:
        return len(self.alphas_cumprod)

    @property
    def span(self) -> tuple[float, float]:
        first = self._lambda[-1] if self.alphas_cumprod[-1] > 0 else self._lambda[-2]
        return float(first), float(self._lambda[0])

    def at(self, timestep: Tensor) -> Level:
        index = timestep.to(torch.int64)
        if bool((index != timestep).any()) or bool((index < 0).any()) or bool((index >= self.timesteps).any()):
            raise ValueError(f"timestep {timestep.tolist()}: expected integers in [0, {self.timesteps})")
        value = self.alphas_cumprod[index]
        return Level(value.sqrt(), (1 - value).sqrt(), index.to(torch.float64))

    def nearest(self, half_log_snr: Tensor) -> Level:
        distance = (self._lambda - half_log_snr.to(torch.float64).unsqueeze(-1)).abs()
        return self.at(distance.argmin(-1).to(torch.float64))

    def between(self, half_log_snr: Tensor) -> Level:
        value = half_log_snr.to(torch.float64)
        after = torch.searchsorted(-self._lambda, -value.detach()).clamp(1, self.timesteps - 1)  # lambda falls with t
        left, right = self._lambda[after - 1], self._lambda[after]
        timestep = after - 1 + (left - value) / (left - right)
        return Level(torch.sigmoid(2 * value).sqrt(), torch.sigmoid(-2 * value).sqrt(), timestep)

    def noisiest(self) -> Level:
        return self.at(torch.tensor(self.timesteps - 1))

    def terminal(self) -> Level:
        final = self.final_alpha_cumprod
        return _level(math.sqrt(final), math.sqrt(1 - final), 0.0)


class VarianceExploding:
    """EDM (Karras et al., arXiv 2206.00364): alpha = 1, and sigma in [sigma_min, sigma_max] is the timestep."""

    def __init__(self, sigma_min: float = 0.002, sigma_max: float = 80.0) -> None:
        if not 0 < sigma_min < sigma_max:
            raise ValueError(f"sigma_min={sigma_min}, sigma_max={sigma_max}: expected 0 < sigma_min < sigma_max")
        self.sigma_min, self.sigma_max = sigma_min, sigma_max

    @property
    def span(self) -> tuple[float, float]:
        return -math.log(self.sigma_max), -math.log(self.sigma_min)

    def at(self, timestep: Tensor) -> Level:
        sigma = timestep.to(torch.float64)
        if bool((sigma <= 0).any()):
            raise ValueError(f"sigma {sigma.tolist()}: expected values above 0")
        return Level(torch.ones_like(sigma), sigma, sigma)

    def nearest(self, half_log_snr: Tensor) -> Level:
        return self.at(torch.exp(-half_log_snr.to(torch.float64)))

    between = nearest

    def noisiest(self) -> Level:
        return _level(1.0, self.sigma_max, self.sigma_max)

    def terminal(self) -> Level:
        return _level(1.0, 0.0, 0.0)


class FlowMatching:
    """Rectified flow (Liu et al., arXiv 2209.03003): alpha = 1 - sigma, timestep = `scale` sigma, sigma in (0, 1].

    shift, growth: a network for larger images was trained on noisier levels (Esser et al., arXiv 2403.03206, eq. 23);
    a uniform schedule of N levels is shifted alike, see `shifted`, by s = shift exp(growth N). last: sigma of the last
    of these N levels, to which they are stretched; 0: they are not stretched.
    """

    def __init__(
        self,
        *,
        scale: float = 1000.0,
        sigma_min: float = 1e-3,
        shift: float = 1.0,
        growth: float = 0.0,
        last: float = 0.0,
    ) -> None:
        if not 0 < sigma_min < 0.5:
            raise ValueError(f"sigma_min={sigma_min}: expected a value in (0, 0.5)")
        if not shift > 0:
            raise ValueError(f"shift={shift}: expected a value above 0")
        if not 0 <= last < 1:
            raise ValueError(f"last={last}: expected a value in [0, 1)")
        self.scale, self.sigma_min, self.shift = scale, sigma_min, shift
        self.growth, self.last = growth, last

    def shifted(self, u: Tensor) -> Tensor:
        """Return the sigmas s u / (1 + (s - 1) u) of N uniform levels u, float64 [N] from 1 down, stretched to `last`.

        One level alone is pure noise and cannot be stretched.
        """
        s = self.shift * math.exp(self.growth * len(u))
        sigma = s * u / (1 + (s - 1) * u)
        if not self.last or len(u) == 1:
            return sigma
        return 1 - (1 - sigma) * (1 - self.last) / (1 - sigma[-1])

    @property
    def span(self) -> tuple[float, float]:
        end = math.log((1 - self.sigma_min) / self.sigma_min)
        return -end, end

    def at(self, timestep: Tensor) -> Level:
        sigma = timestep.to(torch.float64) / self.scale
        if bool((sigma <= 0).any()) or bool((sigma > 1).any()):
            raise ValueError(f"timestep {timestep.tolist()}: expected values in (0, {self.scale:g}]")
        return Level(1 - sigma, sigma, timestep.to(torch.float64))

    def nearest(self, half_log_snr: Tensor) -> Level:
        return self.at(torch.sigmoid(-half_log_snr.to(torch.float64)) * self.scale)

    between = nearest

    def noisiest(self) -> Level:
        return _level(0.0, 1.0, self.scale)

    def terminal(self) -> Level:
        return _level(1.0, 0.0, 0.0)
