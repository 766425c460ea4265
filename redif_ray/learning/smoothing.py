"""The gradient of a smoothed reward at an image, estimated from scores alone.

    J(x) = E R(x + S sqrt(D) v),  v uniform in the unit ball of R^D
    grad J(x) = E z (R(x + S z) - R(x - S z)) / (2 S),  z uniform on the sphere of radius sqrt(D)

(Flaxman et al., arXiv cs/0408007.) This is REINFORCE for the action x + S z with the score of its mirror image as the
baseline. The H directions of a group are orthogonal, z_i = sqrt(D) q_i, which lowers the variance (Choromanski et al.,
arXiv 1804.02395) and leaves each direction uniform on the sphere, so the mean over them is unbiased.

Its cosine with the gradient is sqrt(H / D), little where scores are few. A guess of the gradient can be the first
direction. The estimate is then the projection of the gradient on the span of the directions,

    sum_i q_i (R(x + S z_i) - R(x - S z_i)) / (2 S sqrt(D)),

which is biased towards the guess, and far closer to the gradient if the guess is good.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from redif_ray.diffusion import noise
from redif_ray.diffusion.noise import Stream


def directions(
    group: int, count: int, shape: Sequence[int], *, seed: int, round: int, guess: Tensor | None = None
) -> Tensor:
    """Return `count` orthogonal directions of a group in a round, [count, *shape] float32, each of length sqrt(D).

    guess: along which the first of them lies, [*shape]; None, and a guess of 0: all are drawn.
    Raises ValueError for more directions than the D dimensions of a latent.
    """
    size = math.prod(shape)
    if not 1 <= count <= size:
        raise ValueError(f"{count} directions in {size} dimensions; expected 1 to {size}")
    drawn = noise.normal(size * count, Stream.DIRECTION, seed=seed, round=round, group=group)
    rows = drawn.astype(np.float64).reshape(count, size)
    if guess is not None and guess.any():
        rows[0] = guess.double().cpu().numpy().ravel()
    frame, _ = np.linalg.qr(rows.T)
    return torch.from_numpy((math.sqrt(size) * frame.T).astype(np.float32)).reshape(count, *shape)


def mirrored(x: Tensor, z: Tensor, std: float) -> Tensor:
    """Return the images whose scores `smoothed_gradient` takes, [2 H, *latent]: x + S z_i, then x - S z_i.

    x: [*latent]. z: [H, *latent], from `directions`. std: S, above 0.
    """
    return torch.cat([x + std * z, x - std * z])


def smoothed_gradient(scores: Tensor, z: Tensor, std: float, *, guessed: bool = False) -> Tensor:
    """Return the estimate of grad J(x), [*latent], from the scores [2 H] of the `mirrored` images.

    guessed: whether the first direction was a guess, so that the estimate is the projection on the directions.
    """
    plus, minus = scores.to(z).chunk(2)
    slopes = (plus - minus) / (2 * std)
    return torch.tensordot(slopes, z, dims=1) / (z[0].numel() if guessed else len(z))
