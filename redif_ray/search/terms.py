"""The objective of a search: the terms that workers compute of images, and the scalar that a search minimises."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from redif_ray.evaluation.frechet import frechet

Terms = dict[str, np.ndarray]  # raw reward terms by name, [noises], and with a Fréchet distance the two entries below
FEATURES, TARGETS = "features", "targets"  # features [noises, D] of the images, and of the teacher's images


def score(terms: Mapping[str, np.ndarray], weights: Mapping[str, float], frechet_weight: float) -> float:
    """Return -sum(weights x mean terms) + frechet_weight x Fréchet distance to the teacher's images; lower is better.

    The Fréchet distance is biased by the number of noises, equally for all schedules scored on the same noises.
    """
    distance = -sum(weight * float(terms[name].mean(dtype=np.float64)) for name, weight in weights.items())
    return distance + frechet_weight * frechet(terms[FEATURES], terms[TARGETS]) if frechet_weight else distance
