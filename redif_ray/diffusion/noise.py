"""Every random number of a run, as a pure function of integer ids.

Counter-based Philox (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) followed by our own
Box-Muller transform in float64. `torch.manual_seed` keeps 32 bits of a seed only and the bits of `torch.randn` depend
on the CPU's vector width and on the batch; these numbers depend on nothing but their ids and their count, so any worker
can draw any sample, twice, in any batch, and get the same bytes. A GPU's normals may differ from a CPU's by one unit in
the last place (`device_noise.py`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import IntEnum
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:  # torch takes seconds to import, and processes that only draw ids need no tensor
    import torch


class Stream(IntEnum):
    """Disjoint sources of randomness. Values are part of every stored result: append, never renumber."""

    TRAIN = 0  # x_T of training groups
    VALIDATION = 1  # x_T that select the best checkpoint
    HELD_OUT = 2  # x_T of the reported evaluation
    SEARCH = 3  # x_T on which schedules and solvers are chosen
    EXPLORATION = 4  # the policy's z
    MINIBATCH = 5  # order of (trajectory, step) pairs
    CONDITION = 6  # draws of conditions
    RESAMPLE = 7  # bootstrap and KID subsets
    TEACHER_DATA = 8  # train-teacher: order of images
    TEACHER_LEVEL = 9  # train-teacher: noise levels
    TEACHER_NOISE = 10  # train-teacher: noise on images
    TEACHER_DROPOUT = 11  # train-teacher: label dropout
    CALIBRATION = 12  # x_T of the reward calibration
    REFERENCE = 13  # x_T of the teacher's images that are the reference of a judge without real images
    JUDGE = 14  # weights of random features
    DISCRIMINATOR = 15  # weights of the learned reward's network
    PROPOSAL = 16  # proposals of a search or sweep
    DESCENT = 17  # order of x_T in the fit of a schedule by gradient
    ADAPTIVE = 18  # x_T on which the adaptive schedule agent is trained
    EPISODE = 19  # choice among those x_T for the agent's next episode
    DIRECTION = 20  # directions in which scores around an image are taken
    MATCHING = 21  # noise and noise levels of distribution matching
    NOISED = 22  # noise and steps of a regression on the teacher's noised images
    DIVERSITY = 23  # x_T of images of one condition that are compared with each other


def bits(
    count: int, stream: Stream, *, seed: int, round: int = 0, group: int = 0, sibling: int = 0, step: int = 0
) -> np.ndarray:
    """Return `count` uniform uint64 words for these ids, each in [0, 2^64), but the round in [0, 2^32)."""
    key, counter = ids_as_words(stream, seed=seed, round=round, group=group, sibling=sibling, step=step)
    return np.random.Philox(key=np.array(key, dtype=np.uint64), counter=np.array(counter, dtype=np.uint64)).random_raw(
        count
    )


def ids_as_words(
    stream: int, *, seed: int, round: int = 0, group: int = 0, sibling: int = 0, step: int = 0
) -> tuple[list[int], list[int]]:
    """Return Philox's key, two words, and its counter, four, before the first draw. Raises ValueError."""
    for name, value, limit in (
        ("round", round, 32),
        ("sibling", sibling, 64),
        ("step", step, 64),
        ("group", group, 64),
        ("seed", seed, 64),
    ):
        if not 0 <= value < 1 << limit:
            raise ValueError(f"noise id {name}={value} is outside [0, 2^{limit})")
    return [seed, int(stream) << 32 | round], [0, step, sibling, group]


def uniform(count: int, stream: Stream, **ids: int) -> np.ndarray:
    """Return `count` uniform float64 in [0, 1), with 53 random bits each."""
    return (bits(count, stream, **ids) >> np.uint64(11)) * 2.0**-53


def normal(count: int, stream: Stream, **ids: int) -> np.ndarray:
    """Return `count` standard normals, float32, by Box-Muller: sqrt(-2 ln u1) (cos, sin)(2 pi u2)."""
    pairs = (count + 1) // 2
    u = uniform(2 * pairs, stream, **ids)
    radius = np.sqrt(-2.0 * np.log(1.0 - u[:pairs]))  # 1 - u lies in (0, 1]
    angle = 2.0 * np.pi * u[pairs:]
    z = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])
    return z[:count].astype(np.float32)


def permutation(count: int, stream: Stream, **ids: int) -> np.ndarray:
    """Return a permutation of range(count), int64."""
    return np.argsort(bits(count, stream, **ids), kind="stable")


def initial_noise(
    groups: Sequence[int],
    shape: Sequence[int],
    *,
    seed: int,
    stream: Stream = Stream.TRAIN,
    device: str | torch.device = "cpu",
) -> torch.Tensor:
    """Return unit noise of each group, [len(groups), *shape] float32, which is the same in every round."""
    return rows(groups, [0] * len(groups), shape, stream, device, seed=seed)


def exploration_noise(
    groups: Sequence[int],
    siblings: Sequence[int],
    shape: Sequence[int],
    *,
    seed: int,
    round: int,
    step: int,
    antithetic: bool = False,
    device: str | torch.device = "cpu",
) -> torch.Tensor:
    """Return the policy's z for each (group, sibling) row, [rows, *shape] float32.

    antithetic: sibling 2k + 1 uses minus the noise of sibling 2k.
    """
    import torch

    from redif_ray.diffusion.transfer import picked, sent

    pairs = [(group, k - k % 2 if antithetic else k) for group, k in zip(groups, siblings, strict=True)]
    places = {pair: place for place, pair in enumerate(dict.fromkeys(pairs))}
    drawn = [group for group, _ in places], [k for _, k in places]
    z = rows(*drawn, shape, Stream.EXPLORATION, device, seed=seed, round=round, step=step)
    z = picked(z, torch.tensor([places[pair] for pair in pairs]))
    if not antithetic:
        return z
    signs = torch.tensor([1.0 if k % 2 == 0 else -1.0 for k in siblings]).reshape(-1, *[1] * len(shape))
    return z * sent(signs, device)


def rows(
    groups: Sequence[int],
    siblings: Sequence[int],
    shape: Sequence[int],
    stream: Stream,
    device: str | torch.device,
    **ids: int,
) -> torch.Tensor:
    """Return the normals of each (group, sibling), [rows, *shape] float32, on a device.

    A GPU draws them itself; they then differ from `normal` by a unit in the last place at most (`device_noise`).
    """
    import torch

    from redif_ray.diffusion import device_noise
    from redif_ray.diffusion.transfer import sent

    size = math.prod(shape)
    if device_noise.draws_there(device):
        words = [ids_as_words(stream, group=g, sibling=k, **ids) for g, k in zip(groups, siblings, strict=True)]
        drawn = device_noise.normals(size, words[0][0], [counter for _, counter in words], device)
    else:
        each = [normal(size, stream, group=g, sibling=k, **ids) for g, k in zip(groups, siblings, strict=True)]
        drawn = sent(torch.from_numpy(np.stack(each)), device)
    return drawn.reshape(len(groups), *shape)
