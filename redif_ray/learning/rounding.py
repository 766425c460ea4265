"""Bounds on how much a prediction depends on the batch in which it is computed."""

from __future__ import annotations

from redif_ray.config import Config


def rounds_apart(config: Config) -> bool:
    """Tell whether predictions change with the batch by more than the rounding of float32 sums."""
    return config.networks.precision != "float32" or bool(config.rollout.gpus or config.learner.gpus)


def ratio_tolerance(config: Config) -> float:
    """Return the largest |log ratio| accepted of a fresh round: `guard.ratio_tolerance`, or a bound for rounding."""
    return config.guard.ratio_tolerance or (5e-2 if rounds_apart(config) else 1e-4)
