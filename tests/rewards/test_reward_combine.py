"""The weighted sum over a round, by hand in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from redif_ray.config import Term
from redif_ray.rewards.base import RewardError
from redif_ray.rewards.combine import centred_std, combine

A = np.array([1.0, 3.0, 101.0, 103.0, -52.0, -50.0])  # three groups of two: centred -1, 1 in each
B = np.array([0.0, 4.0, 2.0, 2.0, 1.0, 1.0])  # centred -2, 2, 0, 0, 0, 0: std sqrt(8 / 6)


def test_std_is_that_of_the_values_around_their_own_groups_mean():
    assert centred_std(torch.tensor(A), 2) == pytest.approx(1.0)
    assert centred_std(torch.tensor(B), 2) == pytest.approx(np.sqrt(8 / 6))
    assert centred_std(torch.tensor(A), 3) == pytest.approx(
        np.sqrt(np.mean(np.concatenate([A[:3] - A[:3].mean(), A[3:] - A[3:].mean()]) ** 2))
    )


def test_terms_are_divided_weighted_and_summed():
    raw = {"a": torch.tensor(A), "b": torch.tensor(B)}
    terms = {"a": Term(weight=0.5, normalise="none"), "b": Term(weight=-3.0, normalise="std")}
    combined = combine(raw, terms, siblings=2)
    np.testing.assert_allclose(combined.rewards, 0.5 * A - 3 * B / np.sqrt(8 / 6))
    assert combined.spreads == {"a": pytest.approx(1.0), "b": pytest.approx(np.sqrt(8 / 6))}


def test_scale_of_a_normalised_term_does_not_matter():
    terms = {"a": Term(normalise="std")}
    small, large = (combine({"a": torch.tensor(A * s)}, terms, siblings=2).rewards for s in (1e-6, 1e6))
    torch.testing.assert_close(small, large)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_term_that_is_constant_within_groups_adds_nothing_and_is_named(dtype):
    flat = torch.tensor([0.1, 0.1, 0.1, 0.7, 0.7, 0.7], dtype=dtype)
    flat[0] += torch.finfo(torch.float32).eps * 0.1  # rounding is no signal
    other = torch.tensor(B, dtype=dtype)
    combined = combine({"flat": flat, "b": other}, {"flat": Term(normalise="std"), "b": Term()}, siblings=3)
    torch.testing.assert_close(combined.rewards, other)
    assert combined.spreads["flat"] == 0.0 and combined.spreads["b"] > 0
    alone = combine({"flat": flat}, {"flat": Term(normalise="std")}, siblings=3)
    assert alone.rewards.shape == (6,) and not alone.rewards.any()


def test_the_gradient_takes_the_divisor_as_given():
    values = torch.tensor(B, requires_grad=True)
    combine({"b": values}, {"b": Term(weight=2.0, normalise="std")}, siblings=2).rewards.sum().backward()
    np.testing.assert_allclose(values.grad, 2 / np.sqrt(8 / 6))


def test_rounds_that_cannot_be_combined():
    with pytest.raises(RewardError, match=r"\['a'\] do not match the configured \['a', 'b'\]"):
        combine({"a": torch.tensor(A)}, {"a": Term(), "b": Term()}, siblings=2)
    with pytest.raises(RewardError, match=r"'a' has shape \[6\]; expected the round's groups \* 4"):
        combine({"a": torch.tensor(A)}, {"a": Term()}, siblings=4)
    with pytest.raises(RewardError, match=r"a\.normalise=std compares siblings"):
        combine({"a": torch.tensor(A)}, {"a": Term(normalise="std")}, siblings=1)
    assert combine({"a": torch.tensor(A)}, {"a": Term()}, siblings=1).rewards.tolist() == A.tolist()
