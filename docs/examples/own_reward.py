"""A reward of your own: the student's image is as mirror-symmetric as the teacher's (1), or not at all (0).

redif distill CONFIG reward.terms.symmetry.options.callable=$PWD/docs/examples/own_reward.py:symmetry
"""

from torch import Tensor


def asymmetry(images: Tensor) -> Tensor:
    """Mean distance of each image [B, C, H, W] in [0, 1] from its mirror image, [B]."""
    return (images - images.flip(3)).abs().mean((1, 2, 3))


def symmetry(student: Tensor, teacher: Tensor, conditions: list) -> Tensor:
    """One number an image, higher is better. Add the option differentiable=true if back-propagation may use it."""
    return 1 - (asymmetry(student) - asymmetry(teacher)).abs()
