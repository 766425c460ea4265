from __future__ import annotations

import pytest
import torch

from redif_ray.diffusion import schedules, solvers
from redif_ray.diffusion.levels import FlowMatching, Level, NoiseProcess, VarianceExploding, VariancePreserving, like
from redif_ray.diffusion.schedules import Schedule
from redif_ray.diffusion.transition import Prediction
from redif_ray.search import gradient

BETAS = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
PROCESSES: list[NoiseProcess] = [
    VariancePreserving((1 - BETAS).cumprod(0)),
    VarianceExploding(sigma_max=20),
    FlowMatching(),
]
IDS = ["vp", "ve", "flow"]
STD = 0.5  # of Gaussian data, whose exact denoiser is known


def predict(x: torch.Tensor, t: Level) -> Prediction:
    variance = t.alpha**2 * STD**2 + t.sigma**2
    x0 = like(t.alpha * STD**2 / variance, x) * x
    return Prediction(x0, (x - like(t.alpha, x) * x0) / like(t.sigma, x))


def missing(schedule: Schedule, _: int) -> torch.Tensor:
    """How far the sampler's gain is from the exact one of the probability flow, STD."""
    unit = torch.ones(1, 1, dtype=torch.float64)
    return (solvers.sample("euler", predict, unit, schedule) - STD).square().mean()


@pytest.mark.parametrize("process", PROCESSES, ids=IDS)
def test_the_gradient_is_that_of_finite_differences(process: NoiseProcess) -> None:
    base = schedules.build(process, 4, "log_snr_linear")
    at = torch.tensor([0.1, -0.2, 0.3, 0.05], dtype=torch.float64)

    def loss(logits: torch.Tensor) -> torch.Tensor:
        return missing(gradient.continuous(process, base, logits), 0)

    assert torch.autograd.gradcheck(loss, at.clone().requires_grad_(True), eps=1e-6, atol=1e-6)


@pytest.mark.parametrize("process", PROCESSES, ids=IDS)
def test_continuous_levels_lie_on_the_process(process: NoiseProcess) -> None:
    lambdas = torch.linspace(*process.span, 7, dtype=torch.float64)[1:-1]
    level = process.between(lambdas)
    assert torch.allclose(level.half_log_snr, lambdas, atol=1e-9)
    nearest = process.nearest(lambdas)
    assert torch.allclose(level.timestep, nearest.timestep, atol=0.5)
    assert torch.allclose(process.between(nearest.half_log_snr).timestep, nearest.timestep)


def test_what_a_network_makes_of_the_timestep_has_its_share_of_the_gradient() -> None:
    process = PROCESSES[0]
    base = schedules.build(process, 4, "log_snr_linear")
    logits = torch.full((4,), 0.1, dtype=torch.float64, requires_grad=True)
    times = gradient.continuous(process, base, logits).levels.timestep
    times[1:-1].sum().backward()
    assert logits.grad is not None and bool((logits.grad.abs() > 1).any())


@pytest.mark.parametrize("process", PROCESSES, ids=IDS)
def test_descent_comes_closer_to_the_exact_solution(process: NoiseProcess) -> None:
    base = schedules.build(process, 4, "log_snr_linear")
    found = gradient.descend(process, base, missing, iterations=60, lr=0.05)
    assert float(missing(found[0], 0)) < 0.7 * float(missing(base, 0))
    assert all(schedule.steps == 4 for schedule in found)


def hears(x: torch.Tensor, t: Level) -> Prediction:
    """The exact denoiser of the level that it is told, for VE: there the timestep is sigma."""
    shrunk = like(STD**2 / (STD**2 + t.timestep**2), x) * x
    return Prediction(shrunk, (x - shrunk) / like(t.sigma, x))


def missing_shift(schedule: Schedule, _: int) -> torch.Tensor:
    unit = torch.ones(1, 1, dtype=torch.float64)
    return (solvers.sample("euler", hears, unit, schedule) - STD).square().mean()


def test_the_gradient_of_what_is_told_is_that_of_finite_differences() -> None:
    process = PROCESSES[1]
    base = schedules.build(process, 3, "karras")

    def loss(logits: torch.Tensor, shifts: torch.Tensor) -> torch.Tensor:
        return missing_shift(gradient.continuous(process, base, logits, shifts), 0)

    at = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in ([0.1, -0.2, 0.3], [0.2, -0.3, 0.4]))
    assert torch.autograd.gradcheck(loss, tuple(at), eps=1e-6, atol=1e-6)


@pytest.mark.slow
def test_descent_finds_what_the_network_should_be_told() -> None:
    process = PROCESSES[1]
    base = schedules.build(process, 3, "karras")
    own, both = (
        gradient.descend(process, base, missing_shift, iterations=80, lr=0.05, network_timesteps=shifts)[0]
        for shifts in (False, True)
    )
    assert own.network_timesteps is None and both.network_timesteps is not None
    assert float(missing_shift(both, 0)) < 0.2 * float(missing_shift(own, 0)) < 0.2 * float(missing_shift(base, 0))


def test_a_gradient_that_is_not_finite_is_an_error() -> None:
    process = PROCESSES[1]
    base = schedules.build(process, 3, "karras")
    with pytest.raises(FloatingPointError, match="iteration 0"):
        gradient.descend(process, base, lambda s, i: missing(s, i) * float("nan"), iterations=3, lr=0.1)
