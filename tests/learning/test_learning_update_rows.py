"""How a round is cut into minibatches, microbatches and ranks, and what siblings share, changes no gradient."""

from __future__ import annotations

import dataclasses
from functools import partial

import pytest
import torch
from learning_toy import FULL, Tiny, change, flat, play, schedule, tiny_round, updater, values
from thread_ranks import run_ranks
from torch import Tensor

from redif_ray.config import Anchor, Learner, Regulariser
from redif_ray.diffusion.levels import Level
from redif_ray.diffusion.transition import Prediction
from redif_ray.learning.batch import RoundBatch
from redif_ray.learning.gradients import AllReduce
from redif_ray.learning.policy import Predict
from redif_ray.learning.update import Updater


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["ppo_clip", "grpo_guard"])
def test_microbatches_change_nothing(loss: str) -> None:
    config = Learner(
        loss=loss,
        clip=0.1,
        minibatch=9,
        inner_epochs=2,
        max_grad_norm=FULL,
        anchor=Anchor(weight=0.5),
        regulariser=Regulariser(kind="js", weight=0.2),
    )
    model = Tiny()
    batch, stds = tiny_round(model, anchors=True)
    found = [
        change(Tiny(), batch, stds, config.model_copy(update={"microbatch": m}), reference=Tiny(2).predict)
        for m in (1, 4, 24)
    ]
    assert found[0].norm() > 1e-2
    for other in found[1:]:
        torch.testing.assert_close(found[0], other, rtol=0, atol=1e-6)


@pytest.mark.slow
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
    config = Learner(
        clip=0.1,
        minibatch=18,
        inner_epochs=2,
        max_grad_norm=FULL,
        microbatch=microbatch,
        anchor=Anchor(weight=0.5),
        regulariser=Regulariser(kind=kind, weight=0.2),
    )
    moved, seen = [], []
    for batch in (plain, shared):
        model, reference, counts = Tiny(), Tiny(2), [0, 0]

        def counting(who: Tiny, at: int, counts: list[int] = counts) -> Predict:
            def predict(x: Tensor, level: Level, encoded: dict[str, Tensor]) -> Prediction:
                counts[at] += len(x)
                return who.predict(x, level, encoded)

            return predict

        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        metrics = Updater(
            counting(model, 0),
            optimizer,
            schedule(3),
            stds,
            config,
            ratio_tolerance=1e-4,
            reference=counting(reference, 1),
        ).run(batch, round=0, seed=0, lr=0.1)
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

    def rank(i: int, all_reduce: AllReduce) -> tuple[Tensor, dict[str, float]]:
        mine = RoundBatch(
            rows=held[i],
            total_rows=batch.total_rows,
            latents=batch.latents[:, held[i]],
            means=batch.means[:, held[i]],
            log_probs=batch.log_probs[:, held[i]],
            advantages=batch.advantages[held[i]],
            encoded={k: v[held[i]] for k, v in batch.encoded.items()},
            anchors=batch.anchors[:, held[i]],
        )
        model = Tiny()
        run = updater(model, stds, config, reference=Tiny(2).predict, rank=i, world=2, all_reduce=all_reduce)
        metrics = run.run(mine, round=0, seed=0, lr=1.0)
        return flat(model), metrics

    return run_ranks(rank)


@pytest.mark.slow
def test_two_ranks_equal_one() -> None:
    """Also where a minibatch has no pair of one rank: minibatches of two pairs make that certain."""
    config = Learner(
        minibatch=2,
        inner_epochs=2,
        clip=0.1,
        microbatch=3,
        max_grad_norm=0.05,
        anchor=Anchor(weight=0.5),
        regulariser=Regulariser(kind="kl", weight=0.3),
    )
    model = Tiny()
    batch, stds = tiny_round(model, anchors=True)
    alone = updater(model, stds, config, reference=Tiny(2).predict).run(batch, round=0, seed=0, lr=1.0)
    for weights, metrics in two_ranks(batch, stds, config, [torch.tensor([0, 1, 6, 7, 4]), torch.tensor([2, 3, 5])]):
        torch.testing.assert_close(weights, flat(model), rtol=1e-5, atol=1e-6)
        assert metrics.keys() == alone.keys()
        for name in metrics.keys() - {"seconds"}:
            assert metrics[name] == pytest.approx(alone[name], rel=1e-3, abs=1e-6), name


def test_states_that_the_round_lacks_are_an_error() -> None:
    """The last state is read as the action of the step before it, where that explores."""
    model = Tiny()
    batch, stds = tiny_round(model)
    last = int(torch.nonzero(stds)[-1])
    run = partial(updater(model, stds, Learner()).run, round=0, seed=0, lr=0.0)
    run(dataclasses.replace(batch, latents=batch.latents[: last + 2]))
    with pytest.raises(ValueError, match=rf"carries {last + 1} states a row; the steps that train read {last + 2}"):
        run(dataclasses.replace(batch, latents=batch.latents[: last + 1]))


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
