"""A policy-gradient loss of your own: the importance-weighted surrogate without a clip (TRPO's, arXiv 1502.05477).

redif distill CONFIG learner.loss=$PWD/docs/examples/own_loss.py:unclipped
"""

import torch
from torch import Tensor

from redif_ray.learning.losses import Action, Surrogate


def unclipped(action: Action, advantage: Tensor, clip: float) -> Surrogate:
    """Return -A rho of each pair, [P], where rho is the ratio of densities now and when the round was played."""
    log_ratio = action.log_ratio(action.log_prob)
    never = torch.zeros_like(log_ratio, dtype=torch.bool)
    return Surrogate(-advantage * log_ratio.exp(), log_ratio.detach(), never)
