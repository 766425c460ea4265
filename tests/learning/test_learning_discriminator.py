"""The discriminator's loss by hand, its update over microbatches and ranks, and that it learns what it is for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from learning_toy import values
from thread_ranks import run_ranks
from torch import Tensor

from redif_ray.learning.discriminator import DiscriminatorUpdater, Images, optimiser, student_loss, teacher_loss
from redif_ray.learning.gradients import AllReduce
from redif_ray.models.discriminator import Discriminator

SHAPE = (2, 6, 5)


def images(count: int, group: int, total: int | None = None, labels: Tensor | None = None) -> Images:
    x = torch.sigmoid(values(count * 60, group)).reshape(count, *SHAPE)
    return Images(x, labels, total or count)


def network(num_classes: int = 0) -> Discriminator:
    """With heads that are not zero, so that every weight has a gradient."""
    made = Discriminator(SHAPE, width=4, num_classes=num_classes, seed=3)
    heads = [made.head.weight, *([made.class_heads.weight] if made.class_heads is not None else [])]
    with torch.no_grad():
        for i, weight in enumerate(heads):
            weight.copy_(values(weight.numel(), 70 + i).reshape(weight.shape))
    return made


def updater(net: Discriminator, lr: float = 1e-3, **options: object) -> DiscriminatorUpdater:
    settings = {"steps": 3, "r1": 0.5, "microbatch": 64} | options
    return DiscriminatorUpdater(net, optimiser(net, lr), **settings)  # type: ignore[arg-type]


def test_losses_by_hand() -> None:
    net, student, teacher = network(), images(5, 1, total=9), images(3, 2, total=4)
    loss, logits = student_loss(net, student)
    assert float(loss.detach()) == pytest.approx(np.log1p(np.exp(logits.detach().numpy())).sum() / 9)
    loss, logits, _ = teacher_loss(net, teacher)
    assert float(loss.detach()) == pytest.approx(np.log1p(np.exp(-logits.detach().numpy())).sum() / 4)


def test_the_gradient_penalty_by_finite_differences() -> None:
    """Its value against differences of logits over pixels, its gradient against differences over a weight."""
    net, teacher = network().double(), images(2, 2)
    x = teacher.images.double()
    net.head.weight.data *= 0.1
    _, _, squares = teacher_loss(net, Images(x, None, 2))
    step, expected = 1e-6, torch.zeros(2, dtype=torch.float64)
    with torch.no_grad():
        for i in range(60):
            bump = torch.zeros(60, dtype=torch.float64)
            bump[i] = step
            moved = bump.reshape(SHAPE)
            expected += ((net(x + moved) - net(x - moved)) / (2 * step)).square()
    torch.testing.assert_close(squares.detach(), expected, rtol=1e-5, atol=1e-9)

    squares.sum().backward()
    weight = net.body[0].weight
    assert weight.grad is not None
    found = []
    for sign in (1, -1):
        weight.data[1, 0, 1, 1] += sign * step
        found.append(teacher_loss(net, Images(x, None, 2))[2].sum().item())
        weight.data[1, 0, 1, 1] -= sign * step
    assert float(weight.grad[1, 0, 1, 1]) == pytest.approx((found[0] - found[1]) / (2 * step), rel=1e-4)


def test_one_step_is_the_gradient_of_the_whole_loss() -> None:
    """Of both losses and r1 / 2 times the mean of |dD/dy|^2, by plain gradient descent."""
    net, student, teacher = network(), images(6, 1), images(3, 2)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    _, _, squares = teacher_loss(net, teacher)
    total = student_loss(net, student)[0] + teacher_loss(net, teacher)[0] + 20 * squares.mean()
    gradients = dict(zip(before, torch.autograd.grad(total, list(net.parameters())), strict=True))
    descent = torch.optim.SGD(net.parameters(), lr=0.01)
    DiscriminatorUpdater(net, descent, steps=1, r1=40.0, microbatch=64).run(student, teacher, where="here")
    for name, p in net.named_parameters():
        torch.testing.assert_close(p.detach(), before[name] - 0.01 * gradients[name], rtol=1e-4, atol=1e-5)


def test_microbatches_change_nothing_beyond_rounding() -> None:
    one, many = network(), network()
    whole = updater(one).run(images(9, 1), images(3, 2), where="here")
    parts = updater(many, microbatch=2).run(images(9, 1), images(3, 2), where="here")
    for a, b in zip(one.parameters(), many.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    del whole["seconds"], parts["seconds"]
    assert parts == pytest.approx(whole, rel=1e-5)


def test_two_ranks_equal_one() -> None:
    """Unequal shares, classes too; metrics are the whole round's on both ranks."""
    labels, own = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 2]), torch.tensor([2, 0, 1])
    alone = network(3)
    expected = updater(alone).run(images(9, 1, labels=labels), images(3, 2, labels=own), where="here")
    nets = [network(3), network(3)]

    def rank(i: int, all_reduce: AllReduce) -> dict[str, float]:
        rows, teachers = (slice(0, 3), slice(0, 1)) if i == 0 else (slice(3, 9), slice(1, 3))
        student = Images(images(9, 1).images[rows], labels[rows], 9)
        teacher = Images(images(3, 2).images[teachers], own[teachers], 3)
        return updater(nets[i], all_reduce=all_reduce).run(student, teacher, where="here")

    found = run_ranks(rank)
    for name, weight in alone.state_dict().items():
        assert torch.equal(nets[0].state_dict()[name], nets[1].state_dict()[name])
        torch.testing.assert_close(nets[0].state_dict()[name], weight, rtol=1e-4, atol=1e-5)
    for metrics in (expected, *found):
        del metrics["seconds"]
    assert found[0] == found[1] == pytest.approx(expected, rel=1e-5)


