from __future__ import annotations

import pytest
import torch

from redif_ray.adaptive import denoising
from redif_ray.diffusion import noise, schedules, solvers
from redif_ray.diffusion.levels import FlowMatching, Level, NoiseProcess, VarianceExploding, VariancePreserving, like
from redif_ray.diffusion.noise import Stream
from redif_ray.diffusion.schedules import Schedule
from redif_ray.diffusion.solvers import Predict
from redif_ray.diffusion.transition import Prediction
from redif_ray.models.registry import load_model

BETAS = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
PROCESSES: list[NoiseProcess] = [
    VariancePreserving((1 - BETAS).cumprod(0)),
    VarianceExploding(sigma_max=20),
    FlowMatching(),
]
IDS = ["vp", "ve", "flow"]


def bent(x: torch.Tensor, t: Level) -> Prediction:
    """No straight way leads to what this predicts."""
    x0 = torch.tanh(like(t.alpha, x) * x / like(t.alpha**2 + t.sigma**2, x) + 0.3)
    return Prediction(x0, (x - like(t.alpha, x) * x0) / like(t.sigma, x))


def followed(process: NoiseProcess, predict: Predict, unit: torch.Tensor, schedule: Schedule) -> denoising.State:
    state = denoising.call(predict, denoising.start(unit, schedule[0]))
    for fraction in denoising.fractions(process, schedule):
        state = denoising.call(predict, denoising.move(process, state, fraction.expand(len(unit))))
    return state


@pytest.mark.parametrize("name", ["karras", "log_snr_linear"])
@pytest.mark.parametrize("steps", [2, 5])
@pytest.mark.parametrize("process", PROCESSES, ids=IDS)
def test_a_static_schedule_makes_the_images_of_euler(process: NoiseProcess, steps: int, name: str) -> None:
    schedule = schedules.build(process, steps, name)
    unit = noise.initial_noise(range(4), (1, 4, 4), seed=0, stream=Stream.SEARCH)
    state = followed(process, bent, unit, schedule)
    assert state.calls.tolist() == [steps] * 4
    expected = solvers.sample("euler", bent, unit, schedule)
    assert torch.allclose(denoising.stop(process, state), expected, atol=1e-5)


@torch.no_grad()
def test_so_it_does_with_a_real_network() -> None:
    model = load_model("fashion-mnist")
    schedule = schedules.explicit(model.process, (999.0, 888.0, 518.0))
    unit = noise.initial_noise(range(3), model.latent_shape, seed=0, stream=Stream.SEARCH)
    predict = model.predictor(model.encode([1, 2, 3]), 1.0)
    state = followed(model.process, predict, unit, schedule)
    expected = solvers.sample("euler", predict, unit, schedule)
    assert state.level.timestep.tolist() == [518.0] * 3
    assert torch.allclose(denoising.stop(model.process, state), expected, atol=1e-5)


@pytest.mark.parametrize("process", PROCESSES, ids=IDS)
def test_every_move_gets_ahead_and_there_is_an_end(process: NoiseProcess) -> None:
    unit = noise.initial_noise(range(3), (1, 4, 4), seed=0, stream=Stream.SEARCH)
    state = denoising.call(bent, denoising.start(unit, process.noisiest()))
    fraction = torch.tensor([0.001, 0.5, 0.999])
    for _ in range(3):
        before, left = state.level.half_log_snr, ~denoising.exhausted(process, state.level)
        state = denoising.call(bent, denoising.move(process, state, fraction))
        assert bool((state.level.half_log_snr > before)[left].all())
    assert not bool(denoising.exhausted(process, state.level)[0])
    while not bool(denoising.exhausted(process, state.level)[2]):
        state = denoising.call(bent, denoising.move(process, state, torch.full((3,), 0.999)))
    assert bool((denoising.position(process, state.level) <= 1).all())


def test_images_at_levels_of_their_own_do_not_know_of_each_other() -> None:
    process = PROCESSES[0]
    unit = noise.initial_noise(range(3), (1, 4, 4), seed=0, stream=Stream.SEARCH)
    state = denoising.call(bent, denoising.start(unit, process.noisiest()))
    fraction = torch.tensor([0.3, 0.6, 0.8])
    both = denoising.call(bent, denoising.move(process, state, fraction))
    one = denoising.call(bent, denoising.move(process, state.take(torch.tensor([1])), fraction[1:2]))
    assert torch.equal(both.take(torch.tensor([1])).prediction.x0, one.prediction.x0)
    put = state.put(torch.tensor([1]), one)
    assert torch.equal(put.prediction.eps[1], one.prediction.eps[0])
    assert torch.equal(put.level.alpha[[0, 2]], state.level.alpha[[0, 2]])
    assert put.calls.tolist() == [1, 2, 1]


def test_a_network_that_fails_is_named() -> None:
    def broken(x: torch.Tensor, _: Level) -> Prediction:
        return Prediction(x / 0, x)

    with pytest.raises(FloatingPointError, match="timesteps 999 is not finite"):
        denoising.call(broken, denoising.start(torch.ones(1, 1, 2, 2), PROCESSES[0].noisiest()))
