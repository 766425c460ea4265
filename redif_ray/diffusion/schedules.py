"""Step schedules: the N noise levels that a sampler visits before the terminal one.

A grid lives on half log-SNR, lambda = ln(alpha / sigma), as N + 1 points over the process's finite span; its last point
then becomes the terminal level and its first the noisiest one, exactly. A warp by logits z of the N increments d,

    lambda_i = lambda_0 + (lambda_N - lambda_0) cumsum(softmax(ln d + z))_i

is valid for any finite z; two numbers give z = tilt u + bow u^2 at the increments' midpoints u in (-1, 1).

The network may be called with another timestep than that of the integrated level (LD3, Tong et al., arXiv 2405.15506):
with few steps the noise in x is not exactly that of its level.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from redif_ray.diffusion.levels import FlowMatching, Level, NoiseProcess, VarianceExploding, VariancePreserving
from redif_ray.diffusion.transition import ExplorationKind, exploration_std

LAST_STEP_STD = 0.05  # for data of unit scale: above float32's noise in log_prob, below visible grain
SMALLEST_SHARE = 1e-6  # of an increment in the span: keeps levels apart in float64 under any logits
AYS = {  # sigma / alpha; Align Your Steps (Sabour et al., arXiv 2404.14507), the published ten-step tables
    "ays_sd15": (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029),
    "ays_sdxl": (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029),
    "ays_svd": (700.0, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002),
}


class Times(NamedTuple):
    """The timesteps of a schedule, [N], noisiest first; see `Schedule.network_timesteps`."""

    levels: tuple[float, ...]
    network_timesteps: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True)
class Schedule:
    """A step schedule. Raises ValueError unless half log-SNR rises strictly and is finite between the two ends.

    levels: levels of x, stacked [N + 1], from noise to data; the network is not called at the last, terminal level.
    network_timesteps: float64 [N], timesteps for the network's calls; None: those of `levels`. Indexing a schedule
    gives the levels with the timesteps for the network's calls.
    """

    levels: Level
    name: str
    network_timesteps: Tensor | None = None

    def __post_init__(self) -> None:
        lambdas, times = self.levels.half_log_snr.detach(), self.levels.timestep
        if lambdas.ndim != 1 or len(lambdas) < 2:
            raise ValueError(f"schedule {self.name}: levels of shape {list(lambdas.shape)}; expected [N + 1], N >= 1")
        for i in range(len(lambdas) - 1):
            if not lambdas[i] < lambdas[i + 1] or (i > 0 and not math.isfinite(lambdas[i])):
                raise ValueError(
                    f"schedule {self.name}: levels {i} and {i + 1} (timesteps {times[i]:g} and {times[i + 1]:g}) have "
                    f"half log-SNR {lambdas[i]:.6g} and {lambdas[i + 1]:.6g}; expected a strict rise"
                )
        if self.network_timesteps is not None and len(self.network_timesteps) != self.steps:
            count = len(self.network_timesteps)
            raise ValueError(f"schedule {self.name}: {count} network timesteps; expected {self.steps}")

    @property
    def steps(self) -> int:
        """The number N of levels at which the network is called."""
        return len(self.levels.timestep) - 1

    @property
    def times(self) -> Times:
        network_timesteps = None if self.network_timesteps is None else tuple(self.network_timesteps.tolist())
        return Times(tuple(self.levels.timestep[:-1].tolist()), network_timesteps)

    @property
    def called(self) -> Level:
        """The levels, with the timesteps for the network's calls."""
        if self.network_timesteps is None:
            return self.levels
        times = torch.cat([self.network_timesteps, self.levels.timestep[-1:]])
        return Level(self.levels.alpha, self.levels.sigma, times)

    def __getitem__(self, index: int | Tensor) -> Level:
        """Return the level at `index`, scalar or int64 [B], of that shape, with timesteps for the network's calls."""
        return self.called[index]

    def stds(self, eta: float, kind: ExplorationKind, last_step: bool) -> Tensor:
        """Return the exploration std S of each transition i -> i + 1, float64 [N].

        The last S is 0 unless `last_step`. A terminal level without noise has no sigma to take S from; there S is
        eta * LAST_STEP_STD and the mean stays x0_hat, so that training and deployment agree in the mean.
        """
        n = self.steps
        stds = exploration_std(self.levels[torch.arange(n)], self.levels[torch.arange(1, n + 1)], eta=eta, kind=kind)
        if not last_step:
            stds[-1] = 0
        elif self.levels.sigma[-1] == 0:
            stds[-1] = eta * LAST_STEP_STD
        return stds


