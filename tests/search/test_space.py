from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from redif_ray.diffusion import schedules
from redif_ray.diffusion.levels import FlowMatching, NoiseProcess, VarianceExploding, VariancePreserving
from redif_ray.search import space

COSINE = torch.cos((torch.linspace(0, 1, 1001, dtype=torch.float64)[1:] + 0.008) / 1.008 * torch.pi / 2) ** 2
PROCESSES: list[NoiseProcess] = [
    VariancePreserving(COSINE.clamp(min=1e-9 * torch.arange(1000, 0, -1, dtype=torch.float64))),
    VarianceExploding(),
    FlowMatching(shift=3.0),
]


def logits(low: float, high: float) -> st.SearchStrategy[list[float]]:
    return st.lists(st.floats(low, high), min_size=7, max_size=7)


@pytest.mark.parametrize("process", PROCESSES, ids=["vp", "ve", "flow"])
@settings(deadline=None, max_examples=60)
@given(steps=st.integers(2, 8), values=logits(*space.LOGIT), name=st.sampled_from(["karras", "log_snr_linear"]))
def test_every_refinement_rises_strictly_between_exact_ends(
    process: NoiseProcess, steps: int, values: list[float], name: str
) -> None:
    centre = schedules.build(process, steps, name)
    found = space.refined(process, centre, {f"z{i}": values[i] for i in range(steps - 1)})
    rising = found.levels.half_log_snr
    assert bool((rising[1:] > rising[:-1]).all())
    for end in (0, -1):
        assert found.levels.alpha[end] == centre.levels.alpha[end]
        assert found.levels.sigma[end] == centre.levels.sigma[end]


@settings(deadline=None, max_examples=60)
@given(steps=st.integers(2, 8), values=logits(-50, 50))
def test_the_network_is_told_the_timesteps_that_the_levels_are_of(steps: int, values: list[float]) -> None:
    process = PROCESSES[0]
    found = space.refined(
        process, schedules.build(process, steps, "uniform_trailing"), {f"z{i}": values[i] for i in range(steps - 1)}
    )
    times = found.levels.timestep[:-1]
    assert bool((times == times.round()).all())
    again = schedules.explicit(process, times.tolist())
    assert torch.equal(again.levels.alpha, found.levels.alpha) and torch.equal(again.levels.sigma, found.levels.sigma)


def test_no_increment_of_a_refinement_vanishes() -> None:
    process = VarianceExploding()
    centre = schedules.build(process, 4, "log_snr_linear")
    found = space.refined(process, centre, {"z0": -40.0, "z1": 0.0, "z2": 0.0})
    grid = found.levels.half_log_snr.clamp(*process.span)
    assert float(grid.diff()[0] / (grid[-1] - grid[0])) > 0.9 * space.FLOOR


def test_a_refinement_by_nothing_is_its_centre() -> None:
    process = PROCESSES[0]
    centre = schedules.build(process, 5, "ays_sd15")
    found = space.refined(process, centre, dict.fromkeys(space.refine_space(5), 0.0))
    assert torch.equal(found.levels.timestep, centre.levels.timestep)


def test_two_increments_have_no_bow() -> None:
    assert set(space.shape_space(["karras"], 2)) == {"base", "tilt"}
    assert set(space.shape_space(["karras"], 3)) == {"base", "tilt", "bow"}
