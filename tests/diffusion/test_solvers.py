from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from gaussian_oracle import PROCESSES, Gaussian, cosine, stable_diffusion, zero_terminal_snr
from torch import Tensor

from redif_ray.diffusion import noise, solvers
from redif_ray.diffusion.levels import FlowMatching, Level, NoiseProcess, VariancePreserving
from redif_ray.diffusion.noise import Stream
from redif_ray.diffusion.schedules import Schedule, build, explicit
from redif_ray.diffusion.transition import Prediction, exploration_std, transition_mean

F64 = torch.float64


def normals(*shape: int) -> Tensor:
    return torch.from_numpy(noise.normal(math.prod(shape), Stream.TRAIN, seed=0)).double().reshape(shape)


class Bent(Gaussian):
    """Not linear in x: two modes at +-c / sqrt(2), each with half the variance; x0_hat = E[x0 | x] exactly."""

    def __call__(self, x: Tensor, level: Level) -> Prediction:
        self.timesteps.append(float(level.timestep))
        mode, spread = self.c / math.sqrt(2), self.c**2 / 2
        total = level.alpha**2 * spread + level.sigma**2
        gain = level.alpha * spread / total
        lean = torch.tanh(level.alpha * mode * x / total)
        x0 = gain * x + (1 - gain * level.alpha) * mode * lean
        return Prediction(x0, (x - level.alpha * x0) / level.sigma)


def between(process: NoiseProcess, steps: int, low: float, high: float) -> Schedule:
    """Uniform in half log-SNR from `low` to a terminal level that still has noise, so that orders show."""
    level = process.nearest(torch.linspace(low, high, steps + 1, dtype=F64))
    return Schedule(level, "between")


@pytest.mark.parametrize("process", [FlowMatching(), PROCESSES["ve"]])
@pytest.mark.parametrize("solver, order", [("euler", 1), ("heun", 2), ("dpmpp_2m", 2)])
def test_convergence_order_on_gaussian_data(solver: str, order: int, process: NoiseProcess) -> None:
    """The exact ODE solution rescales x; the error's slope in N is the solver's order."""
    network, x, errors = Gaussian(0.5), normals(4, 2), []
    for steps in (128, 256):
        schedule = between(process, steps, -2.5, 2.5)
        start = x * network.marginal_std(schedule[0])
        end = network.exact(start, schedule[0], schedule[steps])
        errors.append(float((solvers.SOLVERS[solver](network, start, schedule) - end).abs().max()))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.1)


@pytest.mark.parametrize("solver", solvers.SOLVERS)
@pytest.mark.parametrize("name", PROCESSES)
def test_many_steps_reach_the_data(name: str, solver: str) -> None:
    """From pure noise (alpha_T = 0 or nearly) to the terminal level, the samples get the data's std."""
    schedule, network = build(PROCESSES[name], 100, "karras"), Gaussian(0.5)
    out = solvers.sample(solver, network, normals(3, 5), schedule)
    torch.testing.assert_close(out, 0.5 * normals(3, 5), rtol=0.12 if solver == "euler" else 0.02, atol=1e-3)


def test_heun_stays_bounded_where_alpha_nearly_vanishes() -> None:
    """Averaging eps_hat over sigma / alpha (20,000 at the start of a cosine schedule) would be far off."""
    for process in (cosine(), zero_terminal_snr()):
        out = solvers.sample("heun", Gaussian(0.5), normals(3, 5), build(process, 20, "uniform_trailing"))
        torch.testing.assert_close(out, 0.5 * normals(3, 5), rtol=0.1, atol=1e-3)


@pytest.mark.parametrize("alpha_one", [True, False])
def test_euler_is_ddim_over_a_whole_run(alpha_one: bool) -> None:
    scheduler = DDIMScheduler(
        beta_schedule="squaredcos_cap_v2", clip_sample=False, set_alpha_to_one=alpha_one, timestep_spacing="trailing"
    )
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    scheduler.final_alpha_cumprod = torch.tensor(1.0, dtype=F64) if alpha_one else scheduler.alphas_cumprod[0]
    scheduler.set_timesteps(8)
    process = VariancePreserving(scheduler.alphas_cumprod, final_alpha_cumprod=float(scheduler.final_alpha_cumprod))
    schedule, network = build(process, 8, "uniform_trailing"), Bent(0.6)
    ours = solvers.sample("euler", network, normals(2, 9), schedule)
    theirs = solvers.initial(schedule, normals(2, 9))
    for i, t in enumerate(scheduler.timesteps):
        theirs = scheduler.step(network(theirs, schedule[i]).eps, t, theirs, eta=0.0).prev_sample
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    "timesteps",
    [
        [999, 749, 499, 249],
        [999, 900, 640, 333, 100, 20],
        [700, 300],
        [500],
        list(range(980, 0, -49)),
    ],
)
def test_dpmpp_2m_is_diffusers(timesteps: list[int]) -> None:
    scheduler = DPMSolverMultistepScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        algorithm_type="dpmsolver++",
        solver_order=2,
        use_lu_lambdas=False,
        final_sigmas_type="zero",
        solver_type="midpoint",
    )
    scheduler.set_timesteps(timesteps=timesteps)
    schedule, network = explicit(stable_diffusion(), timesteps), Bent(0.6)
    ours = solvers.sample("dpmpp_2m", network, normals(2, 9), schedule)
    theirs = solvers.initial(schedule, normals(2, 9)).float()
    for i, t in enumerate(scheduler.timesteps):
        eps = network(theirs.double(), schedule[i]).eps.float()
        theirs = scheduler.step(eps, t, theirs).prev_sample
    torch.testing.assert_close(ours.float(), theirs, rtol=3e-4, atol=3e-4)