def build(process: NoiseProcess, steps: int, name: str, *, tilt: float = 0.0, bow: float = 0.0) -> Schedule:
    """Return the named schedule with N = `steps`, warped by (tilt, bow). Raises ValueError if the process lacks it."""
    if name not in NAMES:
        raise ValueError(f"schedule {name!r} is unknown; expected one of {', '.join(NAMES)}")
    if steps < 1 or (isinstance(process, VariancePreserving) and steps > process.timesteps):
        raise ValueError(f"schedule {name} with steps={steps}: expected at least 1 and at most the process's timesteps")
    base = _schedule(process, _TIMESTEPS[name](process, steps), name)
    if tilt == bow == 0:
        return base
    u = (2 * torch.arange(steps, dtype=torch.float64) + 1) / steps - 1
    return warped(process, base, tilt * u + bow * u**2)


def explicit(
    process: NoiseProcess,
    timesteps: Sequence[float],
    name: str = "explicit",
    network_timesteps: Sequence[float] | None = None,
) -> Schedule:
    """Return the schedule of these timesteps, noisiest first, and the terminal level.

    network_timesteps: see `Schedule`. Raises ValueError for a timestep that the network does not accept.
    """
    schedule = _schedule(process, torch.tensor(timesteps, dtype=torch.float64), name)
    if network_timesteps is None:
        return schedule
    return Schedule(schedule.levels, name, process.at(torch.tensor(network_timesteps, dtype=torch.float64)).timestep)


def shifted(process: NoiseProcess, base: Schedule, shifts: Tensor) -> Schedule:
    """Return `base` with network timesteps shifted by `shifts` [N], in (-1, 1), of the half log-SNR to the neighbour.

    A shift above 0 goes towards the next, cleaner level. The first level has no noisier neighbour and cannot go there.
    """
    own, grid = base.levels.timestep[:-1], base.levels.half_log_snr.clamp(*process.span)
    moves = shift_ways(grid, shifts)
    network_timesteps = torch.where(moves == 0, own, process.nearest(grid[:-1] + moves).timestep)
    return Schedule(base.levels, f"{base.name}, shifted", network_timesteps)


def named(process: NoiseProcess, steps: int) -> dict[str, Schedule]:
    """Return each named schedule that the process has at N = `steps`; names with the same levels give one."""
    unique: dict[tuple[float, ...], Schedule] = {}
    for name in NAMES:
        try:
            schedule = build(process, steps, name)
        except ValueError:  # the schedule is for another noise process
            continue
        unique.setdefault(tuple(schedule.levels.timestep.tolist()), schedule)
    return {schedule.name: schedule for schedule in unique.values()}


def warp(half_log_snr: Tensor, logits: Tensor, floor: float = SMALLEST_SHARE) -> Tensor:
    """Reweight the increments of the grid `half_log_snr` [N + 1] by exp(logits), logits [N]; returns float64 [N + 1].

    Both ends stay, and zero logits return the grid itself. floor: the smallest share of the span that an increment
    keeps. Raises ValueError on logits that are not finite and on a grid that is not finite or falls.
    """
    grid, logits = half_log_snr.to(torch.float64), logits.to(torch.float64)
    if not bool(torch.isfinite(grid).all()) or bool((grid.diff() < 0).any()):
        raise ValueError(f"half log-SNR {grid.tolist()}: expected a finite grid that rises, noisiest first")
    if logits.shape != (len(grid) - 1,) or not bool(torch.isfinite(logits).all()):
        raise ValueError(f"logits {logits.tolist()}: expected {len(grid) - 1} finite numbers, one an increment")
    if not bool(logits.any()):
        return grid
    share = torch.softmax(torch.log(grid.diff()) + logits, 0).clamp(min=floor)
    inner = grid[0] + (grid[-1] - grid[0]) * torch.cumsum(share / share.sum(), 0)[:-1]
    return torch.cat([grid[:1], inner, grid[-1:]])


