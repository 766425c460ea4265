"""What the numbers of a reward mean: each term at three known points, before training starts."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from redif_ray.rewards.term import RewardError

Terms = Mapping[str, np.ndarray]
Calibration = dict[str, dict[str, float]]  # by term: self, other_seed, init, spread


def calibrate(same: Terms, other_seed: Terms, init: Terms) -> Calibration:
    """Mean raw value of each term, from its values [n] where

    self: the teacher's images are compared with themselves (`same`): the ceiling of a pair term;
    other_seed: with the teacher's images of another seed, same conditions: right in law, wrong in detail;
    init: the student at initialisation is compared with the teacher: where training starts;
    and `spread`, the standard deviation of the last one's values over the images: a unit where there are no siblings.
    """
    raw = {
        point: {label: torch.from_numpy(values) for label, values in terms.items()}
        for point, terms in (("self", same), ("other_seed", other_seed), ("init", init))
    }
    means = {label: {point: float(values[label].mean()) for point, values in raw.items()} for label in init}
    return {label: found | {"spread": float(raw["init"][label].std(correction=0))} for label, found in means.items()}


def check_range(teacher: np.ndarray) -> None:
    """Raise `RewardError` where no pixel of the teacher is below 0.5: so images look after a second (x + 1) / 2."""
    darkest = float(teacher.min())
    if darkest >= 0.5:
        raise RewardError(f"no pixel of the teacher is below {darkest:g}; were its images mapped by (x + 1) / 2 twice?")


def table(calibration: Mapping[str, Mapping[str, float]]) -> str:
    """One line a term, what there is to gain, self - init, and the spread of the values that training starts from."""
    width = max(len("term"), *(len(label) for label in calibration))
    lines = [f"{'term':<{width}} {'self':>11} {'other seed':>11} {'init':>11} {'to gain':>11} {'spread':>11}"]
    for label, point in calibration.items():
        values = (point["self"], point["other_seed"], point["init"], point["self"] - point["init"], point["spread"])
        lines.append(f"{label:<{width}} " + " ".join(f"{value:>11.5g}" for value in values))
    return "\n".join(lines)
