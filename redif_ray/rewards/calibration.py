"""Reference values of every reward term at three known points, measured before training starts."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from redif_ray.rewards.term import RewardError

Terms = Mapping[str, np.ndarray]
Calibration = dict[str, dict[str, float]]  # by term: self, other_seed, init, spread


def calibrate(same: Terms, other_seed: Terms, init: Terms) -> Calibration:
    """Return the mean raw value of each term at three points, and a spread. Each argument holds values [n] by term.

    self: the teacher's images compared with themselves (`same`); the ceiling of a term that compares pairs.
    other_seed: the teacher's images compared with its images of another seed for the same conditions; they have the
        right distribution and the wrong details.
    init: the student at initialisation compared with the teacher; training starts here.
    spread: the standard deviation of the values of `init` over the images; a unit where there are no siblings.
    """
    raw = {
        point: {label: torch.from_numpy(values) for label, values in terms.items()}
        for point, terms in (("self", same), ("other_seed", other_seed), ("init", init))
    }
    means = {label: {point: float(values[label].mean()) for point, values in raw.items()} for label in init}
    return {label: points | {"spread": float(raw["init"][label].std(correction=0))} for label, points in means.items()}


def check_range(darkest: float) -> None:
    """Raise `RewardError` if no pixel of the teacher is below 0.5, since a second (x + 1) / 2 has that effect.

    darkest: least pixel value of the teacher's images.
    """
    if darkest >= 0.5:
        raise RewardError(
            f"no pixel of the teacher is below {darkest:g}; expected some below 0.5: check that its images "
            "are not mapped by (x + 1) / 2 twice"
        )


def blind(calibration: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Return the terms that gave every image of the calibration the same value."""
    return [
        name
        for name, point in calibration.items()
        if point["self"] == point["other_seed"] == point["init"] and point["spread"] == 0
    ]


def by_agreement(point: Mapping[str, float]) -> bool:
    """Tell whether a term measures agreement of two images, so that the teacher's own image has the highest value.

    point: the term's calibration. Such a term gives the teacher's image of another noise far less.
    """
    return point["self"] - point["other_seed"] > 0.2 * abs(point["self"] - point["init"])


def table(calibration: Mapping[str, Mapping[str, float]]) -> str:
    """Return a text table with a line per term: its mean values, the possible gain (self - init), and the spread."""
    width = max(len("term"), *(len(label) for label in calibration))
    lines = [f"{'term':<{width}} {'self':>11} {'other seed':>11} {'init':>11} {'to gain':>11} {'spread':>11}"]
    for label, point in calibration.items():
        values = (point["self"], point["other_seed"], point["init"], point["self"] - point["init"], point["spread"])
        lines.append(f"{label:<{width}} " + " ".join(f"{value:>11.5g}" for value in values))
    return "\n".join(lines)
