"""The update of a round on one rank: from the workers' trajectories and scores to one or more optimiser steps.

Phases that learn from trajectories share `update_on_trajectories`; the policy gradient also turns rewards into
advantages.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from redif_ray.checkpoint import weights_sha256
from redif_ray.config import Config, Learner
from redif_ray.diffusion.schedules import Schedule
from redif_ray.learning.advantages import Advantages, RunningStatistics, advantages
from redif_ray.learning.batch import RoundBatch, assemble
from redif_ray.learning.exploration import shared_steps
from redif_ray.learning.gradients import AllReduce
from redif_ray.learning.rounding import ratio_tolerance, rounds_apart
from redif_ray.learning.update import Updater
from redif_ray.models.protocol import DiffusionModel
from redif_ray.models.student import get_weights, with_weights
from redif_ray.rewards.base import Rewards
from redif_ray.rewards.combine import Combined, combine, weighted_sum
from redif_ray.types import Meta, Scored

LOSS_SCALES = {"float16": 2.0**16}  # a mean over an image has gradients below 6e-8, the smallest float16
Metas = Sequence[Sequence[Meta]]  # the metas of each work unit of a round, in order of the units


@dataclass(frozen=True, slots=True)
class Round:
    """A round as a rank of the learner has it.

    metas: metas of every work unit. parts: the products that `Phase.learner_reads` names, for this rank's units, by
    unit index. behaviour: weights that rolled out the round; None: the student's own. made_by: their checksum, if
    known.
    """

    number: int
    metas: Metas
    parts: Mapping[int, Sequence[Any]]
    behaviour: Mapping[str, Tensor] | None = None
    made_by: str | None = None


@dataclass(frozen=True, slots=True)
class Learning:
    """The objects of a learner's rank that the phases of a run train with.

    optimizer: optimiser of the student's weights; each phase has a new one. teacher: may be None where no regulariser
    pulls towards it. running: statistics for the advantage `running`.
    rewards: builds the reward terms on the rank's device. all_reduce: sums tensors over `world` ranks; None for one.
    companion: what the phase keeps beside the student (`Phase.companion`), or None.
    """

    config: Config
    student: DiffusionModel
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    teacher: DiffusionModel | None
    running: RunningStatistics
    rewards: Callable[[], Rewards]
    rank: int = 0
    world: int = 1
    all_reduce: AllReduce | None = None
    companion: Any = None

    @property
    def loss_scale(self) -> float:
        """Return the factor by which a loss is multiplied before its backward pass."""
        return LOSS_SCALES.get(self.config.networks.precision, 1.0)


def update_on_trajectories(
    learning: Learning,
    round: Round,
    stds: Tensor,
    settings: Learner,
    lr: float,
    advantages: Tensor | None = None,
    gate: Tensor | None = None,
) -> dict[str, float]:
    """Join this rank's trajectories into a batch and run the updates of `settings` on it; return their metrics.

    round: its parts are (trajectories, scored). stds: S of each transition, [N] float64. settings, lr: learner settings
    and learning rate of the phase.
    advantages, gate: one value for each row of the round; None: zeros, and no gate.
    """
    config, student, guidance = learning.config, learning.student, learning.config.student.guidance
    teacher = learning.teacher
    batch, _ = batch_of(learning, round, stds, advantages, gate)
    updater = Updater(
        partial(student.predict, guidance=guidance),
        learning.optimizer,
        learning.schedule,
        stds,
        settings,
        ratio_tolerance=ratio_tolerance(config),
        reference=partial(teacher.predict, guidance=guidance) if teacher is not None else None,
        rank=learning.rank,
        world=learning.world,
        all_reduce=learning.all_reduce,
        sharded=config.learner.fsdp and learning.world > 1,
        loss_scale=learning.loss_scale,
        rounds_apart=rounds_apart(config),
    )
    block = with_weights(student, round.behaviour) if round.behaviour else None
    metrics = updater.run(batch, round=round.number, seed=config.run.seed, lr=lr, behaviour=block)
    return {f"update/{name}": value for name, value in metrics.items()}


def batch_of(
    learning: Learning,
    round: Round,
    stds: Tensor,
    advantages: Tensor | None = None,
    gate: Tensor | None = None,
) -> tuple[RoundBatch, list[Scored]]:
    """Join this rank's trajectories; return the batch, and the scores of its work units in the order of its rows.

    The arguments are those of `update_on_trajectories`. Raises ValueError as `assemble`.
    """
    student = learning.student
    batch = assemble(
        [unit_metas[0].unit for unit_metas in round.metas],
        [(trajectories, scored) for trajectories, scored in round.parts.values()],
        weights_sha256=round.made_by or weights_sha256(round.behaviour or get_weights(student)),
        encode=student.encode,
        advantages=advantages,
        gate=gate,
        shared=shared_steps(learning.config, stds),
        device=next(student.network.parameters()).device,
    )
    return batch, sorted((scored for _, scored in round.parts.values()), key=lambda scored: scored.unit.index)


def relative_rewards(learning: Learning, metas: Metas, alike: int | None = None) -> tuple[Advantages, dict[str, float]]:
    """Combine the reward terms of a round and compare rows of one condition; return advantages [G, K] and metrics.

    alike: K, the number of consecutive groups without siblings that are compared; None: the siblings of each group.
    """
    config, terms = learning.config, joined([unit_metas[-1].terms for unit_metas in metas])
    count = config.rollout.siblings if alike is None else alike
    combined = combine(terms, config.reward.terms, siblings=count)
    relative = advantages(
        combined.rewards.view(-1, count),
        config.learner.advantage,
        config.learner.advantage_clip,
        pair_baseline=config.exploration.antithetic and alike is None,
        running=learning.running,
        keys=[c for unit_metas in metas for c in unit_metas[0].unit.per_row()[2]][::count],
    )
    return relative, _reward_metrics(terms, combined, relative)


def anchor_gate(learning: Learning, metas: Metas) -> Tensor:
    """Return 1 for each row whose teacher image scores higher than the student's, else 0, [R] float32 (RATS)."""
    weights = learning.config.reward.weights
    last = [unit_metas[-1] for unit_metas in metas]
    student = weighted_sum(joined([meta.terms for meta in last]), weights)
    teacher = weighted_sum(joined([meta.teacher_terms for meta in last]), weights)
    return (teacher > student).float()


def joined(parts: Sequence[Mapping[str, np.ndarray] | None], device: str | torch.device = "cpu") -> dict[str, Tensor]:
    """Join the arrays of several work units, in order; return them by reward term.

    Raises ValueError for a unit without arrays.
    """
    if not (held := [part for part in parts if part is not None]) or len(held) < len(parts):
        raise ValueError(f"{len(held)} of {len(parts)} work units have scores; expected all")
    return {name: torch.from_numpy(np.concatenate([part[name] for part in held])).to(device) for name in held[0]}


def _reward_metrics(terms: Mapping[str, Tensor], combined: Combined, relative: Advantages) -> dict[str, float]:
    metrics = {"reward/mean": float(combined.rewards.mean()), "reward/std": float(combined.rewards.std(correction=0))}
    metrics |= {f"reward/{name}": float(value.mean()) for name, value in terms.items()}
    metrics |= {f"reward/{name}_spread": spread for name, spread in combined.spreads.items()}
    return metrics | {"advantage/std": relative.std, "advantage/dead_group_fraction": relative.dead_group_fraction}