def warped(process: NoiseProcess, base: Schedule, logits: Tensor, floor: float = SMALLEST_SHARE) -> Schedule:
    """Return `base` with its half log-SNR warped by `logits` [N]; both ends stay exact. floor: see `warp`."""
    grid = warp(base.levels.half_log_snr.clamp(*process.span), logits, floor)
    inner = process.nearest(grid[1:-1]).timestep
    return _schedule(process, _apart(process, torch.cat([base.levels.timestep[:1], inner])), f"{base.name}, warped")


def shift_ways(half_log_snr: Tensor, shifts: Tensor) -> Tensor:
    """Return the half log-SNR by which `shifts` [N] move each point but the last of the grid `half_log_snr` [N + 1]."""
    ahead = half_log_snr.diff()
    return shifts * torch.where(shifts > 0, ahead, torch.cat([ahead.new_zeros(1), ahead[:-1]]))


def sub_schedule(process: NoiseProcess, t: Level, s: Level, std: Tensor, substeps: int) -> Schedule:
    """Return a schedule of at most M = `substeps` steps from t to the level d whose noise the mean of x_s carries.

    Level d has sigma_d / alpha_d = sqrt(sigma_s^2 - S^2) / alpha_s; the schedule has it as (alpha_s, sqrt(sigma_s^2 -
    S^2)), units in which x_d is already multiplied by alpha_s / alpha_d. Levels lie uniformly in timestep, or in half
    log-SNR for VE, whose timestep is sigma. A discrete process with fewer timesteps on the way gives fewer levels.
    """
    if substeps < 1:
        raise ValueError(f"substeps={substeps}: expected at least 1")
    d = Level(s.alpha, torch.sqrt((s.sigma**2 - std**2).clamp(min=0)), s.timestep)
    part = torch.arange(substeps, dtype=torch.float64) / substeps
    if isinstance(process, VarianceExploding):
        end = d.half_log_snr.clamp(max=process.span[1])
        times = process.nearest(torch.lerp(t.half_log_snr.expand(substeps), end.expand(substeps), part)).timestep
    else:
        discrete = isinstance(process, VariancePreserving)
        clean = d.half_log_snr > process.span[1] if discrete else d.sigma == 0
        none = torch.tensor(-1.0 if discrete else 0.0, dtype=torch.float64)
        end = none if clean else process.nearest(d.half_log_snr).timestep
        times = t.timestep + (end - t.timestep) * part
        times = torch.unique(torch.ceil(times)).flip(0) if discrete else times  # ceil: never past d
    return _schedule(process, times, "jump", d)


def uniform_trailing(process: NoiseProcess, steps: int) -> Tensor:
    """Return t = round(T - i T / N) - 1 (arXiv 2305.08891), or for flow u = 1 - i / N, shifted; float64 [N]."""
    part = torch.arange(steps, dtype=torch.float64) / steps
    if isinstance(process, VariancePreserving):
        return torch.round(process.timesteps * (1 - part)) - 1
    if isinstance(process, FlowMatching):
        return process.scale * process.shifted(1 - part)
    raise ValueError(
        "uniform_trailing: the timestep of a VE process is sigma, and even steps in it spend nearly all on noise; "
        "use karras or log_snr_linear"
    )


