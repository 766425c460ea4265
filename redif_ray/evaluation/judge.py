"""The judge: the features of reference images, and the distances of sets of images to them in feature space.

The images themselves stay where they are made: reward workers embed them (`evaluation.seen`) and send features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Self

import numpy as np

from redif_ray.evaluation.frechet import frechet_to
from redif_ray.evaluation.kid import kid_to
from redif_ray.evaluation.seen import joined_terms
from redif_ray.types import Reference


class Judge:
    """The reference of all arms, whose statistics are computed once.

    name: the encoder's name. features: the encoder's features [m, D] of the reference images. fit: the mean over these
    of how well an image fits its label, by name; empty where they have no labels.
    """

    def __init__(self, name: str, features: np.ndarray, fit: Mapping[str, float] | None = None) -> None:
        self.name, self.reference, self.fit = name, np.asarray(features, np.float64), dict(fit or {})

    @classmethod
    def of(cls, parts: Sequence[Reference]) -> Self:
        """Return the judge whose reference is that of successive work units together."""
        known = joined_terms([part.fit for part in parts]) if all(part.fit for part in parts) else {}
        fit = {name: float(values.mean()) for name, values in known.items()}
        return cls(parts[0].judge, np.concatenate([part.features for part in parts]), fit)

    @cached_property
    def frechet(self) -> Callable[[np.ndarray], float]:
        """Return the function from features [n, D] to their Fréchet distance to the reference."""
        return frechet_to(self.reference)

    @cached_property
    def kid(self) -> Callable[[np.ndarray], tuple[float, float]]:
        """Return the function from features [n, D] to (KID, standard error) against the reference.

        All features are divided by the reference's root mean square; otherwise x . y / d dwarfs the kernel's 1.
        """
        scale = np.sqrt(np.square(self.reference).mean())
        distance = kid_to(self.reference / scale)
        return lambda features: distance(features / scale)
