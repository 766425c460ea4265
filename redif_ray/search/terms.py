"""The objective of a search: what workers say of images, and the one number that it makes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from redif_ray.evaluation.frechet import frechet

Terms = dict[str, np.ndarray]  # raw values by name, one a noise
FEATURES, TARGETS = "features", "targets"  # among them, [noises, D]: of the images, and of the teacher's


def score(terms: Mapping[str, np.ndarray], weights: Mapping[str, float], frechet_weight: float) -> float:
    """-sum(weights x mean terms) + frechet_weight x the Fréchet distance between images and the teacher's: to be small.

    The latter is biased by the number of noises, alike for all schedules that see the same ones.
    """
    distance = -sum(weight * float(terms[name].mean(dtype=np.float64)) for name, weight in weights.items())
    return distance + frechet_weight * frechet(terms[FEATURES], terms[TARGETS]) if frechet_weight else distance
