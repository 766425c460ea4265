"""The combined reward of several terms over a whole round."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from redif_ray import config
from redif_ray.rewards.term import RewardError

CONSTANT = 1e-6  # a spread below this share of the largest value is float32 rounding


@dataclass(frozen=True, slots=True)
class Combined:
    """The combined rewards of a round.

    rewards: [R]. spreads: within-group spread of every raw term; 0.0 for a term that is equal for all siblings.
    """

    rewards: Tensor
    spreads: dict[str, float]


def combine(raw: Mapping[str, Tensor], terms: Mapping[str, config.Term], *, siblings: int) -> Combined:
    """Return the weighted sum of a whole round's terms, sum_i w_i r_i / s_i.

    raw: values [R] of each term, group-major with `siblings` rows per group; all rows of the round, since s_i is a
        statistic of the round.
    terms: weight and normalisation by label. `none`: s_i = 1. `std`: s_i = sqrt(mean((r - group mean of r)^2)) over the
        round, detached; nothing is subtracted. A term with s_i = 0 then adds 0.
    Raises `RewardError` for labels or lengths that do not fit, and for `std` without siblings to compare.
    """
    if set(raw) != set(terms):
        raise RewardError(f"reward terms {sorted(raw)} do not match the configured {sorted(terms)}")
    total, spreads = torch.zeros(()), {}
    for label, term in terms.items():
        values = raw[label]
        if values.ndim != 1 or not len(values) or len(values) % siblings:
            shape = list(values.shape)
            raise RewardError(f"reward term {label!r} has shape {shape}; expected the round's groups * {siblings}")
        if term.normalise == "std" and siblings < 2:
            raise RewardError(f"reward.terms.{label}.normalise=std compares siblings, and there are none; use none")
        spreads[label] = centred_std(values, siblings)
        if term.normalise == "none":
            total = total + term.weight * values
        elif spreads[label] > 0:
            total = total + term.weight * values / spreads[label]
        else:
            total = total + torch.zeros_like(values)
    return Combined(total, spreads)


def weighted_sum(values: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Return sum_i w_i r_i over the terms of `weights`, in their order; all r_i have one shape, usually [n]."""
    return torch.stack([weight * values[name] for name, weight in weights.items()]).sum(0)


def centred_std(values: Tensor, siblings: int) -> float:
    """Return sqrt(mean((r - group mean of r)^2)) of group-major values [R]; 0.0 where it is only rounding."""
    groups = values.detach().to(torch.float64).reshape(-1, siblings)
    std = float((groups - groups.mean(1, keepdim=True)).square().mean().sqrt())
    return std if std > CONSTANT * float(groups.abs().max()) else 0.0
