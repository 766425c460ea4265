"""Protection of the images that all reward terms share: no term of the user's may alter them."""

from __future__ import annotations

import torch
from torch import Tensor

from redif_ray.rewards.term import RewardError, RewardInputs


def copied(inputs: RewardInputs) -> RewardInputs:
    """Return a copy of the images and conditions, so that a term cannot alter the caller's."""
    paired = None if inputs.paired is None else inputs.paired.clone()
    return RewardInputs(inputs.student.clone(), paired, tuple(inputs.conditions), inputs.kept)


def check_unaltered(given: RewardInputs, original: RewardInputs) -> None:
    """Raise `RewardError` unless the images `given` to a term are still equal to those of `original`."""
    for role, image, before in (
        ("student", given.student, original.student),
        ("teacher", given.paired, original.paired),
    ):
        if image is not None and before is not None and not _equal(image.detach(), before.detach()):
            raise RewardError(
                f"it altered the {role} images that it was given; work on a copy, such as {role} = {role}.clone()"
            )


def _equal(image: Tensor, before: Tensor) -> bool:
    same = (image.shape, image.dtype, image.device) == (before.shape, before.dtype, before.device)
    return same and torch.equal(image, before)
