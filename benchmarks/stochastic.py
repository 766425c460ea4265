"""The searched schedules of a finished search sampled with noise, at several eta of both kinds.

    python -m benchmarks.stochastic runs/NAME-search

On its first held-out noises: the mean distance to the teacher's images of the same noises (the recipe's weighted terms)
and the Frechet distance before the recipe's judge.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from redif_ray.config import Config
from redif_ray.data.schedule_file import read_schedule
from redif_ray.diffusion import noise, schedules, solvers
from redif_ray.diffusion.noise import Stream
from redif_ray.diffusion.rollout import rollout
from redif_ray.diffusion.schedules import Schedule
from redif_ray.diffusion.transition import ExplorationKind
from redif_ray.evaluation.encoders import embedded, load_encoder
from redif_ray.evaluation.judge import Judge
from redif_ray.evaluation.judge_source import judge_files
from redif_ray.evaluation.reference import ReferenceImages
from redif_ray.evaluation.report import markdown_table
from redif_ray.models.protocol import DiffusionModel
from redif_ray.models.registry import load_teacher
from redif_ray.planning import factory
from redif_ray.planning.rounds import RoundPlan
from redif_ray.rewards.base import RewardInputs
from redif_ray.runs.folder import stored_config

COUNT, ETAS = 500, (0.0, 0.1, 0.2, 0.4)


def sampled(model: DiffusionModel, unit: Any, schedule: Schedule, stds: Tensor, config: Config) -> Tensor:
    """Images of a work unit; at S = 0 the deployed sampler's."""
    shape, seed = model.latent_shape, config.run.seed
    unit_noise = noise.initial_noise(unit.groups, shape, seed=seed, stream=unit.stream)

    def z(step: int) -> Tensor:
        alone = [0] * len(unit.groups)
        return noise.exploration_noise(unit.groups, alone, shape, seed=seed, round=0, step=step)

    predict = model.predictor(model.encode(unit.conditions), config.student.guidance)
    return model.decode(rollout(predict, solvers.initial(schedule, unit_noise), schedule, stds, z).latents[-1])


@torch.no_grad()
def main(folder: Path) -> None:
    torch.set_num_threads(1)
    config = stored_config(folder)
    model, source = load_teacher(config.teacher), config.evaluation.judge
    encoder, reference = load_encoder(source, model.image_shape), ReferenceImages(judge_files(source)[1])
    real = torch.from_numpy(reference.rows(0, len(reference))).float() / 255
    judge = Judge(encoder.name, embedded(encoder, real, "cpu"))
    rewards = factory.rewards(config, model, "cpu")
    units = RoundPlan(config, factory.conditions(config, model)).deploy(Stream.HELD_OUT, COUNT)
    conditions = [c for unit in units for c in unit.conditions]
    teacher = []
    for unit in units:
        unit_noise = noise.initial_noise(unit.groups, model.latent_shape, seed=config.run.seed, stream=unit.stream)
        predict = model.predictor(model.encode(unit.conditions), config.teacher.guidance)
        grid = factory.teacher_schedule(model, config)
        teacher.append(model.decode(solvers.sample(config.teacher.solver, predict, unit_noise, grid)))
    targets, rows = torch.cat(teacher), []
    for n in config.search.steps or (config.student.steps,):
        times = read_schedule(folder / "schedule.yaml", n)[0]
        schedule = schedules.explicit(model.process, times.levels, network_timesteps=times.network_timesteps)
        for kind in get_args(ExplorationKind):
            for eta in ETAS if kind == "posterior" else ETAS[1:]:
                stds = schedule.stds(eta, kind, last_step=False)
                images = torch.cat([sampled(model, unit, schedule, stds, config) for unit in units])
                terms = rewards(RewardInputs(images, targets, conditions))
                distance = -sum(config.reward.terms[name].weight * float(v.mean()) for name, v in terms.items())
                distant = judge.frechet(embedded(encoder, images, "cpu"))
                rows.append([str(n), kind if eta else "none", f"{eta:g}", f"{distance:.5f}", f"{distant:.1f}"])
    print(markdown_table(["N", "noise", "eta", "distance", "Frechet"], rows))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
