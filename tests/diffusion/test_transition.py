from __future__ import annotations

import math

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler
from gaussian_oracle import PROCESSES, Gaussian, stable_diffusion
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Normal

from redif_ray.diffusion import noise
from redif_ray.diffusion.levels import FlowMatching, Level, VarianceExploding, VariancePreserving
from redif_ray.diffusion.noise import Stream
from redif_ray.diffusion.schedules import build, explicit
from redif_ray.diffusion.transition import Prediction, exploration_std, log_prob, transition_mean

F64 = torch.float64


def normals(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(noise.normal(math.prod(shape), Stream.TRAIN, seed=seed)).double().reshape(shape)


@pytest.mark.parametrize("alpha_one", [True, False])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_posterior_is_ddim(eta: float, alpha_one: bool, kind: str) -> None:
    """diffusers' DDIMScheduler.step, on grids where its stride T // N is exact."""
    scheduler = DDIMScheduler(
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=alpha_one,
        timestep_spacing="trailing",
        prediction_type=kind,
    )
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    scheduler.final_alpha_cumprod = scheduler.alphas_cumprod[0] if not alpha_one else torch.tensor(1.0, dtype=F64)
    scheduler.set_timesteps(5)
    process = VariancePreserving(scheduler.alphas_cumprod, final_alpha_cumprod=float(scheduler.final_alpha_cumprod))
    schedule = build(process, 5, "uniform_trailing")
    assert schedule.levels.timestep[:-1].tolist() == scheduler.timesteps.tolist()
    for i, t in enumerate(scheduler.timesteps):
        x, output, z = normals(2, 7, seed=i), normals(2, 7, seed=10 + i), normals(2, 7, seed=20 + i)
        here, after = schedule[i], schedule[i + 1]
        if kind == "epsilon":
            prediction = Prediction((x - here.sigma * output) / here.alpha, output)
        else:
            prediction = Prediction(here.alpha * x - here.sigma * output, here.alpha * output + here.sigma * x)
        std = exploration_std(here, after, eta=eta)
        ours = transition_mean(prediction, after, std) + std * z
        theirs = scheduler.step(output, t, x, eta=eta, variance_noise=z).prev_sample
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_posterior_is_the_ancestral_euler_step_of_ve(eta: float) -> None:
    """sigma_up and sigma_down of k-diffusion's ancestral sampling."""
    t, s = VarianceExploding().at(torch.tensor(9.0)), VarianceExploding().at(torch.tensor(2.5))
    x, x0, z = 9 * normals(3, 5), normals(3, 5, seed=1), normals(3, 5, seed=2)
    up = min(2.5, eta * math.sqrt(2.5**2 * (9.0**2 - 2.5**2) / 9.0**2))
    down = math.sqrt(2.5**2 - up**2)
    expected = x + (x - x0) / 9.0 * (down - 9.0) + up * z
    std = exploration_std(t, s, eta=eta)
    assert float(std) == pytest.approx(up, rel=1e-12)
    mean = transition_mean(Prediction(x0, (x - x0) / 9.0), s, std)
    torch.testing.assert_close(mean + std * z, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_cps_is_flow_cps(eta: float) -> None:
    """x_s = (1 - s) x0 + s cos(eta pi / 2) eps + s sin(eta pi / 2) z (arXiv 2509.05952)."""
    t, s = FlowMatching(scale=1).at(torch.tensor(0.8)), FlowMatching(scale=1).at(torch.tensor(0.3))
    x0, eps, z = (normals(2, 6, seed=i) for i in range(3))
    angle = eta * math.pi / 2
    std = exploration_std(t, s, eta=eta, kind="cps")
    expected = 0.7 * x0 + 0.3 * math.cos(angle) * eps + 0.3 * math.sin(angle) * z
    torch.testing.assert_close(transition_mean(Prediction(x0, eps), s, std) + std * z, expected, rtol=1e-7, atol=1e-7)


@settings(deadline=None)
@given(
    st.sampled_from(sorted(PROCESSES)),
    st.floats(0, 1),
    st.floats(0, 1),
    st.floats(0, 1),
    st.sampled_from(["posterior", "cps"]),
)
def test_the_true_x0_and_eps_keep_the_marginal(name: str, a: float, b: float, eta: float, kind: str) -> None:
    """mean = alpha_s x0 + c eps with c^2 + S^2 = sigma_s^2, so the noise is level s's for any two levels."""
    process = PROCESSES[name]
    low, high = process.span
    t, s = (process.nearest(torch.tensor(low + f * (high - low))) for f in sorted((a, b)))
    std = exploration_std(t, s, eta=eta, kind=kind)
    zero, one = torch.zeros(1, dtype=F64), torch.ones(1, dtype=F64)
    carried = transition_mean(Prediction(zero, one), s, std)
    assert float(carried**2 + std**2) == pytest.approx(float(s.sigma**2), rel=1e-9)
    assert float(transition_mean(Prediction(one, zero), s, std)) == float(s.alpha)


@pytest.mark.parametrize("kind", ["posterior", "cps"])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("name", PROCESSES)
def test_the_variance_of_gaussian_data_follows_its_recursion(name: str, eta: float, kind: str) -> None:
    """Monte Carlo with the exact network against linear algebra, over four steps from x_T = sigma_T eps."""
    schedule, network = build(PROCESSES[name], 4, "karras"), Gaussian(0.5)
    stds = schedule.stds(eta, kind, last_step=False)
    n = 40_000
    x = schedule[0].sigma * normals(n, 1, seed=1)
    for i in range(4):
        x = transition_mean(network(x, schedule[i]), schedule[i + 1], stds[i]) + stds[i] * normals(n, 1, seed=2 + i)
    expected = network.final_std(schedule, stds)
    assert float(x.std()) == pytest.approx(expected, rel=4 / math.sqrt(2 * n))  # four standard errors


@pytest.mark.parametrize(
    "schedule, share",
    [
        (build(stable_diffusion(), 4, "uniform_trailing"), 0.54),
        (build(VarianceExploding(), 4, "karras"), 0.47),
        (explicit(FlowMatching(), [1000, 900, 750, 500]), 0.42),  # uniform, shifted by 3
    ],
)
def test_four_deterministic_steps_lose_variance(schedule, share: float) -> None:
    network = Gaussian(0.5)
    assert network.final_std(schedule, torch.zeros(4)) / 0.5 == pytest.approx(share, abs=0.006)


def test_posterior_converges_to_the_data_and_cps_does_not() -> None:
    network = Gaussian(0.5)

    def missing(kind: str, steps: int) -> float:
        schedule = build(FlowMatching(), steps, "uniform_trailing")
        return 1 - network.final_std(schedule, schedule.stds(0.5, kind, last_step=False)) / 0.5

    assert missing("posterior", 100) / missing("posterior", 400) == pytest.approx(4, abs=0.2)  # O(1 / N)
    assert missing("cps", 100) / missing("cps", 400) < 1.2


def test_no_exploration_is_the_euler_discrete_scheduler() -> None:
    """EulerDiscreteScheduler(timesteps=...) works in x / alpha with sigma / alpha; ours is what gets exported there."""
    timesteps = [999, 740, 480, 133]
    scheduler = EulerDiscreteScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, timestep_spacing="trailing"
    )
    scheduler.set_timesteps(timesteps=timesteps)
    schedule, network = explicit(stable_diffusion(), timesteps), Gaussian(0.7)
    ours = schedule[0].sigma * normals(2, 9)
    theirs = (ours / schedule[0].alpha).float()
    for i, t in enumerate(scheduler.timesteps):
        eps = network(scheduler.scale_model_input(theirs, t), schedule[i]).eps
        theirs = scheduler.step(eps, t, theirs).prev_sample
        ours = transition_mean(network(ours, schedule[i]), schedule[i + 1], torch.zeros((), dtype=F64))
    torch.testing.assert_close(ours.float(), theirs, rtol=2e-5, atol=4e-6)


def test_eta_out_of_range_is_refused() -> None:
    level = FlowMatching().at(torch.tensor(500.0))
    for eta in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="eta="):
            exploration_std(level, level, eta=eta)


