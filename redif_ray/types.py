"""The data that the coordinator, the workers and the learner exchange.

Arrays are numpy, C-contiguous and float32 unless said otherwise: Ray hands them over without a copy (read-only).
Rows are group-major: row = group position * siblings + sibling. N = student steps, R = rows of a work unit.

Example: 4 groups x 16 siblings in units of 2 groups: unit 0 has R = 32 rows, rows 0..15 share one x_T, one condition
and one teacher image; with 4 steps of which the last does not explore, `Trajectories.shared` is [1, 2, *latent_shape]
and `Trajectories.latents` [3, 32, *latent_shape].
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from redif_ray.diffusion.noise import Stream

PICTURES = 10  # the first groups of a stream, whose images are kept as pictures
LARGEST = 512  # most pixels along an edge of a picture


class Edit(NamedTuple):
    """The condition of an editing model: a picture, and the caption that says how it is to change.

    picture: its name in the store of pictures (`redif_ray.data.pictures`), the hash of its file, so that messages carry
    no pixels. An edit is a tuple, which JSON and thereby the names of stored targets have without another rule.
    """

    caption: str
    picture: str


Condition = int | str | Edit | None  # a class label, a caption, a caption for a picture, or nothing


def from_json(value: int | str | list[str] | None) -> Condition:
    """Return the condition that JSON holds as `value`: an edit is a list there."""
    return Edit(*value) if isinstance(value, list) else value


def told(condition: Condition) -> int | str | None:
    """Return what rewards, judges and reports know of a condition: of an edit, its caption."""
    return condition.caption if isinstance(condition, Edit) else condition


@dataclass(frozen=True, slots=True)
class WorkUnit:
    """A unit of work: some groups of one round. It is a function of (config, round, index), so any worker can do it.

    phase: the name of a `redif_ray.methods.Phase`, which says what each process does with the unit.
    """

    round: int
    index: int
    phase: str
    stream: Stream
    groups: tuple[int, ...]
    conditions: tuple[Condition, ...]  # one for each group
    siblings: int = 1

    @property
    def rows(self) -> int:
        return len(self.groups) * self.siblings

    def predictions(self, steps: int, shared: int = 1) -> int:
        """Count the states that a network sees in `steps` steps of all rows; siblings share the first `shared`."""
        return shared * len(self.groups) + (steps - shared) * self.rows

    def per_row(self) -> tuple[list[int], list[int], list[Condition]]:
        """Return the group, sibling and condition of each row."""
        groups = [g for g in self.groups for _ in range(self.siblings)]
        siblings = [k for _ in self.groups for k in range(self.siblings)]
        return groups, siblings, [c for c in self.conditions for _ in range(self.siblings)]


@dataclass(frozen=True, slots=True)
class Trajectories:
    """The states that a rollout worker visited in a work unit, with the weights of `policy_version`.

    The last latent, the result, is among them only where the last step explores, so that it is an action, or where the
    phase reads it. The reward worker that decodes it gets it apart.
    """

    unit: WorkUnit
    policy_version: int
    weights_sha256: str
    shared: np.ndarray  # [M, G, *latent]: the first M states, x_T being the first; siblings share them
    latents: np.ndarray  # [n - M, R, *latent]: those after them, of the n states that are read, at most N + 1
    log_probs: np.ndarray  # [N, R]: per-dimension mean log density of the action taken; 0 where S = 0
    means: np.ndarray | None  # [N, R, *latent]: the policy's mean of each transition, if the phase reads means

    def states(self) -> np.ndarray:
        """Return the states of each row that are read, [n, R, *latent]."""
        return np.concatenate([self.shared.repeat(self.unit.siblings, axis=1), self.latents])


@dataclass(frozen=True, slots=True)
class Reference:
    """The features [n, D] float32 of some reference images, and the name of the judge that gave them.

    fit: how well each of them fits its own label, as in `Seen`; empty where the judge's images have no labels.
    """

    judge: str
    features: np.ndarray
    fit: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Seen:
    """Measurements of n images, each beside the teacher's image of the same noise and condition.

    conditions: n of them. pixel_mse: [n] float64. terms: raw reward terms by name, [n] each. darkest: the least pixel
    of the teacher's images. features: the judge's, [n, D] float32, or None if it was not asked. fit: how well an image
    fits its condition, by name, [n] each (`encoders.fit`). pictures, teacher_pictures: the first images, uint8
    [at most PICTURES, C, h, w], reduced to at most LARGEST pixels along an edge.
    """

    conditions: tuple[Condition, ...]
    pixel_mse: np.ndarray
    terms: dict[str, np.ndarray]
    darkest: float
    features: np.ndarray | None
    fit: dict[str, np.ndarray]
    pictures: np.ndarray
    teacher_pictures: np.ndarray

    @property
    def judged(self) -> np.ndarray:
        """Return the features as float64. Raises ValueError if the judge was not asked."""
        if self.features is None:
            raise ValueError("the judge was not asked for features of these images")
        return self.features.astype(np.float64)


@dataclass(frozen=True, slots=True)
class Scored:
    """A reward worker's results for a work unit."""

    unit: WorkUnit
    terms: dict[str, np.ndarray]  # [R] each, raw; empty in the warm start
    targets: np.ndarray | None  # [G, C, H, W] in [0, 1]: the teacher's images, if deployed or for a learned reward
    anchors: np.ndarray | None  # [N, R, *latent]: the teacher's jump from each visited state, if a loss uses it
    images: np.ndarray | None = None  # [R, C, H, W] in [0, 1]: the student's, if a phase or reward uses them
    teacher_terms: dict[str, np.ndarray] | None = None  # [R] each: terms of the teacher's image in the student's place
    seen: Seen | None = None  # measurements of the student's images, which stay in the reward worker; in deployments
    gradients: dict[str, np.ndarray] | None = None  # [R, *latent] each: of terms at the last latents, see `Slopes`
    spreads: dict[str, np.ndarray] | None = None  # [R] each: std of the terms around the last latents
    denoised: np.ndarray | None = None  # [R, *latent]: the teacher's, of the noised last latents
    diversity: np.ndarray | None = None  # [conditions, 2]: of the student's and the teacher's images of each condition