def test_shares_by_hand() -> None:
    """Of the network before training; `ranked` compares each image with its own group's."""
    student, teacher = images(12, 4), images(3, 24)
    with torch.no_grad():
        middle = network()(student.images).median()
        below, above = ((network()(side.images) - middle).tolist() for side in (student, teacher))
    net = network()
    net.head.bias.data -= middle
    found = updater(net, microbatch=5).run(student, teacher, where="here")
    ranked, crossed = (
        sum(below[4 * g + k] < top[g] for g in range(3) for k in range(4)) / 12 for top in (above, above[::-1])
    )
    assert ranked != crossed and found["ranked"] == pytest.approx(ranked)
    assert found["student_accuracy"] == pytest.approx(sum(x < 0 for x in below) / 12)
    assert found["teacher_accuracy"] == pytest.approx(sum(x > 0 for x in above) / 3)


def test_what_is_not_finite_stops_before_the_weights_move() -> None:
    net = network()
    net.head.weight.data[0, 0] = torch.inf
    before = [p.detach().clone() for p in net.parameters()]
    with pytest.raises(FloatingPointError, match="round 7, discriminator step 0: the student loss is"):
        updater(net).run(images(3, 1), images(3, 2), where="round 7")
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


def test_version_0_is_a_function_of_the_seed_and_prefers_no_image() -> None:
    first, again, other = (Discriminator((1, 28, 28), width=8, seed=seed) for seed in (1, 1, 2))
    x = torch.sigmoid(values(3 * 784)).reshape(3, 1, 28, 28)
    assert first(x).tolist() == [0, 0, 0]
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.body[0].weight, other.body[0].weight)
    deep = Discriminator((1, 128, 128), width=2).body
    assert deep[3].weight.shape == deep[4].weight.shape and not torch.equal(deep[3].weight, deep[4].weight)
    last = first.body[2].weight
    assert last.square().mean().item() == pytest.approx(2 / 1.04 / last[0].numel(), rel=0.05)


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 4, 4), (1, 5, 3), (3, 33, 17), (4, 64, 8)])
def test_images_of_any_shape(shape: tuple[int, int, int]) -> None:
    net = Discriminator(shape, width=2, num_classes=3)
    x = torch.sigmoid(values(2 * torch.Size(shape).numel())).reshape(2, *shape)
    assert net(x, torch.tensor([0, 2])).shape == (2,)


def side(count: int, level: float, round: int, group: int) -> Images:
    """Noise around a grey level; the two sides share their spread."""
    z = values(count * 64, 1000 * group + round).reshape(count, 1, 8, 8)
    return Images((level + 0.15 * z).clamp(0, 1), None, count)


@pytest.mark.slow
def test_it_learns_to_tell_two_distributions() -> None:
    """On images that it has not seen; of one distribution it learns nothing."""

    def accuracies(gap: float) -> list[float]:
        net = Discriminator((1, 8, 8), width=8)
        update, found = updater(net, r1=0.1), []
        for round in range(40):
            metrics = update.run(side(32, 0.5 + gap, round, 1), side(8, 0.5, round, 2), where="toy")
            found.append((metrics["student_accuracy"] + metrics["teacher_accuracy"]) / 2)
        return found

    apart, alike = accuracies(0.15), accuracies(0.0)
    assert apart[0] == 0  # version 0 says 0 of every image
    assert np.mean(apart[-5:]) > 0.95 and 0.3 < np.mean(alike[-10:]) < 0.7


@pytest.mark.slow
def test_a_student_that_maximises_it_comes_to_the_teacher() -> None:
    """A student with one number, its grey level, moved by the sign of the mean reward's slope each round."""
    net, level, path = Discriminator((1, 8, 8), width=8), 0.8, []
    update = updater(net, steps=2)
    for round in range(80):
        update.run(side(32, level, round, 1), side(8, 0.4, round, 2), where="toy")
        with torch.no_grad():
            higher, here = (net(side(32, grey, round, 1).images).mean() for grey in (level + 0.01, level))
        level += 0.01 * float(torch.sign(higher - here))
        path.append(level)
    assert abs(np.mean(path[-20:]) - 0.4) < 0.05
