from __future__ import annotations

import math

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_utils import AysSchedules
from gaussian_oracle import PROCESSES, stable_diffusion
from hypothesis import given, settings
from hypothesis import strategies as st

from redif_ray.diffusion.levels import FlowMatching, Level, VarianceExploding, VariancePreserving
from redif_ray.diffusion.schedules import AYS, NAMES, Schedule, build, explicit, shifted, sub_schedule, warp, warped

F64 = torch.float64
APPLIES = [
    (process, name)
    for process in PROCESSES
    for name in NAMES
    if not (process == "ve" and name.startswith("uniform"))
    and not (process == "flow" and name == "uniform_leading")
    and not (process != "flow" and name == "flow_default")
    and name != "ays_svd"  # only for processes as wide as it is: see below
    and not (process == "ve" and name.startswith("ays"))
]
LOGIT = st.floats(allow_nan=False, allow_infinity=False)


def check(schedule: Schedule, process, steps: int) -> None:
    assert schedule.steps == steps
    rising = schedule.levels.half_log_snr
    assert bool((rising[1:] > rising[:-1]).all()) and bool(torch.isfinite(rising[1:-1]).all())
    end = process.terminal()
    assert schedule[steps].alpha == end.alpha and schedule[steps].sigma == end.sigma
    known = process.at(schedule.levels.timestep[:-1])  # (alpha, sigma) are those of the timestep the network is told
    assert torch.equal(known.alpha, schedule.levels.alpha[:-1]) and torch.equal(known.sigma, schedule.levels.sigma[:-1])


@pytest.mark.parametrize("process, name", APPLIES)
def test_every_schedule_rises_between_exact_ends(process: str, name: str) -> None:
    for steps in range(1, 33):
        schedule = build(PROCESSES[process], steps, name)
        check(schedule, PROCESSES[process], steps)
        if name != "uniform_leading":
            first = PROCESSES[process].noisiest()
            assert schedule[0].sigma == first.sigma and schedule[0].alpha == first.alpha


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(APPLIES), st.integers(1, 32).flatmap(lambda n: st.lists(LOGIT, min_size=n, max_size=n)))
def test_any_finite_logits_give_a_schedule(case: tuple[str, str], logits: list[float]) -> None:
    process, base = PROCESSES[case[0]], build(PROCESSES[case[0]], len(logits), case[1])
    schedule = warped(process, base, torch.tensor(logits, dtype=F64))
    check(schedule, process, len(logits))
    assert schedule[0].timestep == base[0].timestep


@settings(deadline=None)
@given(st.lists(st.floats(-3, 3), min_size=1, max_size=12))
def test_warp_reweights_increments(logits: list[float]) -> None:
    """Ratios of increments change by exp(z_i - z_j); the ends stay."""
    grid = torch.cumsum(torch.arange(len(logits) + 1, dtype=F64) + 0.5, 0) - 3
    bent, z = warp(grid, torch.tensor(logits, dtype=F64)), torch.tensor(logits, dtype=F64)
    gain = torch.log(bent.diff() / grid.diff()) - z
    torch.testing.assert_close(gain, gain[:1].expand_as(gain), rtol=0, atol=1e-9)
    assert bent[0] == grid[0] and bent[-1] == grid[-1]


def test_zero_logits_are_the_base() -> None:
    grid = torch.tensor([-2.0, 0.1, 0.2, 3.7], dtype=F64)
    assert torch.equal(warp(grid, torch.zeros(3)), grid)
    for bad in ([0.0, float("nan"), 0.0], [0.0, 0.0], [0.0, math.inf, 0.0]):
        with pytest.raises(ValueError, match="expected 3 finite numbers"):
            warp(grid, torch.tensor(bad))
    for falls in (grid.flip(0), grid / 0):
        with pytest.raises(ValueError, match="grid that rises"):
            warp(falls, torch.ones(3))


@pytest.mark.parametrize(
    "name, tilt, bow, error",
    [
        ("ays_sd15", -0.26, 1.30, 0.05),
        ("ays_sdxl", -0.45, 0.65, 0.07),
        ("ays_svd", -0.88, 1.27, 0.24),
    ],
)
def test_tilt_and_bow_of_karras_reach_ays(name: str, tilt: float, bow: float, error: float) -> None:
    """Fits made elsewhere, over Karras' grid of the table's ten evaluated levels, sigma_max to the tenth sigma."""
    table = torch.tensor(AYS[name][:-1], dtype=F64)
    karras = EulerDiscreteScheduler()._convert_to_karras(table, num_inference_steps=10)
    u = torch.linspace(-8 / 9, 8 / 9, 9, dtype=F64)
    sigma = torch.exp(-warp(-torch.log(torch.as_tensor(karras)), tilt * u + bow * u**2))
    assert float((sigma / table - 1).abs().max()) < error


