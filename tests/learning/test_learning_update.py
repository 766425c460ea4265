from __future__ import annotations

import dataclasses
import json
import math
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from learning_toy import Affine, Tiny, play, schedule, tiny_round, values
from torch import Tensor

from redif_ray.config import Anchor, Learner, Regulariser, WarmStart
from redif_ray.diffusion import noise
from redif_ray.diffusion.levels import Level
from redif_ray.diffusion.noise import Stream
from redif_ray.diffusion.transition import Prediction, log_prob
from redif_ray.learning.advantages import advantages
from redif_ray.learning.batch import RoundBatch
from redif_ray.learning.policy import Predict, RatioError, check_ratio
from redif_ray.learning.update import Updater, learning_rate, warm_start_learner

GOLDEN = Path(__file__).parents[1] / "golden" / "learning_update.json"
FULL = 1e9  # a gradient norm that is never reached


def updater(model: Affine | Tiny, stds: Tensor, config: Learner, **options: Any) -> Updater:
    """Plain gradient descent, so that a change of weights is lr times the gradient."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    return Updater(model.predict, optimizer, schedule(len(stds)), stds, config, **{"ratio_tolerance": 1e-4} | options)


def flat(model: Affine | Tiny) -> Tensor:
    return torch.cat([p.detach().reshape(-1).clone() for p in model.parameters()])


def change(model: Affine | Tiny, batch: RoundBatch, stds: Tensor, config: Learner, **options: Any) -> Tensor:
    """Minus the gradient, where there is one optimiser step."""
    before = flat(model)
    updater(model, stds, config, **options).run(batch, round=0, seed=0, lr=1.0)
    return flat(model) - before


def expected_reward(w: list[Tensor], b: list[Tensor], stds: Tensor, x: float, target: float) -> Tensor:
    """E[-(x_N - target)^2] of the affine student from x_T = x, step k with parameters w[k], b[k], in closed form."""
    levels, mean, variance = schedule(len(stds)).levels, torch.tensor(x, dtype=torch.float64), torch.tensor(0.0)
    for k, std in enumerate(stds):
        (a_t, s_t), (a_s, s_s) = ((levels.alpha[i], levels.sigma[i]) for i in (k, k + 1))
        carried = (s_s**2 - std**2).clamp(min=0).sqrt() / s_t
        gain, offset = carried + (a_s - carried * a_t) * w[k], (a_s - carried * a_t) * b[k]
        mean, variance = gain * mean + offset, gain**2 * variance + std**2
    return -((mean - target) ** 2 + variance)


@pytest.mark.parametrize("explored", [(0, 1, 2), (0, 1), (0,), (1,), (2,)], ids=str)
@pytest.mark.parametrize("loss", ["ppo_clip", "reinforce"])
def test_policy_gradient_of_a_linear_gaussian_student(explored: tuple[int, ...], loss: str) -> None:
    """The gradient of E[R] by Monte Carlo equals the closed form; a deterministic step's own part is missing."""
    x, target, rows = 0.7, 0.9, 40_000
    model = Affine()
    stds = schedule(3).stds(0.6, "posterior", True)
    stds = torch.where(torch.isin(torch.arange(3), torch.tensor(explored)), stds, 0.0)
    batch = play(model, torch.full((rows, 1), x), stds)
    w, b = (torch.tensor(p.item(), dtype=torch.float64, requires_grad=True) for p in (model.w, model.b))
    free = [stds[k] > 0 for k in range(3)]
    live = [[p if f else p.detach() for f in free] for p in (w, b)]
    value = expected_reward(*live, stds, x, target)
    truth = torch.stack(torch.autograd.grad(value, [w, b]))
    rewards = -(batch.latents[-1, :, 0] - target).square()
    batch = dataclasses.replace(batch, advantages=rewards - value.item())
    config = Learner(loss=loss, clip=0.1, max_grad_norm=FULL, microbatch=10**6)
    found = change(model, batch, stds, config) * sum(free)  # a mean over steps
    torch.testing.assert_close(found.double(), truth, rtol=0, atol=0.04 * float(truth.norm()))


