"""A method of your own: imitate the best sibling of each group (reward-ranked fine-tuning, arXiv 2304.06767).

redif distill CONFIG method=$PWD/docs/examples/own_method.py:BestSibling

Rounds are rolled out and scored as the policy gradient's are, so this phase derives from it and has its own update.
"""

import torch
from torch import Tensor

from redif_ray.learning.round_update import relative_rewards, update_on_trajectories
from redif_ray.learning.step import learning_rate
from redif_ray.methods.redif import Policy


class BestSibling(Policy):
    name, title = "best_sibling", "imitation of the best"

    def update(self, learning, round) -> dict[str, float]:
        relative, metrics = relative_rewards(learning, round.metas)
        stds, settings = self.stds(learning.schedule, round.number), self.config.learner
        lr = learning_rate(settings, round.number - self.first_round)
        return metrics | update_on_trajectories(learning, round, stds, settings, lr, winners(relative.values))


def winners(values: Tensor) -> Tensor:
    """Return K for the best of K siblings of each group and 0 for the others, [G, K], so that the mean weight is 1."""
    siblings = values.shape[1]
    return siblings * torch.nn.functional.one_hot(values.argmax(1), siblings).float()
