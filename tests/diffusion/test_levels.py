from __future__ import annotations

import math

import pytest
import torch
from diffusers import DDIMScheduler
from gaussian_oracle import PROCESSES, stable_diffusion, zero_terminal_snr
from hypothesis import given, settings
from hypothesis import strategies as st

from redif_ray.diffusion.levels import FlowMatching, Level, VarianceExploding, VariancePreserving, like

F64 = torch.float64


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=F64)


@pytest.mark.parametrize("name", PROCESSES)
def test_nearest_inverts_half_log_snr_within_the_span(name: str) -> None:
    process = PROCESSES[name]
    low, high = process.span
    assert math.isfinite(low) and math.isfinite(high) and low < high
    level = process.nearest(torch.linspace(low, high, 7, dtype=F64))
    again = process.nearest(level.half_log_snr)
    torch.testing.assert_close(again.timestep, level.timestep, rtol=1e-9, atol=0)
    torch.testing.assert_close(process.at(level.timestep).sigma, level.sigma, rtol=1e-12, atol=0)
    assert bool((level.half_log_snr.diff() > 0).all())
    torch.testing.assert_close(level.half_log_snr[[0, -1]], tensor(low, high), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", PROCESSES)
def test_ends(name: str) -> None:
    process = PROCESSES[name]
    assert process.noisiest().half_log_snr <= process.span[0] + 1e-9
    assert process.terminal().half_log_snr == math.inf and process.terminal().alpha == 1
    exact = process.at(process.noisiest().timestep)
    assert exact.alpha == process.noisiest().alpha and exact.sigma == process.noisiest().sigma


def test_variance_preserving_is_the_table() -> None:
    table = DDIMScheduler(beta_schedule="scaled_linear").alphas_cumprod
    level = VariancePreserving(table).at(tensor(0, 500, 999))
    torch.testing.assert_close(level.alpha**2, table[[0, 500, 999]].double(), rtol=1e-14, atol=0)
    torch.testing.assert_close(level.alpha**2 + level.sigma**2, torch.ones(3, dtype=F64), rtol=1e-14, atol=0)
    assert level.half_log_snr[1] == pytest.approx(0.5 * math.log(table[500] / (1 - table[500].double())), rel=1e-12)


def test_nearest_is_the_closest_timestep_in_half_log_snr() -> None:
    process = stable_diffusion()
    grid = process.at(torch.arange(1000)).half_log_snr
    for wanted in (-2.0, -0.31, 1.7, 3.1):
        best = min(range(1000), key=lambda t: abs(float(grid[t]) - wanted))
        assert process.nearest(torch.tensor(wanted)).timestep == best


def test_zero_terminal_snr_has_an_infinite_start_and_a_finite_span() -> None:
    process = zero_terminal_snr()
    assert process.noisiest().alpha == 0 and process.noisiest().half_log_snr == -math.inf
    assert process.span[0] == pytest.approx(float(process.at(torch.tensor(998)).half_log_snr))


def test_set_alpha_to_one_false_keeps_the_first_level() -> None:
    table = stable_diffusion().alphas_cumprod
    end = VariancePreserving(table, final_alpha_cumprod=float(table[0])).terminal()
    assert end.alpha**2 == pytest.approx(float(table[0])) and end.sigma**2 == pytest.approx(1 - float(table[0]))


def test_ve_and_flow_by_hand() -> None:
    ve = VarianceExploding(0.01, 50.0).nearest(tensor(-math.log(4.0)))
    assert (ve.alpha.item(), ve.sigma.item(), ve.timestep.item()) == pytest.approx((1, 4, 4))
    flow = FlowMatching(scale=1000).at(tensor(250))
    assert (flow.alpha.item(), flow.sigma.item()) == (0.75, 0.25)
    assert FlowMatching(scale=1).nearest(tensor(math.log(3))).timestep == pytest.approx(0.25)


@pytest.mark.parametrize("bad", [-1.0, 1000.0, 0.5, float("nan")])
def test_the_discrete_process_refuses_other_timesteps(bad: float) -> None:
    with pytest.raises(ValueError, match="expected integers in"):
        stable_diffusion().at(tensor(3, bad))


def test_other_impossible_levels_are_refused() -> None:
    with pytest.raises(ValueError, match="above 0"):
        VarianceExploding().at(tensor(0))
    for bad in (0.0, 1001.0):
        with pytest.raises(ValueError, match="expected values in"):
            FlowMatching().at(tensor(bad))
    with pytest.raises(ValueError, match="sigma_min=2"):
        VarianceExploding(2, 1)
    with pytest.raises(ValueError, match=r"sigma_min=0\.7"):
        FlowMatching(sigma_min=0.7)
    with pytest.raises(ValueError, match="shift=0"):
        FlowMatching(shift=0)
    for table in (tensor(0.9, 0.9, 0.1), tensor(1.0, 0.5), tensor(0.5, -0.1)):
        with pytest.raises(ValueError, match="alphas_cumprod"):
            VariancePreserving(table)


@settings(deadline=None)
@given(st.integers(0, 3), st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
def test_like_scales_each_sample(dims: int, dtype: torch.dtype) -> None:
    x = torch.ones((2, *([3] * dims)), dtype=dtype)
    scaled = like(tensor(2, 5), x) * x
    assert scaled.dtype == dtype and bool((scaled[0] == 2).all()) and bool((scaled[1] == 5).all())
    assert bool((like(torch.tensor(4.0), x) * x == 4).all())


def test_levels_index_like_tensors() -> None:
    stacked = Level(tensor(1, 2, 3), tensor(4, 5, 6), tensor(7, 8, 9))
    assert stacked[1].sigma == 5 and stacked[torch.tensor([2, 0])].timestep.tolist() == [9, 7]
