"""The workers and the evaluator of a search, extended by sampling with agents."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import numpy as np
import torch

from redif_ray.adaptive.deploy import sample
from redif_ray.adaptive.policy import Policy
from redif_ray.adaptive.tasks import Goal, Scorer
from redif_ray.config import Config
from redif_ray.data.conditions import Conditions
from redif_ray.diffusion.noise import Stream
from redif_ray.search.evaluator import LATER, Evaluator, SearchActor
from redif_ray.search.worker import SearchWorker
from redif_ray.types import Meta, Work, WorkUnit

Measured = dict[str, np.ndarray]  # `distance` to the teacher's image and number of `calls`, one value for each noise


class AdaptiveWorker(SearchWorker):
    """A search worker that also samples with agents; its caches are its only state."""

    def adapted(
        self, unit: WorkUnit, goal: Goal, agent: dict[str, np.ndarray], weights: dict[str, float], targets: np.ndarray
    ) -> tuple[Meta, Measured]:
        """Sample a work unit's noises with an agent and measure the images.

        agent: the policy's parameters by name; weights: by name, the weight of each reward term; targets: the teacher's
        images, float32 [G, C, H, W] in [0, 1].
        """
        started, process = time.perf_counter(), self.model.process
        tensors = {name: torch.from_numpy(value.copy()) for name, value in agent.items()}
        policy = Policy(tensors["network.0.weight"].shape[1], tensors["table"])
        policy.load_state_dict(tensors)

        def predict_of(rows: torch.Tensor) -> Any:
            conditions = [unit.conditions[row] for row in rows.tolist()]
            return self.model.predictor(self.model.encode(conditions), self.guidance)

        first = process.at(torch.tensor(goal.timesteps[0], dtype=torch.float64))
        latents, calls = sample(process, predict_of, self._noise(self.model, unit), first, policy)
        score, teacher = Scorer(self.rewards, weights), torch.from_numpy(targets.copy()).to(self.device)
        with torch.no_grad():
            distance = -score(self.model.images(latents), teacher, list(unit.conditions))
        made = int(calls.sum()) * self.model.calls_per_step(self.guidance)
        work = Work("evaluation", time.perf_counter() - started, made)
        return Meta(unit, self.name, (work,)), {"distance": distance.cpu().numpy(), "calls": calls.numpy()}


class AdaptiveActor(SearchActor):
    source = "redif_ray.adaptive.worker:AdaptiveWorker"

    def adapted(self, *arguments: Any) -> Any:
        return self._worker.adapted(*arguments)


class AdaptiveEvaluator(Evaluator):
    """A search's evaluator that also gives targets of the training noises and measures agents on held-out noises."""

    def __init__(self, config: Config, conditions: Conditions, workers: list[Any]) -> None:
        super().__init__(config, conditions, workers)
        search = config.search
        self.training = self.plan.deploy(Stream.ADAPTIVE, search.adaptive.noises, size=search.unit_noises)

    async def training_targets(self) -> list[Any]:
        """Return references to the teacher's images of the training noises, one for each work unit."""
        return list(await asyncio.gather(*(self._target(unit) for unit in self.training)))

    async def training_conditions(self) -> list[Any]:
        return [c for unit in self.training for c in unit.conditions]

    async def adapted(self, goal: Goal, agent: dict[str, np.ndarray], weights: dict[str, float]) -> Measured:
        """Measure an agent on the held-out noises. agent, weights: see `AdaptiveWorker.adapted`."""

        async def one(unit: WorkUnit) -> Measured:
            target = await self._target(unit)
            measured: Measured = await self._call(LATER, "adapted", unit, goal, agent, weights, target)
            return measured

        parts = await asyncio.gather(*(one(unit) for unit in self.held_out))
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