@settings(deadline=None)
@given(st.floats(0.002, 3), st.floats(0.002, 3), st.integers(0, 100))
def test_log_prob_is_the_mean_of_normal_log_densities(std_a: float, std_b: float, seed: int) -> None:
    std = torch.tensor([std_a, std_b], dtype=F64)
    mean, z = normals(2, 3, 4, seed=seed), normals(2, 3, 4, seed=seed + 1)
    x = mean + std[:, None, None] * z
    expected = Normal(mean.float().double(), std[:, None, None]).log_prob(x.float().double()).flatten(1).mean(1)
    ours = log_prob(x, mean, std)
    assert ours.dtype == torch.float32 and ours.shape == (2,)
    torch.testing.assert_close(ours.double(), expected, rtol=1e-5, atol=1e-5)


def test_log_prob_takes_one_std_for_all_and_has_the_score_for_a_gradient() -> None:
    x, mean = normals(3, 8).float(), normals(3, 8, seed=1).float().requires_grad_()
    value = log_prob(x, mean, torch.tensor(0.3, dtype=F64))
    torch.testing.assert_close(value, log_prob(x, mean, torch.full((3,), 0.3, dtype=F64)))
    value.sum().backward()
    torch.testing.assert_close(mean.grad, (x - mean.detach()) / 0.3**2 / 8)


def test_log_prob_of_a_deterministic_step_is_refused() -> None:
    with pytest.raises(ValueError, match="S > 0"):
        log_prob(torch.zeros(2, 3), torch.zeros(2, 3), torch.tensor([0.1, 0.0]))


def test_the_mean_keeps_the_dtype_of_the_prediction() -> None:
    level = Level(*(torch.tensor([v, v], dtype=F64) for v in (0.6, 0.8, 1.0)))
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.ones(2, 3, dtype=dtype)
        assert transition_mean(Prediction(x, x), level, torch.zeros(2, dtype=F64)).dtype == dtype