@pytest.mark.parametrize("name", PROCESSES)
def test_one_step_is_x0_for_every_solver(name: str) -> None:
    schedule, network = build(PROCESSES[name], 1, "karras"), Bent(0.6)
    x = solvers.initial(schedule, normals(2, 3))
    for solver in solvers.SOLVERS:
        torch.testing.assert_close(solvers.sample(solver, network, normals(2, 3), schedule), network(x, schedule[0]).x0)


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("solver", solvers.SOLVERS)
def test_network_calls_and_where_they_happen(solver: str, steps: int) -> None:
    network, schedule = Bent(0.6), build(stable_diffusion(), steps, "uniform_trailing")
    solvers.sample(solver, network, normals(2, 3), schedule)
    calls = 2 * steps - 1 if solver == "heun" else steps
    assert len(network.timesteps) == solvers.network_calls(solver, steps) == calls
    assert set(network.timesteps) == set(schedule.levels.timestep[:-1].tolist())  # never at the terminal level


def test_initial_is_the_noise_of_the_first_level() -> None:
    unit = normals(2, 3).float()
    for schedule in (build(PROCESSES["ve"], 4, "karras"), build(stable_diffusion(), 4, "uniform_leading")):
        assert solvers.initial(schedule, unit).dtype == torch.float32
        torch.testing.assert_close(solvers.initial(schedule, unit), float(schedule[0].sigma) * unit)


def test_unknown_solvers_are_named() -> None:
    for call in (
        lambda: solvers.network_calls("ddim", 4),
        lambda: solvers.sample("ddim", Gaussian(1), normals(1, 1), build(FlowMatching(), 1, "karras")),
    ):
        with pytest.raises(ValueError, match="'ddim' is unknown; expected one of euler, heun, dpmpp_2m"):
            call()


def test_what_is_not_finite_is_reported_with_its_step() -> None:
    class Breaks(Gaussian):
        def __call__(self, x: Tensor, level: Level) -> Prediction:
            good = super().__call__(x, level)
            return Prediction(good.x0 * (math.nan if level.timestep == 499 else 1), good.eps)

    with pytest.raises(FloatingPointError, match=r"network call 3 \(timestep 499\)"):
        solvers.sample("euler", Breaks(1), normals(1, 2), build(stable_diffusion(), 4, "uniform_trailing"))

    def epsilon_model(x: Tensor, level: Level) -> Prediction:
        return Prediction((x - level.sigma * x) / level.alpha, x)

    with pytest.raises(FloatingPointError, match=r"timestep 999.*epsilon"):
        solvers.sample("dpmpp_2m", epsilon_model, normals(1, 2), build(zero_terminal_snr(), 4, "uniform_trailing"))

    def huge(x: Tensor, level: Level) -> Prediction:
        return Prediction(torch.full_like(x, 6e4), torch.full_like(x, 6e4))

    with pytest.raises(FloatingPointError, match=r"overflows torch\.float16"):
        solvers.sample("euler", huge, torch.ones(1, 1).half(), between(stable_diffusion(), 2, -1, 0))


def test_gradients_flow_through_a_whole_run() -> None:
    schedule = build(FlowMatching(), 3, "uniform_trailing")
    for solver in solvers.SOLVERS:
        scale = torch.tensor(0.5, dtype=F64, requires_grad=True)

        def network(x: Tensor, level: Level, scale: Tensor = scale) -> Prediction:
            x0 = scale * level.alpha * x
            return Prediction(x0, (x - level.alpha * x0) / level.sigma)

        def run(value: float, solver: str = solver) -> float:
            fixed = torch.tensor(value, dtype=F64)
            out = solvers.sample(solver, lambda x, t: network(x, t, fixed), normals(2, 3), schedule)
            return float(out.square().sum())

        solvers.sample(solver, network, normals(2, 3), schedule).square().sum().backward()
        assert scale.grad is not None
        assert float(scale.grad) == pytest.approx((run(0.5 + 1e-5) - run(0.5 - 1e-5)) / 2e-5, rel=1e-6)


