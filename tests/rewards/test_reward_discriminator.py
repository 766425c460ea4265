"""The learned term as a reward: what it starts from, what it is loaded with, and whose classes it asks for."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from redif_ray.config import Term
from redif_ray.rewards.base import RewardError, build_terms


def weights(term):
    """Heads that are not zero."""
    found = {name: value.clone() for name, value in term.network.state_dict().items()}
    for name in found:
        if "head" in name:
            found[name] = torch.linspace(-1, 1, found[name].numel()).reshape(found[name].shape)
    return found


def test_version_0_tells_no_images_apart_and_a_loaded_one_does(pair, build):
    rewards, inputs = build("discriminator", "mse"), pair()
    assert rewards(inputs)["discriminator"].tolist() == [0, 0, 0]
    rewards.learned.load(weights(rewards.learned))
    found = rewards(inputs)["discriminator"]
    assert len(set(found.tolist())) == 3 and found.dtype == inputs.student.dtype
    alone = torch.cat(
        [
            rewards(
                replace(inputs, student=inputs.student[i : i + 1], paired=inputs.teacher[i : i + 1], conditions=[0])
            )["discriminator"]
            for i in range(3)
        ]
    )
    torch.testing.assert_close(alone, found, rtol=1e-5, atol=1e-6)
    assert torch.equal(rewards(replace(inputs, paired=inputs.student))["discriminator"], found)  # the student's alone
    assert build("mse").learned is None


def test_its_gradient_reaches_the_image_and_not_the_network(pair, build):
    rewards, inputs = build("discriminator"), pair()
    rewards.learned.load(weights(rewards.learned))
    inputs.student.requires_grad_()
    rewards(inputs)["discriminator"].sum().backward()
    assert inputs.student.grad.abs().sum() > 0
    assert all(p.grad is None for p in rewards.learned.network.parameters())


def test_it_starts_from_the_seed_of_the_run():
    def body(seed):
        terms = {"discriminator": Term()}
        rewards = build_terms(terms, num_classes=0, image_shape=(1, 8, 8), device="cpu", seed=seed)
        return rewards.learned.network.body[0].weight

    assert torch.equal(body(1), body(1)) and not torch.equal(body(1), body(2))


def test_conditional_it_judges_an_image_for_its_class(pair, build):
    rewards, inputs = build(terms={"discriminator": {"conditional": True}}), pair()
    rewards.learned.load(weights(rewards.learned))
    found, other = (rewards(replace(inputs, conditions=c))["discriminator"] for c in ([0, 1, 2], [0, 1, 3]))
    assert found[:2].tolist() == other[:2].tolist() and found[2] != other[2]
    with pytest.raises(RewardError, match="condition None: conditional=true expects classes in"):
        rewards(replace(inputs, conditions=[0, None, 1]))
    with pytest.raises(RewardError, match="discriminator: conditional=true needs class conditions"):
        build(terms={"discriminator": {"conditional": True}}, num_classes=0)
