from __future__ import annotations

import pytest
import torch
from torch import Tensor

from redif_ray.diffusion import noise
from redif_ray.diffusion.levels import Level, VariancePreserving, like
from redif_ray.diffusion.noise import Stream
from redif_ray.diffusion.rollout import rollout
from redif_ray.diffusion.schedules import build
from redif_ray.diffusion.solvers import Predict
from redif_ray.diffusion.transition import Prediction

PROCESS = VariancePreserving(torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0))


def network(condition: Tensor, seen: list[int]) -> Predict:
    """x0_hat = tanh(x + c) of conditions c [R]; notes how many states it sees."""

    def predict(x: Tensor, level: Level) -> Prediction:
        seen.append(len(x))
        x0 = torch.tanh(x + condition[:, None])
        return Prediction(x0, (x - like(level.alpha, x) * x0) / like(level.sigma, x))

    return predict


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("last_step", [False, True])
def test_siblings_take_their_first_step_from_one_prediction(last_step: bool, guided: bool) -> None:
    groups, siblings, rows = 3, 4, 12
    schedule = build(PROCESS, 3, "uniform_trailing")
    stds = schedule.stds(0.6, "posterior", last_step)
    condition = torch.tensor([-0.5, 0.0, 0.7])
    once = noise.initial_noise(range(groups), (5,), seed=1, stream=Stream.TRAIN)
    x = once.repeat_interleave(siblings, 0)
    options: dict[str, object] = {}
    if guided:
        options = {"guide": lambda x, k: 0.3 * x - k, "guided": torch.arange(rows) % siblings == siblings - 1}

    def draw(step: int) -> Tensor:
        own = [(row // siblings, row % siblings) for row in range(rows)]
        return noise.exploration_noise([g for g, _ in own], [k for _, k in own], (5,), seed=1, round=0, step=step)

    plain_seen: list[int] = []
    shared_seen: list[int] = []
    repeated = condition.repeat_interleave(siblings)
    plain = rollout(network(repeated, plain_seen), x, schedule, stds, draw, **options)
    shared = rollout(
        network(repeated, shared_seen),
        x,
        schedule,
        stds,
        draw,
        once=network(condition, shared_seen),
        siblings=siblings,
        **options,
    )
    assert plain_seen == [rows] * 3 and shared_seen == [groups, rows, rows]
    for field in ("latents", "means", "log_probs"):
        torch.testing.assert_close(getattr(shared, field), getattr(plain, field), rtol=0, atol=1e-6)
    assert not torch.equal(shared.latents[1, 0], shared.latents[1, 1])  # each explores for itself


@pytest.mark.parametrize("step", [0, 1, 2])
def test_siblings_are_one_until_the_step_that_explores_alone(step: int) -> None:
    groups, siblings, rows = 3, 4, 12
    schedule = build(PROCESS, 3, "uniform_trailing")
    stds = torch.where(torch.arange(3) == step, schedule.stds(0.6, "posterior", True), 0.0)
    condition = torch.tensor([-0.5, 0.0, 0.7])
    unit = noise.initial_noise(range(groups), (5,), seed=1, stream=Stream.TRAIN)
    x = unit.repeat_interleave(siblings, 0)
    own = [row // siblings for row in range(rows)], [row % siblings for row in range(rows)]

    def draw(step: int) -> Tensor:
        return noise.exploration_noise(*own, (5,), seed=1, round=0, step=step)

    plain_seen: list[int] = []
    shared_seen: list[int] = []
    repeated = condition.repeat_interleave(siblings)
    plain = rollout(network(repeated, plain_seen), x, schedule, stds, draw)
    shared = rollout(
        network(repeated, shared_seen),
        x,
        schedule,
        stds,
        draw,
        once=network(condition, shared_seen),
        shared=step + 1,
        siblings=siblings,
    )
    assert plain_seen == [rows] * 3 and shared_seen == [groups] * (step + 1) + [rows] * (2 - step)
    for field in ("latents", "means", "log_probs"):
        torch.testing.assert_close(getattr(shared, field), getattr(plain, field), rtol=0, atol=1e-6)
    assert torch.equal(shared.latents[step, 0], shared.latents[step, 1])
    assert not torch.equal(shared.latents[step + 1, 0], shared.latents[step + 1, 1])
    assert bool((shared.log_probs != 0).any(1).equal(stds > 0))
