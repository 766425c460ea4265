"""Distribution matching: its gradient beside that of two known densities, its noise, and the fake score's state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from redif_ray.config import ConfigError, load
from redif_ray.diffusion.levels import FlowMatching, Level, NoiseProcess, VarianceExploding, VariancePreserving, like
from redif_ray.learning.advantages import RunningStatistics
from redif_ray.learning.fake_score import FakeScore
from redif_ray.learning.matching import LEVELS, denoising_loss, direction, noised
from redif_ray.learning.output import OutputUpdater
from redif_ray.learning.round_update import Learning
from redif_ray.learning.step import make_optimizer
from redif_ray.loop import PlainLoop
from redif_ray.models.registry import load_teacher
from redif_ray.models.student import trainable
from redif_ray.planning import factory

PROCESSES: dict[str, NoiseProcess] = {
    "vp": VariancePreserving(torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)),
    "ve": VarianceExploding(),
    "flow": FlowMatching(),
}


@pytest.mark.parametrize("name", PROCESSES)
def test_noise_depends_on_ids_alone_and_follows_the_process(name: str) -> None:
    process, ids = PROCESSES[name], {"seed": 3, "round": 5, "draw": 1}
    x = torch.linspace(-1, 1, 400)[:, None].expand(400, 64).contiguous()
    x_t, level = noised(x, range(400), process, **ids)
    some, of_some = noised(x[100:103], (100, 101, 102), process, **ids)
    assert torch.equal(some, x_t[100:103]) and torch.equal(of_some.timestep, level.timestep[100:103])
    for other in ({"seed": 4}, {"round": 6}, {"draw": 2}):
        assert not torch.equal(noised(x, range(400), process, **(ids | other))[0], x_t)
    eps = (x_t - like(level.alpha, x) * x) / like(level.sigma, x)
    assert float(eps.mean()) == pytest.approx(0, abs=0.03) and float(eps.std()) == pytest.approx(1, abs=0.03)
    assert len(level.timestep.unique()) > 0.9 * (LEVELS - 1)
    assert float(level.sigma.min()) > 0 and bool((level.half_log_snr > process.span[0]).all())


class Gaussian:
    """A law N(mean, std^2 I) in the plane; its exact denoiser, and the log density of its noised points."""

    def __init__(self, mean: float, std: float) -> None:
        self.mean, self.std = mean, std

    def log_density(self, x_t: Tensor, level: Level) -> Tensor:
        variance = (level.alpha * self.std) ** 2 + level.sigma**2
        off = x_t - like(level.alpha * self.mean, x_t)
        return -off.square().sum(1) / (2 * variance) - torch.log(variance)

    def denoised(self, x_t: Tensor, level: Level) -> Tensor:
        alpha, sigma = like(level.alpha, x_t), like(level.sigma, x_t)
        share = alpha * self.std**2 / ((alpha * self.std) ** 2 + sigma**2)
        return self.mean + share * (x_t - alpha * self.mean)


def differences(function: Callable[[Tensor], Tensor], x: Tensor, step: float = 1e-5) -> Tensor:
    """The gradient of the values of each row, by central differences."""
    columns = []
    for i in range(x.shape[1]):
        shift = torch.zeros_like(x)
        shift[:, i] = step
        columns.append((function(x + shift) - function(x - shift)) / (2 * step))
    return torch.stack(columns, 1)


@pytest.mark.parametrize("name", ["vp", "flow"])
def test_the_direction_descends_the_divergence_of_the_noised_laws(name: str) -> None:
    """Tweedie's formula gives D - D' as sigma^2 / alpha times the gradient of the log ratio of the densities."""
    student, teacher = Gaussian(0.7, 0.3), Gaussian(-0.2, 0.8)
    x = 0.7 + 0.3 * torch.randn(64, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x_t, level = noised(x, range(64), PROCESSES[name], seed=0, round=0, draw=0)
    real = teacher.denoised(x_t, level)
    found = direction(x, real, student.denoised(x_t, level))
    ratio = differences(lambda y: student.log_density(y, level) - teacher.log_density(y, level), x_t)
    expected = -like(level.sigma.square() / level.alpha, x_t) * ratio / (x - real).abs().sum(1, keepdim=True)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert float(found.mean()) < 0  # towards the teacher's mean


def test_the_loss_is_that_of_velocity() -> None:
    level = PROCESSES["vp"].at(torch.tensor([50.0, 500.0, 900.0], dtype=torch.float64))
    drawn = torch.randn(3, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x, eps, guess = drawn.unbind(0)
    alpha, sigma = like(level.alpha, x), like(level.sigma, x)
    eps_guess = (alpha * x + sigma * eps - alpha * guess) / sigma
    error = (alpha * eps_guess - sigma * guess) - (alpha * eps - sigma * x)
    torch.testing.assert_close(denoising_loss(guess, x, level), error.square().mean(1))


def fake_score(*overrides: str) -> FakeScore:
    config = load("smoke", ["method=distribution_matching", *overrides])
    teacher = load_teacher(config.teacher)
    student = factory.student(config, teacher)
    schedule = factory.student_schedule(student, config.student)
    rewards: Callable[[], object] = lambda: None  # noqa: E731
    optimizer = make_optimizer(trainable(student).values(), config.learner)
    return FakeScore(Learning(config, student, optimizer, schedule, teacher, RunningStatistics(), rewards))  # type: ignore[arg-type]


def steps(fake: FakeScore, round: int) -> float:
    x = torch.linspace(-1, 1, 4)[:, None, None, None].expand(4, *fake.model.latent_shape).contiguous()
    return fake.run(x, fake.model.encode([0, 1, 2, 3]), (0, 1, 2, 3), total=4, round=round)["loss"]


@pytest.mark.slow
@pytest.mark.parametrize("lora", [(), ("distribution_matching.lora={rank: 2}",)])
def test_a_restored_fake_score_goes_on_as_the_first(lora: tuple[str, ...]) -> None:
    """Its weights and its optimiser's moments are the whole of its state; the teacher stays as it is."""
    fake = fake_score(*lora)
    teacher = fake.learning.teacher
    assert teacher is not None
    before = {name: value.clone() for name, value in teacher.network.state_dict().items()}
    first = steps(fake, 0)
    kept = {name: value.clone() for name, value in fake.state().items()}
    expected = steps(fake, 1)
    again = fake_score(*lora)
    again.load(kept)
    assert steps(again, 1) == expected != first
    for name, value in fake.state().items():
        assert torch.equal(value, again.state()[name]), name
    assert all(torch.equal(value, before[name]) for name, value in teacher.network.state_dict().items())


