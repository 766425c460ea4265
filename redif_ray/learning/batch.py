"""The work units of one rank, joined into the batch that the learner trains on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from redif_ray.diffusion.transfer import sent
from redif_ray.types import Condition, Scored, Trajectories, WorkUnit


@dataclass(frozen=True, slots=True)
class RoundBatch:
    """R of the `total_rows` rows of a round, over N steps; float32 unless said otherwise.

    rows: [R] int64, position of each row in the whole round, group-major. A single rank holds all rows.
    origin: [R] int64, for each row the first row of this batch with the same x_T and condition; rows of one origin have
    the same state in the first `shared` steps, which are predicted once for all of them. None: no rows share a state.
    log_probs: log density of the action taken under the behaviour policy, for teacher-guided siblings too. The policy
    did not draw the action of a guided sibling, so on these rows the plain surrogate is off-policy, advantage-weighted
    imitation; its ratio still starts at 1.
    """

    rows: Tensor
    total_rows: int
    latents: Tensor  # [at most N + 1, R, ...]: the first states, as many as are read
    means: Tensor | None  # [N, R, ...]: means of the behaviour policy at the steps where S > 0, if the loss reads them
    log_probs: Tensor  # [N, R]; 0 where S = 0
    advantages: Tensor  # [R]
    encoded: dict[str, Tensor]  # [R, ...] each: the conditions, encoded for the network
    origin: Tensor | None = None
    shared: int = 1  # number of first steps at which rows of one origin share a state
    anchors: Tensor | None = None  # [N, R, ...]: the teacher's jump from each state
    gate: Tensor | None = None  # [R]: 1 where the anchor applies, 0 elsewhere
    on_policy: bool = False  # True where the network still is the behaviour policy at its only step: ratios are 1

    def __post_init__(self) -> None:
        steps, rows = self.log_probs.shape
        expected = {
            "rows": (self.rows, (rows,)),
            "latents": (self.latents, (min(len(self.latents), steps + 1), rows)),
            "means": (self.means, (steps, rows)),
            "advantages": (self.advantages, (rows,)),
            "anchors": (self.anchors, (steps, rows)),
            "gate": (self.gate, (rows,)),
            "origin": (self.origin, (rows,)),
        } | {f"encoded[{name}]": (value, (rows,)) for name, value in self.encoded.items()}
        for name, (tensor, start) in expected.items():
            if tensor is not None and tuple(tensor.shape[: len(start)]) != start:
                found = list(tensor.shape)
                raise ValueError(f"round batch: {name} has shape {found}; expected it to begin with {list(start)}")

    @property
    def dimensions(self) -> int:
        """Return D, the number of values of a latent."""
        return self.latents[0, 0].numel()


def assemble(
    units: Sequence[WorkUnit],
    parts: Sequence[tuple[Trajectories, Scored]],
    *,
    weights_sha256: str,
    encode: Callable[[Sequence[Condition]], dict[str, Tensor]],
    advantages: Tensor | None = None,
    gate: Tensor | None = None,
    shared: int = 1,
    device: str | torch.device = "cpu",
) -> RoundBatch:
    """Join this rank's `parts`, in any order, into a batch whose rows are sorted by work unit index.

    units: all work units of the round, which define the rows' positions. weights_sha256: checksum of the weights that
    must have made the trajectories. encode: conditions to network inputs, [G, ...] each.
    advantages, gate: values of the whole round, any shape of total_rows elements, group-major; None: zeros, no gate.
    Raises ValueError for a unit that is not of the round or comes twice, for scores of another unit, and for
    trajectories of other weights.
    """
    ordered = sorted(units, key=lambda s: s.index)
    ends = np.cumsum([s.rows for s in ordered])
    place = {s.index: torch.arange(end - s.rows, end) for s, end in zip(ordered, ends.tolist(), strict=True)}
    parts = sorted(parts, key=lambda part: part[0].unit.index)
    _check(ordered, parts, weights_sha256)
    rows, total = torch.cat([place[t.unit.index] for t, _ in parts]), int(ends[-1])
    held = [t.unit for t, _ in parts]
    siblings = [s.siblings for s in held for _ in s.groups]
    group = torch.arange(len(siblings)).repeat_interleave(torch.tensor(siblings))  # group of each row

    def join(arrays: Sequence[np.ndarray]) -> Tensor:
        return sent(torch.from_numpy(np.concatenate(arrays, axis=1)), device)

    def of_these_rows(values: Tensor) -> Tensor:
        if values.numel() != total:
            raise ValueError(f"the round has {total} rows; found {values.numel()} values for them")
        return values.reshape(-1)[rows].float().to(device)

    means = [t.means for t, _ in parts if t.means is not None]
    anchors = [s.anchors for _, s in parts if s.anchors is not None]
    if len(anchors) not in (0, len(parts)):
        raise ValueError(f"only {len(anchors)} of {len(parts)} work units carry anchors; expected all or none")
    return RoundBatch(
        rows=rows,
        total_rows=total,
        latents=join([t.states() for t, _ in parts]),
        means=join(means) if means else None,
        log_probs=join([t.log_probs for t, _ in parts]),
        advantages=of_these_rows(torch.zeros(total) if advantages is None else advantages),
        origin=torch.cumsum(torch.tensor([0, *siblings[:-1]]), 0)[group],
        shared=shared,
        encoded={name: value[group] for name, value in encode([c for s in held for c in s.conditions]).items()},
        anchors=join(anchors) if anchors else None,
        gate=None if gate is None else of_these_rows(gate),
    )


def _check(units: Sequence[WorkUnit], parts: Sequence[tuple[Trajectories, Scored]], weights_sha256: str) -> None:
    if not parts:
        raise ValueError("this rank got no work unit; expected at least as many work units a round as learner.workers")
    indices: set[int] = set()
    for trajectories, scored in parts:
        unit = trajectories.unit
        if scored.unit != unit or unit not in units or unit.index in indices:
            raise ValueError(
                f"work unit {unit.index} of round {unit.round} comes twice, is not in this round, or has the "
                "scores of another unit"
            )
        indices.add(unit.index)
        used = trajectories.weights_sha256
        if used != weights_sha256:
            raise ValueError(
                f"work unit {unit.index} of round {unit.round} was rolled out with weights {used[:12]}, version "
                f"{trajectories.policy_version}; expected {weights_sha256[:12]}, the learner's own"
            )
