"""The actors of a run, and what the driver asks of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import torch

from redif_ray.checkpoint import weights_sha256
from redif_ray.config import Config
from redif_ray.diffusion.noise import Stream
from redif_ray.models.protocol import DiffusionModel
from redif_ray.models.registry import load_model
from redif_ray.models.student import get_weights, make_student
from redif_ray.pipeline.coordinator import Coordinator
from redif_ray.pipeline.metrics import MetricsWriter
from redif_ray.pipeline.plan import RoundPlan
from redif_ray.pipeline.reward import TeacherRewardWorker
from redif_ray.pipeline.rollout import StudentRolloutWorker
from redif_ray.pipeline.run_folder import RunFolder
from redif_ray.pipeline.weights import WeightStore
from redif_ray.tracking import tracking_uri
from redif_ray.types import Condition, Meta

INITIAL = "initial-0"


@dataclass(frozen=True, slots=True)
class Samples:
    """Images of some groups, the arm's and the teacher's, [n, C, H, W] in [0, 1]; their conditions and raw terms."""

    images: np.ndarray
    targets: np.ndarray
    conditions: list[Condition]
    terms: dict[str, np.ndarray]
    metas: list[Meta]


@dataclass(slots=True)
class Session:
    """Handles of a running job. Everything here is rebuilt from (configuration, run folder)."""

    config: Config
    folder: RunFolder
    teacher: DiffusionModel
    plan: RoundPlan
    weights: Any
    writer: Any
    reward: list[Any]
    coordinator: Any

    def publish(self, key: str, arrays: dict[str, np.ndarray]) -> str:
        checksum = weights_sha256(arrays)
        ray.get(self.weights.publish.remote(key, arrays, checksum))
        return checksum

    def sample(self, stream: Stream, count: int, key: str, *, round: int = 0) -> Samples:
        """The student with weights `key` as deployed, beside the teacher, on the first `count` groups of a stream."""
        data = ray.get(self.coordinator.deploy.remote(int(stream), count, round, key))
        return collect(self.teacher, data)


def collect(teacher: DiffusionModel, data: Any) -> Samples:
    """Fetch and decode what `Coordinator.deploy` answered."""
    pairs = [ray.get(list(references)) for _, references in data.references]
    final = [torch.from_numpy(trajectories.latents[-1].copy()) for trajectories, _ in pairs]
    scored = [score for _, score in pairs]
    return Samples(
        images=torch.cat([teacher.decode(x) for x in final]).numpy(),
        targets=np.concatenate([s.targets for s in scored if s.targets is not None]),
        conditions=[c for s in scored for c in s.shard.conditions],
        terms={name: np.concatenate([s.terms[name] for s in scored]) for name in scored[0].terms},
        metas=[meta for metas in data.metas for meta in metas],
    )


@contextmanager
def session(config: Config, folder: RunFolder) -> Iterator[Session]:
    """Start the actors of a run, and stop them at the end; the driver must be connected to Ray."""
    torch.set_num_threads(1)
    teacher = load_model(config.teacher.model)
    plan = RoundPlan(config, teacher.num_classes)
    weights = ray.remote(WeightStore).options(num_cpus=0).remote()
    writer = (
        ray.remote(MetricsWriter)
        .options(num_cpus=0)
        .remote(
            str(folder.path),
            tracking_uri(config),
            config.tracking.experiment,
            config.run.name,
            folder.state.get("mlflow_run_id"),
        )
    )
    rollout = [
        ray.remote(StudentRolloutWorker)
        .options(num_cpus=config.rollout.cpus, num_gpus=config.rollout.gpus, max_restarts=-1)
        .remote(f"rollout-{i}", config)
        for i in range(config.rollout.workers)
    ]
    reward = [
        ray.remote(TeacherRewardWorker)
        .options(num_cpus=config.reward.cpus, num_gpus=config.reward.gpus, max_restarts=-1)
        .remote(f"reward-{i}", config)
        for i in range(config.reward.workers)
    ]
    coordinator = (
        ray.remote(Coordinator)
        .options(num_cpus=0, max_concurrency=100)
        .remote(config, teacher.num_classes, weights, rollout, reward)
    )
    actors = [*rollout, *reward, coordinator, weights, writer]
    try:
        ray.get([actor.ready.remote() for actor in [*rollout, *reward, writer]])
        made = Session(config, folder, teacher, plan, weights, writer, reward, coordinator)
        initial = {k: v.numpy() for k, v in get_weights(make_student(teacher, config.student.lora)).items()}
        made.publish(INITIAL, initial)
        yield made
    finally:
        for actor in actors:
            ray.kill(actor)