@pytest.mark.slow
def test_the_fake_score_learns_the_images_that_it_sees() -> None:
    fake = fake_score("distribution_matching.fake_lr=1e-3")
    losses = [steps(fake, round) for round in range(8)]
    assert sum(losses[-3:]) < 0.7 * sum(losses[:3])


@pytest.mark.slow
def test_rounds_are_the_same_again_whatever_the_microbatch() -> None:
    def trained(*overrides: str) -> tuple[str, dict[str, float]]:
        own = ("method=distribution_matching", "distribution_matching.groups=4", "learner.rounds=2")
        loop = PlainLoop(load("smoke", [*own, "warm_start.rounds=0", "rollout.groups=4", *overrides]))
        metrics = [loop.round(round) for round in range(2)]
        return loop.checksum(), metrics[-1]

    checksum, metrics = trained("learner.microbatch=4")
    assert trained("learner.microbatch=4")[0] == checksum
    close = trained("learner.microbatch=1")[1]
    for name in ("fake_score/loss", "update/grad_norm"):
        assert close[name] == pytest.approx(metrics[name], rel=1e-3)
    assert metrics["update/network_calls_forward"] == 4 * (2 + 1 + 5)


@pytest.mark.slow
def test_a_reward_adds_its_gradient_at_the_students_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole is distribution matching's own, plus the weight over the numbers of an image times that of `output`."""
    kept: list[Tensor] = []
    run = OutputUpdater.run

    def keeping(self: OutputUpdater, states: Tensor, encoded: Any, gradient: Tensor, **rest: Any) -> dict[str, float]:
        kept.append(gradient.clone())
        return run(self, states, encoded, gradient, **rest)

    monkeypatch.setattr(OutputUpdater, "run", keeping)

    def first_round(*given: str) -> tuple[Tensor, dict[str, float]]:
        own = ("output={groups: 4, samples: 8, sampled: true}", "rollout={groups: 4, siblings: 1, unit_groups: 2}")
        metrics = PlainLoop(load("smoke", ["warm_start.rounds=0", *own, *given])).round(0)
        return kept.pop(), metrics

    def matching(weight: float) -> tuple[Tensor, dict[str, float]]:
        settings = f"distribution_matching={{groups: 4, reward_weight: {weight}}}"
        return first_round("method=distribution_matching", settings)

    (alone, silent), (both, metrics), (reward, _) = matching(0), matching(2.5), first_round("method=output")
    assert reward.abs().sum() > 0 and alone.abs().sum() > 0
    torch.testing.assert_close(both - alone, reward * 2.5 / reward[0].numel(), rtol=1e-4, atol=1e-9)
    assert "reward/mean" in metrics and "reward/mean" not in silent
    assert metrics["fake_score/loss"] == silent["fake_score/loss"]


def test_a_reward_without_a_weight_is_told() -> None:
    given = ["method=distribution_matching", "reward.terms={mse: {weight: 0}}"]
    load("smoke", given)
    with pytest.raises(ConfigError, match="every term has weight 0, so method=distribution_matching"):
        load("smoke", [*given, "distribution_matching.reward_weight=1"])
