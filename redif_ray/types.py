"""What flows between the rooms.

Arrays are numpy, C-contiguous and float32 unless said otherwise: Ray hands them over without a copy (read-only).
Rows are group-major: row = group position * siblings + sibling. N = student steps, R = rows of a shard.

Example: 4 groups x 16 siblings in shards of 2 groups: shard 0 has R = 32 rows, rows 0..15 share one x_T, one condition
and one teacher image; `Trajectories.latents` is [N + 1, 32, *latent_shape].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

Condition = int | str | None  # a class label, a caption, or nothing
Phase = Literal["warm_start", "policy", "draft"]


@dataclass(frozen=True, slots=True)
class Shard:
    """A unit of work: some groups of one round. A pure function of (config, round, index), so any worker can do it."""

    round: int
    index: int
    phase: Phase
    groups: tuple[int, ...]
    conditions: tuple[Condition, ...]  # one a group
    siblings: int

    @property
    def rows(self) -> int:
        return len(self.groups) * self.siblings


@dataclass(frozen=True, slots=True)
class Trajectories:
    """What a rollout worker makes of a shard with the weights of `policy_version`."""

    shard: Shard
    policy_version: int
    weights_sha256: str
    latents: np.ndarray  # [N + 1, R, *latent]: latents[0] is x_T, latents[N] the result
    means: np.ndarray  # [N, R, *latent]: the policy's mean of each transition
    log_probs: np.ndarray  # [N, R]: per-dimension mean log density of the action taken; 0 where the step is deterministic
    seconds: float
    network_calls: int  # per-image evaluations, guided ones counted twice


@dataclass(frozen=True, slots=True)
class Scored:
    """What a reward worker adds to a shard."""

    shard: Shard
    rewards: np.ndarray  # [R]: the weighted sum
    terms: dict[str, np.ndarray]  # [R] each, unweighted
    targets: np.ndarray  # [G, C, H, W] in [0, 1]: the teacher's image of each group
    anchors: np.ndarray | None  # [N, R, *latent]: the teacher's jump from each visited state; None where no loss asks for it
    seconds: dict[str, float]  # by component: teacher, rewards, anchor
    network_calls: dict[str, int]