def test_step_weight_scales_each_steps_gradient() -> None:
    model = Tiny()
    batch, stds = tiny_round(model)
    base = Learner(max_grad_norm=FULL)
    parts = []
    for k in range(2):
        alone = torch.where(torch.arange(3) == k, stds, 0.0)
        parts.append(change(Tiny(), batch, alone, base))
    weights = stds[:2] / stds[:2].mean()
    found = change(Tiny(), batch, stds, base.model_copy(update={"step_weight": "std"}))
    expected = (float(weights[0]) * parts[0] + float(weights[1]) * parts[1]) / 2
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)
    # At ratio 1 the guard weighs step k by S_k itself.
    guarded = change(Tiny(), batch, stds, base.model_copy(update={"loss": "grpo_guard"}))
    expected = (float(stds[0]) * parts[0] + float(stds[1]) * parts[1]) / 2
    torch.testing.assert_close(guarded, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("loss", ["ppo_clip", "grpo_guard"])
def test_microbatches_change_nothing(loss: str) -> None:
    config = Learner(loss=loss, clip=0.1, minibatch=9, inner_epochs=2, max_grad_norm=FULL, anchor=Anchor(weight=0.5),
                     regulariser=Regulariser(kind="js", weight=0.2))
    model = Tiny()
    batch, stds = tiny_round(model, anchors=True)
    found = [change(Tiny(), batch, stds, config.model_copy(update={"microbatch": m}), reference=Tiny(2).predict)
             for m in (1, 4, 24)]
    assert found[0].norm() > 1e-2
    for other in found[1:]:
        torch.testing.assert_close(found[0], other, rtol=0, atol=1e-6)


@pytest.mark.parametrize("microbatch", [1, 5, 64])
@pytest.mark.parametrize("kind", ["js", "mse"])
def test_siblings_share_their_first_step(kind: str, microbatch: int) -> None:
    """A group's state at x_T is predicted once, and the gradient is what the plain path's is; counted on a network."""
    groups, siblings, rows = 3, 4, 12
    stds = schedule(3).stds(0.6, "posterior", False)
    x = values(groups * 6, group=50).reshape(groups, 2, 3).repeat_interleave(siblings, 0)
    labels = (torch.arange(groups) % 3).repeat_interleave(siblings)
    plain = play(Tiny(), x, stds, anchors=True, labels=labels)
    shared = dataclasses.replace(plain, origin=torch.arange(rows) // siblings * siblings)
    config = Learner(clip=0.1, minibatch=18, inner_epochs=2, max_grad_norm=FULL, microbatch=microbatch,
                     anchor=Anchor(weight=0.5), regulariser=Regulariser(kind=kind, weight=0.2))
    moved, seen = [], []
    for batch in (plain, shared):
        model, reference, counts = Tiny(), Tiny(2), [0, 0]

        def counting(who: Tiny, at: int, counts: list[int] = counts) -> Predict:
            def predict(x: Tensor, level: Level, encoded: dict[str, Tensor]) -> Prediction:
                counts[at] += len(x)
                return who.predict(x, level, encoded)

            return predict

        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        metrics = Updater(counting(model, 0), optimizer, schedule(3), stds, config, ratio_tolerance=1e-4,
                          reference=counting(reference, 1)).run(batch, round=0, seed=0, lr=0.1)
        assert metrics["network_calls_forward"] == sum(counts)
        moved.append(flat(model) - flat(Tiny()))
        seen.append((counts[0], metrics["network_calls_backward"]))
    assert moved[0].norm() > 1e-2
    torch.testing.assert_close(moved[1], moved[0], rtol=0, atol=1e-6)
    forward, backward = seen[0]
    check = rows * 2  # the fresh ratio of both stochastic steps
    assert backward == rows * 3 * 2 and forward == backward + check
    forward, backward = seen[1]
    assert forward - backward == groups + rows
    assert 2 * (groups + 2 * rows) <= backward < rows * 3 * 2  # two epochs; a minibatch holds but some of a group


def test_a_whole_round_in_one_minibatch_predicts_the_first_step_once_a_group() -> None:
    x = values(18, group=50).reshape(3, 2, 3).repeat_interleave(4, 0)
    stds = schedule(3).stds(0.6, "posterior", True)
    batch = play(Tiny(), x, stds, labels=torch.arange(3).repeat_interleave(4))
    batch = dataclasses.replace(batch, origin=torch.arange(12) // 4 * 4)
    metrics = updater(Tiny(), stds, Learner(microbatch=7)).run(batch, round=0, seed=0, lr=1e-3)
    assert metrics["network_calls_backward"] == 3 + 2 * 12  # (1 + K (N - 1)) a group


@pytest.mark.parametrize("step", [0, 1, 2])
def test_a_step_that_explores_alone_is_one_state_a_group(step: int) -> None:
    """Siblings part there, so the update predicts and differentiates one state for all of them."""
    groups, siblings = 3, 4
    x = values(groups * 6, group=50).reshape(groups, 2, 3).repeat_interleave(siblings, 0)
    stds = torch.where(torch.arange(3) == step, schedule(3).stds(0.6, "posterior", True), 0.0)
    plain = play(Tiny(), x, stds, labels=torch.arange(groups).repeat_interleave(siblings))
    origin = torch.arange(groups * siblings) // siblings * siblings
    shared = dataclasses.replace(plain, origin=origin, shared=step + 1)
    config = Learner(clip=0.1, max_grad_norm=FULL, microbatch=2)
    moved = [change(Tiny(), batch, stds, config) for batch in (plain, shared)]
    assert moved[0].norm() > 1e-3
    torch.testing.assert_close(moved[1], moved[0], rtol=0, atol=1e-6)
    metrics = updater(Tiny(), stds, config).run(shared, round=0, seed=0, lr=1e-3)
    assert metrics["network_calls_backward"] == groups and metrics["network_calls_forward"] == 2 * groups


@pytest.mark.parametrize("loss", ["ppo_clip", "grpo_guard"])
def test_a_scale_of_the_loss_changes_nothing(loss: str) -> None:
    """A power of two is exact in float32, before clipping and after."""
    model = Tiny()
    batch, stds = tiny_round(model, anchors=True)
    config = Learner(loss=loss, clip=0.1, anchor=Anchor(weight=0.3), minibatch=9, max_grad_norm=1e-3)
    expected = change(Tiny(), batch, stds, config)
    assert torch.equal(change(Tiny(), batch, stds, config, loss_scale=2.0**16), expected)
    assert float(expected.abs().max()) > 0


def two_ranks(
    batch: RoundBatch, stds: Tensor, config: Learner, held: list[Tensor]
) -> list[tuple[Tensor, dict[str, float]]]:
    """Both ranks in threads that meet at every all-reduce."""
    barrier, inbox, results = threading.Barrier(2, timeout=20), [[], []], {}

    def rank(i: int) -> None:
        def all_reduce(tensors: list[Tensor]) -> None:
            inbox[i] = [t.clone() for t in tensors]
            barrier.wait()
            for t, a, b in zip(tensors, *inbox, strict=True):
                t.copy_(a + b)
            barrier.wait()

        mine = RoundBatch(
            rows=held[i], total_rows=batch.total_rows, latents=batch.latents[:, held[i]], means=batch.means[:, held[i]],
            log_probs=batch.log_probs[:, held[i]], advantages=batch.advantages[held[i]],
            encoded={k: v[held[i]] for k, v in batch.encoded.items()}, anchors=batch.anchors[:, held[i]],
        )
        model = Tiny()
        run = updater(model, stds, config, reference=Tiny(2).predict, rank=i, world=2, all_reduce=all_reduce)
        metrics = run.run(mine, round=0, seed=0, lr=1.0)
        results[i] = flat(model), metrics

    threads = [threading.Thread(target=rank, args=(i,)) for i in range(2)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    return [results[0], results[1]]


def test_two_ranks_equal_one() -> None:
    """Also where a minibatch has no pair of one rank: minibatches of two pairs make that certain."""
    config = Learner(minibatch=2, inner_epochs=2, clip=0.1, microbatch=3, max_grad_norm=0.05, anchor=Anchor(weight=0.5),
                     regulariser=Regulariser(kind="kl", weight=0.3))
    model = Tiny()
    batch, stds = tiny_round(model, anchors=True)
    alone = updater(model, stds, config, reference=Tiny(2).predict).run(batch, round=0, seed=0, lr=1.0)
    for weights, metrics in two_ranks(batch, stds, config, [torch.tensor([0, 1, 6, 7, 4]), torch.tensor([2, 3, 5])]):
        torch.testing.assert_close(weights, flat(model), rtol=1e-5, atol=1e-6)
        assert metrics.keys() == alone.keys()
        for name in metrics.keys() - {"seconds"}:
            assert metrics[name] == pytest.approx(alone[name], rel=1e-3, abs=1e-6), name


def test_rows_that_no_rank_holds_are_an_error() -> None:
    model = Tiny()
    batch, stds = tiny_round(model)
    short = dataclasses.replace(batch, total_rows=9)
    with pytest.raises(ValueError, match="row 8 of the round is held 0 times"):
        updater(model, stds, Learner()).run(short, round=0, seed=0, lr=1.0)


def test_minibatches_cover_all_pairs_once_in_an_order_of_the_ids() -> None:
    model = Tiny()
    batch, stds = tiny_round(model)
    config = Learner(minibatch=5, inner_epochs=2, clip=0.5)
    metrics = updater(model, stds, config).run(batch, round=1, seed=2, lr=1e-3)
    assert metrics["optimiser_steps"] == 8  # 16 pairs in 4 nearly equal parts, twice
    assert metrics["network_calls_backward"] == 32 and metrics["network_calls_forward"] == 48  # and the check
    again, other = Tiny(), Tiny()
    updater(again, stds, config).run(batch, round=1, seed=2, lr=1e-3)
    updater(other, stds, config).run(batch, round=2, seed=2, lr=1e-3)
    assert torch.equal(flat(again), flat(model)) and not torch.equal(flat(other), flat(model))


def test_metrics_of_the_surrogate() -> None:
    """After a step at which everything is clipped or not, by an independent evaluation of both policies."""
    model = Tiny()
    batch, stds = tiny_round(model)
    config = Learner(minibatch=None, inner_epochs=2, clip=1e-3, max_grad_norm=FULL)
    metrics = updater(model, stds, config).run(batch, round=0, seed=0, lr=0.05)
    fresh = Tiny()  # epoch 0 has ratio 1; epoch 1 the ratio after one step of gradient descent
    updater(fresh, stds, config.model_copy(update={"inner_epochs": 1})).run(batch, round=0, seed=0, lr=0.05)
    ratios = [torch.ones(16)]
    grid, log_ratio = schedule(3), []
    with torch.no_grad():
        for k in range(2):
            prediction = fresh.predict(batch.latents[k], grid[k], batch.encoded)
            mean = grid[k + 1].alpha * prediction.x0 + (grid[k + 1].sigma ** 2 - stds[k] ** 2).sqrt() * prediction.eps
            log_ratio.append(log_prob(batch.latents[k + 1], mean.float(), stds[k]) - batch.log_probs[k])
    ratios.append(torch.exp(torch.cat(log_ratio)))
    rho, a = torch.cat(ratios).double(), batch.advantages.repeat(4)
    assert metrics["ratio_mean"] == pytest.approx(float(rho.mean()), abs=1e-6)
    assert metrics["ratio_std"] == pytest.approx(float(rho.std(correction=0)), rel=1e-3)
    assert metrics["ratio_max_deviation"] == pytest.approx(float((rho - 1).abs().max()), rel=1e-3)
    assert metrics["approx_kl"] == pytest.approx(float((rho - 1 - rho.log()).mean()), rel=1e-2)
    clipped = ((a > 0) & (rho > 1.001)) | ((a < 0) & (rho < 0.999))
    assert metrics["clip_fraction"] == pytest.approx(float(clipped.double().mean()))
    assert 0 < metrics["clip_fraction"] < 0.5
    loss = torch.maximum(-a * rho, -a * rho.clamp(0.999, 1.001)).mean()
    assert metrics["loss"] == pytest.approx(float(loss), abs=1e-5)


def test_stale_weights_are_noticed_before_training() -> None:
    model = Tiny()
    batch, stds = tiny_round(model)
    assert float(check_ratio(model.predict, batch, schedule(), stds, 1e-4, 3)[0].max()) < 1e-5
    with torch.no_grad():
        model.second.bias += 0.05
    before = flat(model)
    with pytest.raises(RatioError, match=r"step 0: .* expected at most 0.0001.*other weights"):
        updater(model, stds, Learner()).run(batch, round=0, seed=0, lr=1.0)
    assert torch.equal(flat(model), before)


def test_stale_rows_are_noticed_at_their_step() -> None:
    model = Tiny()
    batch, stds = tiny_round(model)
    batch.latents[1, 5] += 0.01  # as if stored in low precision: it is the action of step 0 and the state of step 1
    batch.log_probs[0, 5] = log_prob(batch.latents[1, 5:6], batch.means[0, 5:6], stds[0])
    with pytest.raises(RatioError, match="step 1"):
        check_ratio(model.predict, batch, schedule(), stds, 1e-4, 4)


def test_a_ratio_that_is_not_a_number_is_noticed() -> None:
    model = Tiny()
    batch, stds = tiny_round(model)
    batch.log_probs[1, 3] = math.nan
    with pytest.raises(RatioError, match=r"step 1: .* is nan"):
        check_ratio(model.predict, batch, schedule(), stds, 1e-4, 4)


@pytest.mark.parametrize(("broken", "named"), [("advantages", "policy loss is nan"), ("anchors", "anchor loss is nan")])
def test_a_loss_that_is_not_finite_leaves_the_weights(broken: str, named: str) -> None:
    model = Tiny()
    batch, stds = tiny_round(model, anchors=True)
    getattr(batch, broken)[2] = math.nan
    before = flat(model)
    where = "round 4, inner epoch 0, minibatch 0 of 1"
    with pytest.raises(FloatingPointError, match=rf"{where}: the {named}.*gradient norm"):
        updater(model, stds, Learner(anchor=Anchor(weight=1.0))).run(batch, round=4, seed=0, lr=1.0)
    assert torch.equal(flat(model), before) and all(p.grad is None for p in model.parameters())


def test_gradient_norm_is_reported_before_it_is_clipped() -> None:
    model = Tiny()
    batch, stds = tiny_round(model)
    whole = change(Tiny(), batch, stds, Learner(max_grad_norm=FULL))
    before = flat(model)
    metrics = updater(model, stds, Learner(max_grad_norm=0.01)).run(batch, round=0, seed=0, lr=1.0)
    assert metrics["grad_norm"] == pytest.approx(float(whole.norm()), rel=1e-5) and whole.norm() > 0.02
    torch.testing.assert_close(flat(model) - before, whole * 0.01 / whole.norm(), rtol=1e-3, atol=1e-6)


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
    config = warm_start_learner(WarmStart(loss="mse", minibatch=100), Learner(max_grad_norm=FULL))
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


def test_teacher_guided_rows_start_at_ratio_one() -> None:
    """Their action is another mean plus noise; the stored density is the policy's at that action."""
    model, teacher = Tiny(), Tiny(2)
    batch, stds = tiny_round(model)
    moved = batch.latents.clone()
    step, grid = 1, schedule()
    with torch.no_grad():
        p = teacher.predict(batch.latents[step], grid[step], batch.encoded)
        mean = grid[step + 1].alpha * p.x0 + (grid[step + 1].sigma ** 2 - stds[step] ** 2).sqrt() * p.eps
    moved[step + 1] = mean + (batch.latents[step + 1] - batch.means[step])
    logs = batch.log_probs.clone()
    logs[step] = log_prob(moved[step + 1], batch.means[step], stds[step])
    guided = dataclasses.replace(batch, latents=moved, log_probs=logs)
    for loss in ("ppo_clip", "grpo_guard"):
        metrics = updater(Tiny(), stds, Learner(loss=loss)).run(guided, round=0, seed=0, lr=1e-4)
        assert metrics["ratio_max_deviation"] < 1e-5 and metrics["fresh_log_ratio_1"] < 1e-5


def test_what_cannot_be_trained_is_refused() -> None:
    model, none = Tiny(), torch.zeros(3, dtype=torch.float64)
    batch, stds = tiny_round(model)
    with pytest.raises(ValueError, match="nothing to train"):
        updater(model, none, Learner())
    with pytest.raises(ValueError, match="kind=kl needs a reference"):
        updater(model, stds, Learner(regulariser=Regulariser(kind="kl")))
    with pytest.raises(ValueError, match="no anchors"):
        updater(model, stds, Learner(anchor=Anchor(weight=1.0))).run(batch, round=0, seed=0, lr=1.0)
    with pytest.raises(ValueError, match="2 ranks need"):
        updater(model, stds, Learner(), world=2)
    with pytest.raises(ValueError, match=r"expected \[3\]"):
        Updater(model.predict, torch.optim.SGD(model.parameters()), schedule(3), none[:2], Learner(), ratio_tolerance=1)


def test_learning_rate() -> None:
    cosine = Learner(lr=2.0, schedule="cosine", rounds=10)
    assert [learning_rate(cosine, r) for r in (0, 5, 10)] == pytest.approx([2.0, 1.0, 0.0])
    assert learning_rate(Learner(lr=2.0), 7) == 2.0


def three_rounds(predict_model: Tiny) -> list[dict[str, float]]:
    """Three fresh rounds of real policy, reward and update; AdamW, everything on."""
    model, found = predict_model, []
    config = Learner(
        inner_epochs=2, minibatch=12, clip=0.02, microbatch=5, step_weight="std", anchor=Anchor(weight=0.5),
        regulariser=Regulariser(kind="js", weight=0.2),
    )
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=config.weight_decay)
    stds = schedule(3).stds(0.6, "posterior", False)
    reference: Predict = Tiny(1).predict
    run = Updater(model.predict, optimizer, schedule(3), stds, config, ratio_tolerance=1e-4, reference=reference)
    for r in range(3):
        x = values(12, 60 + r).reshape(2, 1, 2, 3).repeat(1, 4, 1, 1).reshape(8, 2, 3)
        batch = play(model, x, stds, round=r, anchors=True, labels=torch.tensor([0] * 4 + [1] * 4))
        rewards = -batch.latents[-1].square().flatten(1).mean(1).reshape(2, 4)
        batch = dataclasses.replace(batch, advantages=advantages(rewards, "global_std", 5.0).values.flatten())
        metrics = run.run(batch, round=r, seed=1, lr=0.01)
        found.append({k: metrics[k] for k in ("loss", "loss_policy", "loss_regulariser", "grad_norm", "ratio_std")})
    return found


def test_golden_updates() -> None:
    expected = json.loads(GOLDEN.read_text())
    for number, (found, stored) in enumerate(zip(three_rounds(Tiny()), expected, strict=True)):
        assert found == pytest.approx(stored, rel=1e-3, abs=1e-6), f"round {number}; regenerate only for a meant change"


def test_training_raises_the_reward() -> None:
    """The whole loop on a toy, measured by E[R] in closed form."""
    model, stds = Affine(), schedule(3).stds(0.6, "posterior", True)
    config = Learner(inner_epochs=2, minibatch=400, clip=0.1)
    optimizer = torch.optim.AdamW(model.parameters())
    run = Updater(model.predict, optimizer, schedule(3), stds, config, ratio_tolerance=1e-4)

    def value() -> float:
        w, b = model.w.item(), model.b.item()
        return float(expected_reward([torch.tensor(w)] * 3, [torch.tensor(b)] * 3, stds, 0.7, 0.9))

    before = value()
    for r in range(15):
        batch = play(model, torch.full((256, 1), 0.7), stds, round=r)
        rewards = -(batch.latents[-1, :, 0] - 0.9).square().reshape(16, 16)
        batch = dataclasses.replace(batch, advantages=advantages(rewards, "global_std", 5.0).values.flatten())
        run.run(batch, round=r, seed=0, lr=0.05)
    assert value() > 0.5 * before  # of a negative number: half the error is gone


def test_no_global_randomness() -> None:
    state = torch.get_rng_state()
    model = Tiny()
    batch, stds = tiny_round(model)
    updater(model, stds, Learner(minibatch=4)).run(batch, round=0, seed=0, lr=1e-3)
    assert torch.equal(torch.get_rng_state(), state)
    assert noise.permutation(4, Stream.MINIBATCH, seed=0).shape == (4,)
