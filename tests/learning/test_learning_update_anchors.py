"""What an update adds to the policy gradient: the teacher's targets, and a pull to a reference."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from learning_toy import FULL, Tiny, change, play, schedule, tiny_round, updater, values
from torch import Tensor

from redif_ray.config import Anchor, Learner, Regulariser, WarmStart
from redif_ray.learning.batch import RoundBatch
from redif_ray.learning.update import regression_settings


def anchor_gradient(batch: RoundBatch, steps: range, rows: Tensor, stds: Tensor, kind: str = "mse") -> Tensor:
    model, grid, losses = Tiny(), schedule(3), []
    for k in steps:
        prediction = model.predict(batch.latents[k], grid[k], batch.encoded)
        carried = (grid[k + 1].sigma ** 2 - stds[k] ** 2).clamp(min=0).sqrt()
        mean = grid[k + 1].alpha * prediction.x0 + carried * prediction.eps
        losses.append((mean - batch.anchors[k]).square().flatten(1).mean(1) * rows)
    gradient = torch.autograd.grad(torch.cat(losses).mean(), list(model.parameters()))
    return torch.cat([g.reshape(-1) for g in gradient]).float()


def test_warm_start_is_the_anchor_alone_over_all_steps() -> None:
    model, stds = Tiny(), torch.zeros(3, dtype=torch.float64)
    batch = play(model, values(48, 50).reshape(8, 2, 3), stds, anchors=True)
    config = regression_settings(WarmStart(loss="mse", minibatch=100), Learner(max_grad_norm=FULL))
    metrics_before = updater(Tiny(), stds, config).run(batch, round=0, seed=0, lr=1.0)
    torch.testing.assert_close(
        change(model, batch, stds, config), -anchor_gradient(batch, range(3), torch.ones(8), stds), rtol=1e-4, atol=1e-7
    )
    assert "ratio_mean" not in metrics_before and metrics_before["loss_policy"] == 0
    assert metrics_before["loss"] == pytest.approx(float((batch.means - batch.anchors).square().mean()), rel=1e-5)
    assert metrics_before["network_calls_forward"] == 24


def test_anchor_adds_to_an_undiluted_policy_gradient() -> None:
    """With the anchor the deterministic step joins the pairs, and the policy term stays a mean over its own steps."""
    batch, stds = tiny_round(Tiny(), anchors=True)
    gate = (torch.arange(8) % 2).float()
    policy = change(Tiny(), batch, stds, Learner(max_grad_norm=FULL))
    anchor = Anchor(weight=0.7, loss="mse")
    both = change(Tiny(), dataclasses.replace(batch, gate=gate), stds, Learner(max_grad_norm=FULL, anchor=anchor))
    torch.testing.assert_close(both, policy - 0.7 * anchor_gradient(batch, range(3), gate, stds), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(("kind", "deterministic"), [("kl", False), ("mse", True)])
def test_regulariser_pulls_towards_the_reference(kind: str, deterministic: bool) -> None:
    batch, stds = tiny_round(Tiny())
    batch = dataclasses.replace(batch, advantages=torch.zeros(8))
    config = Learner(regulariser=Regulariser(kind=kind, weight=0.3), max_grad_norm=FULL)
    other, grid = Tiny(2), schedule(3)
    assert not change(Tiny(), batch, stds, config, reference=Tiny().predict).any()
    metrics = updater(Tiny(), stds, config, reference=other.predict).run(batch, round=0, seed=0, lr=1.0)
    expected = []
    with torch.no_grad():
        for k in range(3 if deterministic else 2):
            means = []
            for model in (Tiny(), other):
                p = model.predict(batch.latents[k], grid[k], batch.encoded)
                carried = (grid[k + 1].sigma ** 2 - stds[k] ** 2).clamp(min=0).sqrt()
                means.append(grid[k + 1].alpha * p.x0 + carried * p.eps)
            square = (means[0] - means[1]).square().mean()
            expected.append(float(square if deterministic else square / (2 * stds[k] ** 2)))
    wanted = pytest.approx(0.3 * sum(expected) / len(expected), rel=1e-4)
    assert metrics["loss_regulariser"] == wanted
    anchored = config.model_copy(update={"anchor": Anchor(weight=1.0)})  # brings the deterministic step in
    batch = dataclasses.replace(batch, anchors=batch.means)
    metrics = updater(Tiny(), stds, anchored, reference=other.predict).run(batch, round=0, seed=0, lr=1.0)
    assert metrics["loss_regulariser"] == wanted
