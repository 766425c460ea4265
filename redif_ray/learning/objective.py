"""The loss of a round's (trajectory, step) pairs, written out.

    loss = mean over pairs of  w_k L(pair)  +  c_r D(policy, reference)  +  c_a |mean_k - teacher's jump|

L is a policy-gradient surrogate (`losses.py`), D a divergence (`regularisers.py`), and the last part the dense anchor
(`anchor.py`). Surrogate and divergence exist at stochastic steps, S > 0, only. A deterministic step takes part through
the anchor and the regulariser `mse`; the other parts stay means over the stochastic steps, so it does not dilute them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from redif_ray.config import Learner
from redif_ray.diffusion.levels import like
from redif_ray.diffusion.schedules import Schedule
from redif_ray.diffusion.transfer import picked
from redif_ray.learning.anchor import anchor_loss
from redif_ray.learning.batch import RoundBatch
from redif_ray.learning.losses import Action, Surrogate, default_clip, find_loss, step_weights
from redif_ray.learning.policy import IDLE, Predict, policy_mean, states
from redif_ray.learning.regularisers import divergence


@dataclass(frozen=True, slots=True)
class Loss:
    """The weighted parts of the loss, each summed over pairs; their total is differentiated.

    surrogate: values for metrics; None where no pair is stochastic. reference_calls: number of states at which the
    regulariser called the reference policy.
    """

    policy: Tensor
    regulariser: Tensor
    anchor: Tensor
    surrogate: Surrogate | None
    reference_calls: int

    @property
    def parts(self) -> dict[str, Tensor]:
        return {"policy": self.policy, "regulariser": self.regulariser, "anchor": self.anchor}

    @property
    def total(self) -> Tensor:
        return torch.stack(list(self.parts.values())).sum()


class Objective:
    """The total loss of a phase; the attribute `steps` holds the indices of the steps that take part in it.

    stds: S of each transition, [N] float64. reference: policy that the regulariser pulls towards, or None.
    sharded: True where every rank must call the reference equally often.
    """

    def __init__(
        self, schedule: Schedule, stds: Tensor, config: Learner, reference: Predict | None, sharded: bool
    ) -> None:
        self.schedule, self.stds, self.config = schedule, stds, config
        self.reference, self.sharded, self.surrogate_of = reference, sharded, find_loss(config.loss)
        self.steps = torch.arange(len(stds)) if config.trains_every_step else torch.nonzero(stds > 0).flatten()
        if not len(self.steps):
            raise ValueError("S is 0 at every step and the anchor is off: nothing to train; raise exploration.eta")
        stochastic = int((stds > 0).sum())
        self.undilute = len(self.steps) / stochastic if stochastic else 0.0
        self.weights = step_weights(stds, config.step_weight) if stochastic else torch.zeros_like(stds)

    def __call__(self, batch: RoundBatch, mean: Tensor, rows: Tensor, steps: Tensor) -> Loss:
        """Return the loss of P pairs, given by `rows` [P] and `steps` [P], whose policy means are `mean` [P, ...]."""
        zero, moves = torch.zeros((), device=batch.latents.device), torch.nonzero(self.stds[steps] > 0).flatten()
        policy = zero if len(rows) else mean.sum()  # no pairs: a 0 whose backward pass the other ranks wait for
        surrogate = None
        if len(moves):
            w = self.undilute * self.weights[steps[moves]]
            surrogate = self.surrogate(batch, picked(mean, moves), rows[moves], steps[moves])
            policy = (like(w, surrogate.loss) * surrogate.loss).sum()
        regulariser, calls = zero, 0
        if self.reference is not None and self.config.regulariser.kind != "none":
            distances, calls = self.divergences(self.reference, batch, mean, rows, steps)
            regulariser = self.config.regulariser.weight * distances.sum()
        anchor = zero
        if self.config.anchor.weight > 0 and batch.anchors is not None:
            anchor = self.config.anchor.weight * self.anchors(batch, batch.anchors, mean, rows, steps).sum()
        return Loss(policy, regulariser, anchor, surrogate, calls)

    def surrogate(self, batch: RoundBatch, mean: Tensor, rows: Tensor, steps: Tensor) -> Surrogate:
        """Return the surrogate L of P stochastic pairs."""
        action, clip = Action(batch, rows, steps, mean, self.stds[steps]), self.config.clip
        return self.surrogate_of(action, picked(batch.advantages, rows), clip or default_clip(batch.dimensions))

    def divergences(
        self, reference: Predict, batch: RoundBatch, mean: Tensor, rows: Tensor, steps: Tensor
    ) -> tuple[Tensor, int]:
        """Return the divergence of each pair that has one, and the number of states predicted for it.

        For `mse` every pair has a divergence, for other kinds each stochastic pair.
        """
        r = self.config.regulariser
        keep = torch.nonzero(self.stds[steps] >= 0 if r.kind == "mse" else self.stds[steps] > 0).flatten()
        rows, steps, mean = rows[keep], steps[keep], picked(mean, keep)
        if not len(rows):
            if self.sharded:
                with torch.no_grad():
                    policy_mean(reference, batch, self.schedule, self.stds, IDLE)
            return mean.sum(), 0
        visited = states(batch, rows, steps)
        with torch.no_grad():
            target = policy_mean(reference, batch, self.schedule, self.stds, visited)
        value = divergence(r.kind, mean, target, self.stds[steps], order=r.order, tempered=r.tempered)
        return (value if r.kind == "mse" else self.undilute * value), len(visited)

    def anchors(self, batch: RoundBatch, jumps: Tensor, mean: Tensor, rows: Tensor, steps: Tensor) -> Tensor:
        """Return the loss of each pair's mean against the teacher's jump, [P]."""
        gate = picked(batch.gate, rows) if batch.gate is not None else None
        return anchor_loss(mean, picked(jumps, steps, rows), self.config.anchor.loss, self.config.anchor.delta, gate)
