"""Divergences of the policy from a reference at each step, where both are Gaussians that differ in their mean only.

With d2 = sum over D of (mean - mean_ref)^2 / S^2 and p = N(mean, S^2 I), q = N(mean_ref, S^2 I):

    kl      KL(p | q)                           d2 / 2
    chi2    E_q[(p / q)^2] - 1                  exp(d2) - 1
    renyi   ln E_q[(p / q)^a] / (a - 1)         a d2 / 2
    power   (E_q[(p / q)^a] - 1) / (a (a - 1))  (exp(a (a - 1) d2 / 2) - 1) / (a (a - 1))
    js      (KL(p | m) + KL(q | m)) / 2         ln 2 - E[softplus(d z - d2 / 2)], z ~ N(0, 1), m = (p + q) / 2
    mse     no divergence                       mean over D of (mean - mean_ref)^2; needs no S

`tempered` replaces the sum over D by the mean: kl and renyi become averages per dimension, and chi2 becomes
(1 + chi2)^(1/D) - 1. With the sum, exp(d2) overflows float32 above d2 = 88. All of them are differentiable in `mean`.

`DIVERGENCES` lists the built-in kinds; `learner.regulariser.kind=path/to/file.py:name` selects a function of your own
of d2 and order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from redif_ray.diffusion.levels import like
from redif_ray.registry import found_or_imported

NODES = 96  # nodes of the Gauss-Hermite rule; they give JS to 1e-5 for any d
Divergence = Callable[[Tensor, float], Tensor]  # d2 [P] float64 and the order, to the value of each pair [P]


def kl(d2: Tensor, order: float) -> Tensor:
    return d2 / 2


def chi2(d2: Tensor, order: float) -> Tensor:
    return torch.expm1(d2)


def renyi(d2: Tensor, order: float) -> Tensor:
    return order * d2 / 2


def power(d2: Tensor, order: float) -> Tensor:
    product = order * (order - 1)
    return torch.expm1(product * d2 / 2) / product


def jensen_shannon(d2: Tensor, order: float) -> Tensor:
    """Return JS of N(0, 1) and N(d, 1), from d^2 [P] float64; by symmetry its two halves are equal."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(NODES)
    z = torch.from_numpy(nodes).to(d2.device)
    weight = torch.from_numpy(weights / math.sqrt(2 * math.pi)).to(d2.device)
    d = d2.clamp(min=1e-12).sqrt().unsqueeze(1)  # the root has no gradient at 0, where JS is d2 / 8
    return math.log(2) - functional.softplus(d * z - d.square() / 2) @ weight


DIVERGENCES: Mapping[str, Divergence] = {
    "kl": kl,
    "chi2": chi2,
    "renyi": renyi,
    "power": power,
    "js": jensen_shannon,
}


def find_divergence(kind: str) -> Divergence:
    """Return the function that `learner.regulariser.kind` names. Raises UserCodeError where it cannot be imported."""
    return found_or_imported(kind, DIVERGENCES, "learner.regulariser.kind")


def divergence(
    kind: str, mean: Tensor, mean_ref: Tensor, std: Tensor, *, order: float = 0.5, tempered: bool = True
) -> Tensor:
    """Return the divergence of each pair, [P] float32 (float64 for float64 means).

    mean, mean_ref: [P, ...]. std: S of each pair, [P]. order: a of `renyi` and of `power`, neither 0 nor 1.
    Raises UserCodeError for an unknown kind, and ValueError for S = 0 unless the kind is mse.
    """
    if kind == "mse":
        return (mean - mean_ref).square().flatten(1).mean(1)
    if not bool((std > 0).all()):
        raise ValueError(f"divergence {kind} of a deterministic step: expected S > 0, or kind mse")
    square = ((mean - mean_ref) / like(std, mean)).double().square().flatten(1)
    d2 = square.mean(1) if tempered else square.sum(1)
    return find_divergence(kind)(d2, order).to(mean.dtype)
