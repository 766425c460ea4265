"""The contrast of own images: its loss against the closed form, its optimum, and the groups that are compared."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from redif_ray.config import Config, load
from redif_ray.data.conditions import load_conditions
from redif_ray.diffusion.levels import Level
from redif_ray.learning.contrast import contrast_loss
from redif_ray.loop import PlainLoop
from redif_ray.planning.rounds import RoundPlan

F64 = torch.float64
LEVEL = Level(*(torch.tensor(value, dtype=F64) for value in ([0.6, 0.6, 0.6], [0.8, 0.8, 0.8], [500.0] * 3)))
WEIGHT = 1 + 0.6**2 / 0.8**2  # of velocity prediction


def drawn(count: int = 3) -> torch.Tensor:
    return torch.randn(count, 2, 4, dtype=F64, generator=torch.Generator().manual_seed(0))


def test_the_loss_is_a_pull_to_the_earlier_student_and_a_weighted_regression() -> None:
    """|d|^2 + 2 A <d, D_old - x> + |D_old - x|^2, means over the latent, with d = D - D_old."""
    denoised, earlier, x = drawn(9).chunk(3)
    advantage = torch.tensor([-1.0, 0.25, 1.0], dtype=F64)
    found = contrast_loss(denoised, earlier, x, LEVEL, advantage)
    d, error = denoised - earlier, earlier - x
    expected = (d.square() + 2 * advantage[:, None, None] * d * error + error.square()).flatten(1).mean(1)
    torch.testing.assert_close(found, WEIGHT * expected)


def test_its_optimum_moves_the_prediction_by_the_weighted_images() -> None:
    """For several images of one x_t, D = D_old + mean A x where A has a mean of 0."""
    x, earlier = drawn(), drawn(1) + 3
    advantage = torch.tensor([0.5, -0.1, -0.4], dtype=F64)
    best = (earlier + (advantage[:, None, None] * x).mean(0)).requires_grad_()
    loss = contrast_loss(best.expand(3, -1, -1), earlier.expand(3, -1, -1), x, LEVEL, advantage).sum()
    (gradient,) = torch.autograd.grad(loss, best)
    assert gradient.abs().max() < 1e-12


def test_images_that_are_alike_move_nothing() -> None:
    denoised = drawn().requires_grad_()
    loss = contrast_loss(denoised, denoised.detach(), drawn() + 1, LEVEL, torch.zeros(3, dtype=F64)).sum()
    (gradient,) = torch.autograd.grad(loss, denoised)
    assert not gradient.any()


def config(root: Path, *overrides: str) -> Config:
    """Return a run of three rounds of 12 images, 4 of each condition, in work units of 8 and 4."""
    found: Config = load(
        "smoke",
        [
            f"run.root={root}",
            "tracking.uri=off",
            "method=contrast",
            "contrast={groups: 12, noises: 4, draws: 2}",
            "rollout.unit_groups=2",
            "warm_start.rounds=1",
            "learner.rounds=3",
            *overrides,
        ],
    )
    return found


@pytest.mark.parametrize("pool", ["null", "24"])
def test_images_that_are_compared_share_a_condition_and_no_noise(pool: str, tmp_path: Path) -> None:
    units = "rollout.unit_groups=1" if pool != "null" else "rollout.unit_groups=2"
    made = config(tmp_path, f"conditions.pool={pool}", units)
    plan = RoundPlan(made, load_conditions(made.conditions, num_classes=10, captions=False, seed=0))
    seen: dict[int, object] = {}
    for round in range(1, 4):
        groups = [g for unit in plan.units(round) for g in unit.groups]
        conditions = [c for unit in plan.units(round) for c in unit.conditions]
        assert len(set(groups)) == len(groups) == 12
        for i in range(0, 12, 4):
            assert len(set(conditions[i : i + 4])) == 1 and groups[i : i + 4] == list(range(groups[i], groups[i] + 4))
        for group, condition in zip(groups, conditions, strict=True):
            assert seen.setdefault(group, condition) == condition  # also in another pass over the pool
        for unit in plan.units(round):
            block = plan.sampled_with(unit)
            first = block.groups.index(unit.groups[0])
            assert block.conditions[first : first + len(unit.groups)] == unit.conditions
    assert len(set(seen.values())) > 3


def test_a_round_reports_what_it_compared(tmp_path: Path) -> None:
    loop = PlainLoop(config(tmp_path, "warm_start.rounds=0"))
    before = loop.checksum()
    metrics = loop.round(0)
    assert loop.checksum() != before
    assert metrics["update/optimiser_steps"] == 2 and metrics["update/network_calls_backward"] == 24
    assert metrics["reward/std"] > 0 and metrics["advantage/dead_group_fraction"] == 0
