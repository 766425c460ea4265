"""A reward term sees images and returns values; the images that other terms see stay as they are."""

from __future__ import annotations

import torch

from redif_ray.rewards.term import RewardError, RewardInputs


def copied(inputs: RewardInputs) -> RewardInputs:
    """Return the same images and conditions in memory of their own, so that the caller's stay as they are."""
    return RewardInputs(inputs.student.clone(), inputs.teacher.clone(), tuple(inputs.conditions), inputs.kept)


def check_unaltered(given: RewardInputs, original: RewardInputs) -> None:
    """Raise `RewardError` unless the images `given` to a term are still those of `original`."""
    for role, image, before in (
        ("student", given.student, original.student),
        ("teacher", given.teacher, original.teacher),
    ):
        if not torch.equal(image.detach(), before.detach()):
            raise RewardError(
                f"it altered the {role} images that it was given, which other terms see too; work on a copy, such as "
                f"{role} = {role}.clone()"
            )