def uniform_leading(process: NoiseProcess, steps: int) -> Tensor:
    """Return t = (N - 1 - i) floor(T / N) + 1, diffusers' default, which starts below the noisiest level."""
    if not isinstance(process, VariancePreserving):
        raise ValueError("uniform_leading exists for DDPM's discrete timesteps only; use uniform_trailing or karras")
    return torch.arange(steps - 1, -1, -1, dtype=torch.float64) * (process.timesteps // steps) + 1


def flow_default(process: NoiseProcess, steps: int) -> Tensor:
    """Return the levels of FlowMatchEulerDiscreteScheduler where a pipeline gives none, as Stable Diffusion 3's does.

    They are evenly spaced from 1 to the shifted 1 / scale, both included, and then shifted again; float64 [N].
    """
    if not isinstance(process, FlowMatching):
        raise ValueError("flow_default exists for flow matching only; use uniform_trailing or karras")
    least = process.shift / (process.scale + process.shift - 1)
    return process.scale * process.shifted(torch.linspace(1, least, steps, dtype=torch.float64))


def _karras(process: NoiseProcess, steps: int) -> Tensor:
    """Return levels uniform in (sigma / alpha)^(1/7) (Karras et al., arXiv 2206.00364, eq. 5 with N + 1 points)."""
    high, low = (math.exp(-end / 7) for end in process.span)
    return _timesteps(process, -7 * torch.log(torch.linspace(high, low, steps + 1, dtype=torch.float64)), "karras")


def _log_snr_linear(process: NoiseProcess, steps: int) -> Tensor:
    """Return levels uniform in half log-SNR, which are exponential in sigma / alpha."""
    return _timesteps(process, torch.linspace(*process.span, steps + 1, dtype=torch.float64), "log_snr_linear")


def _align_your_steps(name: str) -> Callable[[NoiseProcess, int], Tensor]:
    def timesteps(process: NoiseProcess, steps: int) -> Tensor:
        """Interpolate the table linearly in ln(sigma / alpha) to N + 1 points."""
        table = -torch.tensor(AYS[name], dtype=torch.float64).log()
        place = torch.linspace(0, len(table) - 1, steps + 1, dtype=torch.float64)
        left = place.long().clamp(max=len(table) - 2)
        return _timesteps(process, torch.lerp(table[left], table[left + 1], place - left), name)

    return timesteps


def _timesteps(process: NoiseProcess, grid: Tensor, name: str) -> Tensor:
    """Return timesteps [N] of a half log-SNR grid [N + 1]: the noisiest, then those nearest to the inner points."""
    inner, (low, high) = grid[1:-1], process.span
    if bool((inner <= low).any()) or bool((inner >= high).any()):
        raise ValueError(
            f"schedule {name} with steps={len(grid) - 1}: half log-SNR {inner.min():.3f} to {inner.max():.3f} exceeds "
            f"the process's {low:.3f} to {high:.3f}; it was made for another process, choose another schedule"
        )
    return _apart(process, torch.cat([process.noisiest().timestep[None], process.nearest(inner).timestep]))


def _apart(process: NoiseProcess, timesteps: Tensor) -> Tensor:
    """Move levels that round to the same discrete timestep as an earlier one on to the next free timestep."""
    if not isinstance(process, VariancePreserving):
        return timesteps
    i = torch.arange(len(timesteps), dtype=torch.float64)
    room = torch.maximum(timesteps, len(timesteps) - 1 - i)  # each level leaves one timestep for each later level
    return torch.cummin(room + i, 0).values - i


def _schedule(process: NoiseProcess, timesteps: Tensor, name: str, end: Level | None = None) -> Schedule:
    levels, end = process.at(timesteps), end or process.terminal()
    return Schedule(
        Level(
            *(
                torch.cat([getattr(levels, field), getattr(end, field)[None]])
                for field in ("alpha", "sigma", "timestep")
            )
        ),
        name,
    )


_TIMESTEPS: dict[str, Callable[[NoiseProcess, int], Tensor]] = {
    "uniform_trailing": uniform_trailing,
    "uniform_leading": uniform_leading,
    "flow_default": flow_default,
    "karras": _karras,
    "log_snr_linear": _log_snr_linear,
    "exponential": _log_snr_linear,
    **{name: _align_your_steps(name) for name in AYS},
}
NAMES = tuple(_TIMESTEPS)