@pytest.mark.parametrize("tilt, bow", [(0.4, 0.0), (0.0, -0.7), (-0.26, 1.3)])
def test_build_bends_by_tilt_and_bow_at_midpoints(tilt: float, bow: float) -> None:
    base, bent = (build(VarianceExploding(), 4, "log_snr_linear", **k) for k in ({}, {"tilt": tilt, "bow": bow}))
    step = [math.exp(tilt * u + bow * u * u) for u in (-0.75, -0.25, 0.25, 0.75)]
    low, high = VarianceExploding().span
    expected = [low + (high - low) * sum(step[:i]) / sum(step) for i in range(1, 4)]
    assert bent.levels.half_log_snr[1:-1].tolist() == pytest.approx(expected, rel=1e-12)
    assert bent[0].sigma == base[0].sigma == 80


@pytest.mark.parametrize(
    "name, table, timesteps",
    [
        ("ays_sd15", "StableDiffusionSigmas", "StableDiffusionTimesteps"),
        ("ays_sdxl", "StableDiffusionXLSigmas", "StableDiffusionXLTimesteps"),
        ("ays_svd", "StableDiffusionVideoSigmas", None),
    ],
)
def test_ays_tables_are_the_published_ones(name: str, table: str, timesteps: str | None) -> None:
    assert list(AYS[name][:-1]) == AysSchedules[table][:-1]  # diffusers keeps 0 in place of the last
    process = VarianceExploding(AYS[name][-1], AYS[name][0])
    ten = build(process, 10, name).levels.sigma
    torch.testing.assert_close(ten[:-1], torch.tensor(AysSchedules[table][:-1], dtype=F64), rtol=1e-12, atol=0)
    five = build(process, 5, name).levels.sigma[:-1]
    torch.testing.assert_close(five, ten[:-1:2], rtol=1e-12, atol=0)
    between = build(process, 20, name).levels.sigma  # odd ones: the geometric mean of their neighbours
    torch.testing.assert_close(between[1:-2:2], torch.sqrt(between[:-3:2] * between[2:-1:2]), rtol=1e-12, atol=0)
    if timesteps is not None:
        ours = build(stable_diffusion(), 10, name).levels.timestep[:-1]
        assert max(abs(a - b) for a, b in zip(ours.tolist(), AysSchedules[timesteps], strict=True)) <= 1


@pytest.mark.parametrize("steps", [*range(1, 33), 50, 333, 1000])
def test_trailing_timesteps_are_diffusers(steps: int) -> None:
    scheduler = DDIMScheduler(timestep_spacing="trailing")
    scheduler.set_timesteps(steps)
    ours = build(stable_diffusion(), steps, "uniform_trailing")
    assert ours.levels.timestep[:-1].tolist() == scheduler.timesteps.tolist()


@pytest.mark.parametrize("steps", [1, 4, 5, 7, 30, 50])
def test_leading_timesteps_are_diffusers(steps: int) -> None:
    scheduler = DDIMScheduler(timestep_spacing="leading", steps_offset=1)
    scheduler.set_timesteps(steps)
    ours = build(stable_diffusion(), steps, "uniform_leading")
    assert ours.levels.timestep[:-1].tolist() == scheduler.timesteps.tolist()


def test_uniform_flow_and_log_snr_grids_by_hand() -> None:
    assert build(FlowMatching(), 4, "uniform_trailing").levels.sigma.tolist() == [1, 0.75, 0.5, 0.25, 0]
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(sigmas=[1, 0.75, 0.5, 0.25])
    shifted = build(FlowMatching(shift=3.0), 4, "uniform_trailing").levels
    torch.testing.assert_close(shifted.sigma.float(), scheduler.sigmas)
    torch.testing.assert_close(shifted.timestep[:-1].float(), scheduler.timesteps)
    sigma = build(VarianceExploding(0.01, 100), 4, "log_snr_linear").levels.sigma
    assert sigma.tolist() == pytest.approx([100, 10, 1, 0.1, 0])
    assert torch.equal(build(VarianceExploding(0.01, 100), 4, "exponential").levels.sigma, sigma)


