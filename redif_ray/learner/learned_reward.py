"""The learned reward on a learner's rank: trained after each policy round, published and checkpointed like weights.

Version r has learned from the rounds before r and scores the rollouts of policy version r. Every rank has the same one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from redif_ray.checkpoint import (
    StoredTensors,
    check_checkpoint,
    load_optimizer,
    optimizer_tensors,
    pack,
    unpack,
    weights_sha256,
)
from redif_ray.config import LEARNED, Config
from redif_ray.evaluation.compute import forward_flops
from redif_ray.learning.discriminator import TEACHER_PASS, DiscriminatorUpdater, Images, optimiser
from redif_ray.learning.gradients import AllReduce
from redif_ray.learning.round_update import Metas
from redif_ray.models.protocol import DiffusionModel
from redif_ray.planning import factory
from redif_ray.rewards.discriminator import DiscriminatorTerm
from redif_ray.runs.folder import latest_checkpoint
from redif_ray.types import Scored, Trajectories, WorkUnit
from redif_ray.weights.store import StaleWeightsError
from redif_ray.workers.offload import Belonging

OPTIMIZER = f"{LEARNED}_optimizer"


def learned_reward(
    config: Config, model: DiffusionModel, device: str, all_reduce: AllReduce | None
) -> LearnedReward | None:
    """Return the learned reward of a run, or None for a run without one."""
    term = factory.learned_reward(config, model, device)
    return None if term is None else LearnedReward(config, term, all_reduce)


class LearnedReward:
    """The discriminator of a run with its optimiser.

    all_reduce: sums tensors over ranks; None for one rank.
    """

    def __init__(self, config: Config, term: DiscriminatorTerm, all_reduce: AllReduce | None) -> None:
        self.term, self.device = term, term.setting.device
        self.own_siblings = config.rollout.siblings - config.rollout.guided
        self.optimizer = optimiser(term.network, term.lr)
        self.updater = DiscriminatorUpdater(
            term.network,
            self.optimizer,
            steps=term.steps,
            r1=term.r1,
            microbatch=config.learner.states_at_once,
            all_reduce=all_reduce,
        )
        example = torch.zeros(1, *term.setting.image_shape, device=self.device)
        self.flops = forward_flops(lambda: term.network(example, term.labels([0])), 1)

    def belongings(self) -> list[Belonging]:
        """Return the network and the optimiser, which are on the learner's device."""
        return [self.term.network, self.optimizer]

    def weights(self) -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in self.term.network.state_dict().items()}

    def state(self) -> dict[str, Tensor]:
        """Return the tensors for a checkpoint."""
        names = [name for name, _ in self.term.network.named_parameters()]
        return pack(LEARNED, self.weights()) | pack(OPTIMIZER, optimizer_tensors(self.optimizer, names))

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore `state` from the tensors of a whole checkpoint."""
        names = [name for name, _ in self.term.network.named_parameters()]
        self.term.load(unpack(LEARNED, tensors))
        load_optimizer(self.optimizer, names, unpack(OPTIMIZER, tensors))

    def update(
        self,
        round: int,
        metas: Metas,
        parts: Mapping[int, tuple[Trajectories, Scored]],
        scored_by: Mapping[str, Tensor] | None = None,
    ) -> dict[str, float]:
        """Train on the images of a policy round; return metrics. Teacher-guided siblings are left out.

        metas: metas of every work unit of the round. parts: this rank's work units, by index.
        scored_by: weights that scored the round; None: the current ones.
        Raises StaleWeightsError where other weights scored a unit, and ValueError for images of another round.
        """
        self._check(round, metas, weights_sha256(scored_by or self.weights()))
        units = [unit_metas[0].unit for unit_metas in metas]
        if any(scored.unit != units[index] for index, (_, scored) in parts.items()):
            raise ValueError(f"round {round}: the images are those of other work units; expected the round's own")
        own = [scored for _, (_, scored) in sorted(parts.items())]
        groups = sum(len(unit.groups) for unit in units)
        student = self._images(own, [self._own(s.unit, s.images) for s in own], self.own_siblings, groups)
        teacher = self._images(own, [s.targets for s in own], 1, groups)
        metrics = self.updater.run(student, teacher, where=f"round {round}")
        metrics["flops"] = self.flops * (
            sum(unit.rows for unit in units)  # the reward workers' scoring
            + self.term.steps * (3 * student.total + TEACHER_PASS * teacher.total)
        )
        return {f"{LEARNED}/{name}": value for name, value in metrics.items()}

    def _check(self, round: int, metas: Metas, expected: str) -> None:
        for unit_metas in metas:
            found = unit_metas[-1].learned_sha256
            if found != expected:
                raise StaleWeightsError(
                    f"work unit {unit_metas[-1].unit.index} of round {round} was scored by the {LEARNED} "
                    f"{(found or 'none')[:12]}; expected {expected[:12]}, the learner's own"
                )

    def _own(self, unit: WorkUnit, images: np.ndarray | None) -> np.ndarray:
        assert images is not None  # reward workers return them where a term learns
        by_group = images.reshape(len(unit.groups), unit.siblings, *images.shape[1:])
        return by_group[:, : self.own_siblings].reshape(-1, *images.shape[1:])

    def _images(self, own: Sequence[Scored], images: Sequence[Any], each: int, groups: int) -> Images:
        """Join the images of each work unit, `each` for every group; the whole round has `groups` groups."""
        conditions = [c for scored in own for c in scored.unit.conditions for _ in range(each)]
        joined = torch.from_numpy(np.concatenate(images)).float().to(self.device)
        return Images(joined, self.term.labels(conditions), groups * each)


def last_learned(folder: Path) -> tuple[int, dict[str, Tensor]]:
    """Return (version, weights) of the learned reward in a run's newest checkpoint, or (0, {}) without a checkpoint."""
    path = latest_checkpoint(folder / "checkpoints")
    if path is None:
        return 0, {}
    state, meta = check_checkpoint(path)
    return int(meta["round"]), dict(StoredTensors(state, LEARNED))
