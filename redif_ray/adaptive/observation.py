"""The agent's observation of an image: coarse, cheap, the same for every family of models, float32 in [-10, 10].

pooled x0_hat, C x 4 x 4; pooled |change of x0_hat since the previous call|, C x 4 x 4;
mean, std and rms gradient of x0_hat (undecided parts are blurred), log10 rms of the change;
position in [0, 1] along half log-SNR; one-hot of the number of calls, 1 to `max_calls`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, one_hot

from redif_ray.adaptive.denoising import State, position
from redif_ray.diffusion.levels import NoiseProcess

BOUND = 10.0
LOGIT = 7.0  # bound of an action's logit, so that a fraction lies in (0.001, 0.999)
POOL = 4
SCALARS = 5
TINY = 1e-4  # rms below which a change counts as none


def size(channels: int, max_calls: int) -> int:
    """Return the length of an observation; its last `max_calls` entries are the one-hot of the number of calls."""
    return 2 * channels * POOL**2 + SCALARS + max_calls


def observe(process: NoiseProcess, state: State, max_calls: int) -> Tensor:
    """Return the observations of latents [B, C, H, W], [B, size] float32 on the CPU."""
    x0 = state.prediction.x0.float()
    change = x0 - state.before.float()
    slopes = torch.cat([x0.diff(dim=2).flatten(1), x0.diff(dim=3).flatten(1)], 1)
    scalars = [
        x0.flatten(1).mean(1),
        x0.flatten(1).std(1),
        _rms(slopes),
        torch.log10(_rms(change.flatten(1)) + TINY),
        position(process, state.level).to(x0),
    ]
    parts = [_pooled(x0), _pooled(change.abs()), torch.stack(scalars, 1)]
    calls = one_hot(state.calls - 1, max_calls).float()
    return torch.cat([torch.cat(parts, 1).clamp(-BOUND, BOUND).cpu(), calls.cpu()], 1)


def _pooled(x: Tensor) -> Tensor:
    return adaptive_avg_pool2d(x, POOL).flatten(1)


def _rms(x: Tensor) -> Tensor:
    return x.square().mean(1).sqrt()
