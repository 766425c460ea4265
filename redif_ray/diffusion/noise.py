"""Every random number of a run, as a pure function of integer ids.

Counter-based Philox (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) followed by our own
Box-Muller transform in float64. `torch.manual_seed` keeps 32 bits of a seed only and the bits of `torch.randn` depend
on the CPU's vector width and on the batch; these numbers depend on nothing but their ids and their count, so any worker
can draw any sample, twice, in any batch, and get the same bytes.
"""

from __future__ import annotations

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
    for name, value, limit in (
        ("round", round, 32),
        ("sibling", sibling, 64),
        ("step", step, 64),
        ("group", group, 64),
        ("seed", seed, 64),
    ):
        if not 0 <= value < 1 << limit:
            raise ValueError(f"noise id {name}={value} is outside [0, 2^{limit})")
    key = [seed, int(stream) << 32 | round]
    counter = [0, step, sibling, group]
    return np.random.Philox(key=np.array(key, dtype=np.uint64), counter=np.array(counter, dtype=np.uint64)).random_raw(
        count
    )


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
    groups: Sequence[int], shape: Sequence[int], *, seed: int, stream: Stream = Stream.TRAIN
) -> torch.Tensor:
    """Return unit noise of each group, [len(groups), *shape] float32, which is the same in every round."""
    import torch

    size = int(np.prod(shape))
    rows = [normal(size, stream, seed=seed, group=g) for g in groups]
    return torch.from_numpy(np.stack(rows)).reshape(len(groups), *shape)


def exploration_noise(
    groups: Sequence[int],
    siblings: Sequence[int],
    shape: Sequence[int],
    *,
    seed: int,
    round: int,
    step: int,
    antithetic: bool = False,
) -> torch.Tensor:
    """Return the policy's z for each (group, sibling) row, [rows, *shape] float32.

    antithetic: sibling 2k + 1 uses minus the noise of sibling 2k.
    """
    import torch

    size = int(np.prod(shape))
    rows, drawn = [], dict[tuple[int, int], np.ndarray]()
    for group, sibling in zip(groups, siblings, strict=True):
        source = sibling - sibling % 2 if antithetic else sibling
        if (group, source) not in drawn:
            z = normal(size, Stream.EXPLORATION, seed=seed, round=round, group=group, sibling=source, step=step)
            drawn[group, source] = z
        rows.append(-drawn[group, source] if source != sibling else drawn[group, source])
    return torch.from_numpy(np.stack(rows)).reshape(len(rows), *shape)
