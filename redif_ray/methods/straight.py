"""A control of the policy gradient: the reward's gradient at the image, given to every step as it is.

Each step is pushed along the gradient at the final image, as if the steps after it were the identity, so nothing is
back-propagated from step to step. It is the arm of which a reviewer thinks first, and not reinforcement learning.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from redif_ray.methods.output import Output

if TYPE_CHECKING:
    from redif_ray.rewards.base import Rewards


class Straight(Output):
    """The rounds of the straight gradient; `output.groups` is their size."""

    name, title, through_steps = "straight", "straight gradient", False

    def check(self, rewards: Rewards) -> None:
        rewards.require_differentiable("method=straight")