@pytest.mark.parametrize("eta, kind", [(0.0, "posterior"), (0.7, "posterior"), (0.4, "cps")])
@pytest.mark.parametrize("i", range(4))
@pytest.mark.parametrize("name", PROCESSES)
def test_one_substep_is_the_teachers_transition_mean(name: str, i: int, eta: float, kind: str) -> None:
    schedule, network = build(PROCESSES[name], 4, "karras"), Bent(0.6)
    t, s = schedule[i], schedule[i + 1]
    x = network.marginal_std(t) * normals(3, 4)
    std = schedule.stds(eta, kind, last_step=True)[i]
    mean = transition_mean(network(x, t), s, std)
    torch.testing.assert_close(solvers.jump(network, x, PROCESSES[name], t, s, std, 1), mean, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("substeps", [2, 5])
def test_a_jump_is_ddim_to_the_matched_level_then_a_rescaling(substeps: int) -> None:
    """Written out on the VP circle: d has alpha_d = 1 / sqrt(1 + r^2), r = sqrt(sigma_s^2 - S^2) / alpha_s."""
    process, network = stable_diffusion(), Bent(0.6)
    t, s = process.at(torch.tensor(899)), process.at(torch.tensor(499))
    std = exploration_std(t, s, eta=0.8)
    r = math.sqrt(float(s.sigma) ** 2 - float(std) ** 2) / float(s.alpha)
    d_alpha, d_sigma = 1 / math.sqrt(1 + r * r), r / math.sqrt(1 + r * r)
    nearest = int(np.abs(process.alphas_cumprod.numpy() - d_alpha**2).argmin())
    x = start = network.marginal_std(t) * normals(3, 4)
    times = [math.ceil(899 - (899 - nearest) * i / substeps) for i in range(substeps)]
    for now, after in zip(times, [*times[1:], None], strict=True):
        level = process.at(torch.tensor(now))
        prediction = network(x, level)
        a = d_alpha if after is None else math.sqrt(process.alphas_cumprod[after])
        b = d_sigma if after is None else math.sqrt(1 - process.alphas_cumprod[after])
        x = a * prediction.x0 + b * prediction.eps
    expected = x * float(s.alpha) / d_alpha
    network.timesteps.clear()
    ours = solvers.jump(network, start, process, t, s, std, substeps)
    torch.testing.assert_close(ours, expected, rtol=1e-7, atol=1e-7)
    assert network.timesteps == times


@pytest.mark.parametrize("name", PROCESSES)
def test_a_fine_jump_carries_the_means_noise(name: str) -> None:
    """Gaussian data: the exact jump's variance is alpha_s^2 c^2 + sigma_s^2 - S^2; with S z it is level s's."""
    schedule, network = build(PROCESSES[name], 4, "karras"), Gaussian(0.5)
    stds = schedule.stds(0.9, "posterior", last_step=False)
    t, s, std = schedule[2], schedule[3], stds[2]
    x = network.marginal_std(t) * normals(3, 4)
    out = solvers.jump(network, x, PROCESSES[name], t, s, std, 200)
    expected = torch.sqrt(s.alpha**2 * 0.25 + s.sigma**2 - std**2) * normals(3, 4)
    torch.testing.assert_close(out, expected, rtol=0.03, atol=1e-3)


def test_a_jump_to_the_terminal_level_ends_at_the_data() -> None:
    process, network = stable_diffusion(), Gaussian(0.5)
    t = process.at(torch.tensor(249))
    x = network.marginal_std(t) * normals(3, 4)
    for std in (0.0, 0.05):  # a last step that explores keeps its mean
        out = solvers.jump(network, x, process, t, process.terminal(), torch.tensor(std, dtype=F64), 250)
        torch.testing.assert_close(out, 0.5 * normals(3, 4), rtol=0.05, atol=1e-3)


@pytest.mark.parametrize("name", PROCESSES)
def test_a_jump_by_dpmpp_2m_ends_closer_with_as_many_calls(name: str) -> None:
    """The last substep is of second order too, unless it leads to the terminal level."""
    process, network, none = PROCESSES[name], Bent(0.6), torch.zeros((), dtype=F64)
    schedule = build(process, 4, "karras")
    t, s = schedule[2], schedule[3]
    x = network.marginal_std(t) * normals(3, 4)
    exact = solvers.jump(network, x, process, t, s, none, 1000)

    def off(solver: solvers.JumpSolver) -> float:
        network.timesteps.clear()
        return float((solvers.jump(network, x, process, t, s, none, 6, solver) - exact).abs().max())

    by_euler, calls = off("euler"), list(network.timesteps)
    assert off("dpmpp_2m") < 0.4 * by_euler and network.timesteps == calls
    end, ends = process.terminal(), dict[str, float]()
    fine = solvers.jump(network, x, process, t, end, none, 1000)
    for solver in ("euler", "dpmpp_2m"):
        ends[solver] = float((solvers.jump(network, x, process, t, end, none, 12, solver) - fine).abs().max())
    print(name, ends)
    assert ends["dpmpp_2m"] < ends["euler"]
    once = [solvers.jump(network, x, process, t, s, none, 1, solver) for solver in ("euler", "dpmpp_2m")]
    torch.testing.assert_close(*once, rtol=1e-12, atol=1e-12)
