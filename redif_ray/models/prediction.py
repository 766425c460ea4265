"""Conversion of a network's output to the (x0_hat, eps_hat) of a transition, with x = alpha x0 + sigma eps."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from redif_ray.diffusion.levels import Level, like
from redif_ray.diffusion.transition import Prediction


def _epsilon(x: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Prediction:
    return Prediction((x - sigma * eps) / alpha, eps)


def _sample(x: Tensor, x0: Tensor, alpha: Tensor, sigma: Tensor) -> Prediction:
    return Prediction(x0, (x - alpha * x0) / sigma)


def _velocity(x: Tensor, v: Tensor, alpha: Tensor, sigma: Tensor) -> Prediction:
    """v = alpha eps - sigma x0 where alpha^2 + sigma^2 = 1 (Salimans & Ho, arXiv 2202.00512)."""
    return Prediction(alpha * x - sigma * v, sigma * x + alpha * v)


def _flow(x: Tensor, v: Tensor, alpha: Tensor, sigma: Tensor) -> Prediction:
    """v = eps - x0 where alpha + sigma = 1 (Liu et al., arXiv 2209.03003)."""
    return Prediction(x - sigma * v, x + alpha * v)


CONVERSIONS: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Prediction]] = {
    "epsilon": _epsilon,
    "sample": _sample,
    "v_prediction": _velocity,
    "flow_prediction": _flow,
}


def to_prediction(kind: str, output: Tensor, x: Tensor, level: Level, clip: float | None = None) -> Prediction:
    """Return the prediction for a network's `output`, of the shape of `x` [B, ...]; `level` is scalar or [B].

    kind: diffusers' prediction_type, a key of `CONVERSIONS`. clip: bound to which |x0| is clamped; eps then follows
    from x = alpha x0 + sigma eps. None: no clamping.
    """
    alpha, sigma = like(level.alpha, x), like(level.sigma, x)
    prediction = CONVERSIONS[kind](x, output, alpha, sigma)
    if clip is None:
        return prediction
    return _sample(x, prediction.x0.clamp(-clip, clip), alpha, sigma)
