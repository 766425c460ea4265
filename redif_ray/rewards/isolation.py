"""Protection of the images that all reward terms share: no term may alter them."""

from __future__ import annotations

import torch

from redif_ray.rewards.term import RewardError, RewardInputs


def copied(inputs: RewardInputs) -> RewardInputs:
    """Return a copy of the images and conditions, so that a term cannot alter the caller's."""
    return RewardInputs(inputs.student.clone(), inputs.teacher.clone(), tuple(inputs.conditions), inputs.kept)


def check_unaltered(given: RewardInputs, original: RewardInputs) -> None:
    """Raise `RewardError` unless the images `given` to a term are still equal to those of `original`."""
    for role, image, before in (
        ("student", given.student, original.student),
        ("teacher", given.teacher, original.teacher),
    ):
        if not torch.equal(image.detach(), before.detach()):
            raise RewardError(
                f"it altered the {role} images that it was given, which other terms get too; work on a copy, such as "
                f"{role} = {role}.clone()"
            )
