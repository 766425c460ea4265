"""How far a prediction may depend on the batch that it was made in."""

from __future__ import annotations

from redif_ray.config import Config


def rounds_apart(config: Config) -> bool:
    """Tell whether a network predicts otherwise in another batch, by more than float32's rounding of sums."""
    return config.networks.precision != "float32" or bool(config.rollout.gpus or config.learner.gpus)


def ratio_tolerance(config: Config) -> float:
    """Return the largest |log ratio| of a fresh round: `guard.ratio_tolerance`, or else what rounding explains."""
    return config.guard.ratio_tolerance or (5e-2 if rounds_apart(config) else 1e-4)