@dataclass(frozen=True, slots=True)
class Slopes:
    """The reward terms around the last latents of a work unit, R rows.

    terms: [R] each, raw: at the last latents or, where a term is sampled, the mean around them. gradients: [R, *latent]
    each, of the terms that have a weight. spreads: [R] each, std of these terms at the exploration's distance; that of
    a differentiable term to first order.
    """

    terms: dict[str, np.ndarray]
    gradients: dict[str, np.ndarray]
    spreads: dict[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class Way:
    """A way to sample the teacher. solver: "euler", "dpmpp_2m" or another of `solvers.SOLVERS`. schedule: its name."""

    solver: str
    schedule: str
    steps: int
    guidance: float


@dataclass(frozen=True, slots=True)
class Work:
    """The cost of one component of a call: a worker's seconds and per-image network calls (guided ones count twice)."""

    component: str
    seconds: float
    network_calls: int
    ended: float = field(default_factory=time.time)  # seconds since 1970 by the clock of the worker's node


@dataclass(frozen=True, slots=True)
class Meta:
    """The small part of a worker's result, which is all that the coordinator reads."""

    unit: WorkUnit
    worker: str
    work: tuple[Work, ...]
    terms: dict[str, np.ndarray] | None = None
    teacher_terms: dict[str, np.ndarray] | None = None  # of the teacher's image in the student's place
    learned_sha256: str | None = None  # of the learned reward's weights, if `terms` has one
    spreads: dict[str, np.ndarray] | None = None  # [R] each: std of the terms around the last latents