@pytest.mark.parametrize("steps", [1, 4, 28])
def test_flow_default_is_diffusers_without_sigmas(steps: int) -> None:
    """Stable Diffusion 3 is sampled so by default."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(steps)
    ours = build(FlowMatching(shift=3.0), steps, "flow_default").levels
    torch.testing.assert_close(ours.sigma.float(), scheduler.sigmas, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("steps", [2, 4, 9])
def test_levels_shifted_by_size_and_stretched_are_diffusers(steps: int) -> None:
    uniform = [1 - i / steps for i in range(steps)]
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift_terminal=0.02)
    scheduler.set_timesteps(sigmas=uniform, mu=0.8 - 0.03 * steps)
    ours = build(FlowMatching(shift=math.exp(0.8), growth=-0.03, last=0.02), steps, "uniform_trailing").levels
    torch.testing.assert_close(ours.sigma.float(), scheduler.sigmas, rtol=1e-5, atol=1e-7)


def test_one_level_alone_is_pure_noise_and_is_not_stretched() -> None:
    assert build(FlowMatching(last=0.02), 1, "uniform_trailing").levels.sigma.tolist() == [1, 0]


def test_karras_is_diffusers_without_its_last_level() -> None:
    scheduler = EulerDiscreteScheduler()
    theirs = scheduler._convert_to_karras(torch.tensor([80.0, 0.002], dtype=F64), num_inference_steps=9)
    ours = build(VarianceExploding(), 8, "karras").levels.sigma
    assert ours[:-1].tolist() == pytest.approx(list(theirs[:-1]), rel=1e-9)


def test_levels_that_round_alike_move_apart() -> None:
    process = stable_diffusion()
    for steps in (64, 500, 1000):
        times = build(process, steps, "karras").levels.timestep[:-1]
        assert bool((times.diff() <= -1).all()) and times[0] == 999 and times[-1] >= 0


@pytest.mark.parametrize(
    "process, steps, name, message",
    [
        (stable_diffusion(), 4, "karas", "expected one of uniform_trailing"),
        (stable_diffusion(), 0, "karras", "steps=0"),
        (stable_diffusion(), 1001, "karras", "steps=1001"),
        (VarianceExploding(), 4, "uniform_trailing", "use karras"),
        (FlowMatching(), 4, "uniform_leading", "uniform_trailing"),
        (stable_diffusion(), 4, "flow_default", "exists for flow matching only"),
        (stable_diffusion(), 10, "ays_svd", "made for another process"),
        (VarianceExploding(0.2, 10), 10, "ays_sd15", "made for another process"),
    ],
)
def test_what_cannot_be_built_says_so(process, steps: int, name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(process, steps, name)


def test_explicit_levels() -> None:
    schedule = explicit(stable_diffusion(), [999, 400, 20])
    assert schedule.levels.timestep.tolist() == [999, 400, 20, 0] and schedule.steps == 3
    with pytest.raises(ValueError, match=r"levels 1 and 2 \(timesteps 20 and 400\)"):
        explicit(stable_diffusion(), [999, 20, 400])
    with pytest.raises(ValueError, match="levels 0 and 1"):
        explicit(FlowMatching(), [500, 500])
    with pytest.raises(ValueError, match="N >= 1"):
        explicit(FlowMatching(), [])
    with pytest.raises(ValueError, match="levels 2 and 3"):  # the terminal level is t = 0 already
        explicit(
            VariancePreserving(
                stable_diffusion().alphas_cumprod, final_alpha_cumprod=float(stable_diffusion().alphas_cumprod[0])
            ),
            [9, 5, 0],
        )


def test_a_level_that_is_not_a_number_is_refused() -> None:
    values = torch.tensor([0.0, float("nan"), 1.0], dtype=F64)
    with pytest.raises(ValueError, match="levels 0 and 1"):
        Schedule(Level(values, values.flip(0), values), "broken")


def moved(process, base: Schedule, *shifts: float) -> Schedule:
    return shifted(process, base, torch.tensor(shifts, dtype=F64))


def test_shifts_are_shares_of_the_way_to_the_neighbour() -> None:
    process = FlowMatching()
    base = explicit(process, [1000.0, 700.0, 400.0])
    grid = base.levels.half_log_snr.clamp(*process.span)
    found = moved(process, base, 0.5, -0.25, 0.1)
    a, _, c = grid.diff()
    expected = [grid[0] + a / 2, grid[1] - a / 4, grid[2] + c / 10]
    torch.testing.assert_close(process.at(found.network_timesteps).half_log_snr, torch.stack(expected))
    assert found.levels is base.levels and found.times.levels == (1000, 700, 400)
    still = moved(process, base, -0.5, 0, 0)  # the first has none before it
    assert torch.equal(still.network_timesteps, base.levels.timestep[:-1])


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(PROCESSES)), st.lists(st.floats(-0.9, 0.9), min_size=1, max_size=8))
def test_any_shift_tells_what_the_network_knows_at_untouched_levels(name: str, shifts: list[float]) -> None:
    process = PROCESSES[name]
    base = build(process, len(shifts), "log_snr_linear")
    found = moved(process, base, *shifts)
    assert process.at(found.network_timesteps).timestep.tolist() == list(found.times.network_timesteps)
    for k in range(len(shifts)):
        assert (found[k].alpha, found[k].sigma) == (base[k].alpha, base[k].sigma)
        assert found[k].timestep == found.network_timesteps[k]
        if shifts[k] == 0:
            assert found[k].timestep == base[k].timestep
    again = explicit(process, found.times.levels, network_timesteps=found.times.network_timesteps)
    assert torch.equal(again.called.timestep, found.called.timestep)
    assert torch.equal(found[torch.arange(len(shifts))].timestep, found.network_timesteps)


def test_a_network_is_told_a_timestep_for_each_level_and_one_that_it_knows() -> None:
    with pytest.raises(ValueError, match="1 network timesteps; expected 2"):
        explicit(FlowMatching(), [1000.0, 500.0], network_timesteps=[900.0])
    with pytest.raises(ValueError, match="expected integers"):
        explicit(stable_diffusion(), [999, 500], network_timesteps=[900.5, 500])


def test_take_and_index_agree() -> None:
    schedule = build(FlowMatching(), 4, "karras")
    taken = schedule[torch.tensor([3, 0, 3])]
    assert taken.sigma.tolist() == [float(schedule[i].sigma) for i in (3, 0, 3)]
    assert schedule[2].timestep.shape == ()


@pytest.mark.parametrize("kind", ["posterior", "cps"])
def test_stds_by_hand(kind: str) -> None:
    schedule = explicit(FlowMatching(scale=1), [1.0, 0.6, 0.2])
    cps = math.sin(0.15 * math.pi)
    kept = (0.4 * 0.2) / (0.8 * 0.6)
    first, second = {
        "posterior": (0.6 * 0.3, 0.2 * 0.3 * math.sqrt(1 - kept**2)),  # pure noise keeps nothing
        "cps": (0.6 * cps, 0.2 * cps),
    }[kind]
    assert schedule.stds(0.3, kind, last_step=False).tolist() == pytest.approx([first, second, 0])
    explored = schedule.stds(0.3, kind, last_step=True)
    assert explored.tolist() == pytest.approx([first, second, 0.3 * 0.05]) and explored.dtype == F64
    assert schedule.stds(0.0, kind, last_step=True).tolist() == [0, 0, 0]


def test_a_noisy_terminal_level_explores_with_its_own_noise() -> None:
    table = stable_diffusion().alphas_cumprod
    process = VariancePreserving(table, final_alpha_cumprod=float(table[0]))
    last = build(process, 4, "uniform_trailing").stds(1.0, "cps", last_step=True)[-1]
    assert float(last) == pytest.approx(math.sqrt(1 - float(table[0])))


def ratio(level: Level) -> float:
    return float(level.sigma / level.alpha)


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
@pytest.mark.parametrize("substeps", [1, 2, 3, 8])
def test_a_sub_schedule_ends_at_the_noise_of_the_mean(process, substeps: int) -> None:
    schedule = build(process, 4, "karras")
    stds = schedule.stds(0.5, "posterior", last_step=True)
    for i in range(4):
        s, std = schedule[i + 1], stds[i]
        jump = sub_schedule(process, schedule[i], s, std, substeps)
        wanted = math.sqrt(max(float(s.sigma**2 - std**2), 0)) / float(s.alpha)
        assert ratio(jump[jump.steps]) == pytest.approx(wanted, rel=1e-12)
        assert jump[0].timestep == pytest.approx(float(schedule[i].timestep)) and jump.steps <= substeps
        known = process.at(jump.levels.timestep[:-1])
        torch.testing.assert_close(known.sigma, jump.levels.sigma[:-1], rtol=0, atol=0)


def test_sub_schedules_are_uniform_and_never_repeat_a_timestep() -> None:
    process, zero = stable_diffusion(), torch.zeros((), dtype=F64)
    at = lambda t: process.at(torch.tensor(t))  # noqa: E731
    assert sub_schedule(process, at(999), at(499), zero, 4).levels.timestep[:-1].tolist() == [999, 874, 749, 624]
    for first, expected in ((249, [249, 199, 149, 99, 49]), (2, [2, 1, 0])):
        jump = sub_schedule(process, at(first), process.terminal(), zero, 5)
        assert jump.levels.timestep[:-1].tolist() == expected
    flow = FlowMatching()
    jump = sub_schedule(flow, flow.noisiest(), flow.at(torch.tensor(400.0)), zero, 3)
    assert jump.levels.sigma.tolist() == pytest.approx([1, 0.8, 0.6, 0.4])
    ve = VarianceExploding()
    jump = sub_schedule(ve, ve.at(torch.tensor(8.0)), ve.at(torch.tensor(1.0)), zero, 3)
    assert jump.levels.sigma.tolist() == pytest.approx([8, 4, 2, 1])
    with pytest.raises(ValueError, match="substeps=0"):
        sub_schedule(process, at(999), at(499), zero, 0)
