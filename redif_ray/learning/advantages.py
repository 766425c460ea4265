"""Advantages: rewards of a round, relative to a baseline (as in GRPO, Shao et al., arXiv 2402.03300).

    A_gi = (r_gi - b_gi) / s,    clipped to +-clip,    g a group of one start latent and condition, i a sibling

    kind         b_gi                                s
    global_std   mean of the group                   rms of r - b over the round
    group_std    mean of the group                   rms of r - b over the group
    mean_only    mean of the group                   1
    batch        mean of the round                   rms of r - b over the round
    running      mean of the condition's last 16     std of the condition's last 16

`running` is DDPO's (Black et al., arXiv 2305.13301) and ReDiF's (arXiv 2512.22802).

A baseline that contains r_gi itself only scales the gradient, by 1 - 1/K. A baseline that contains the reward of the
antithetic partner biases it: the partner explores with -z, so its reward correlates with z, differently at each step,
and the gradient over several steps points elsewhere. `pair_baseline` therefore takes b_gi over the siblings outside the
pair, which are independent of z.

`ADVANTAGES` lists the built-in kinds; `learner.advantage=path/to/file.py:name` selects a function of your own with the
same signature.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from redif_ray.registry import found_or_imported
from redif_ray.types import Condition, from_json

DEAD = 1e-6  # a spread below this fraction of the largest |reward| counts as rounding error


@dataclass(frozen=True, slots=True)
class Advantages:
    """The advantages of a round, with statistics of its rewards.

    values: [G, K] float32, detached. std: rms over the round of the rewards minus their baseline, before any division.
    dead_group_fraction: fraction of groups whose spread is numerically zero; their values are exactly 0. For `batch`
    the whole round is the only group; for `running` the spread is the condition's std.
    """

    values: Tensor
    dead_group_fraction: float
    std: float


class RunningStatistics:
    """The last `size` rewards of each condition; statistics exist once a condition has that many."""

    def __init__(self, size: int = 16) -> None:
        self.size = size
        self.buffers: dict[Condition, deque[float]] = {}

    def extend(self, keys: Sequence[Condition], rewards: Tensor) -> None:
        """Append rewards [G, K]; `keys` has one condition for each group."""
        for key, row in zip(keys, rewards.tolist(), strict=True):
            self.buffers.setdefault(key, deque(maxlen=self.size)).extend(row)

    def statistics(self, key: Condition) -> tuple[float, float] | None:
        """Return the mean and population std of the condition's buffer, or None until it is full."""
        values = self.buffers.get(key, ())
        if len(values) < self.size:
            return None
        std, mean = torch.std_mean(torch.tensor(list(values), dtype=torch.float64), correction=0)
        return float(mean), float(std)

    def state_dict(self) -> dict[str, Any]:
        """Return the state as plain JSON values, which keep float64 exactly."""
        return {"size": self.size, "buffers": [[key, list(values)] for key, values in self.buffers.items()]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if state["size"] != self.size:
            raise ValueError(f"the saved running statistics have size={state['size']}; expected {self.size}")
        self.buffers = {from_json(key): deque(values, maxlen=self.size) for key, values in state["buffers"]}


@dataclass(frozen=True, slots=True)
class Baselines:
    """The inputs, beside the rewards, from which a kind of advantage computes its baseline.

    pair: True where siblings 2k and 2k + 1 are antithetic, so that the baseline leaves both out.
    running: statistics of each condition's rewards. keys: condition of each group, G of them.
    """

    pair: bool = False
    running: RunningStatistics | None = None
    keys: Sequence[Condition] | None = None


@dataclass(frozen=True, slots=True)
class Relative:
    """Rewards minus their baseline, in S sets that share a baseline, and the scales of these sets.

    centred: [S, K'], rewards minus baseline. spread: [S, 1], std of each set; a set whose spread is only rounding error
    is dead and gets advantages of 0. scale: [S, 1], divisor of each set; None: the rms over the sets that are not dead.
    """

    centred: Tensor
    spread: Tensor
    scale: Tensor | None


def global_std(rewards: Tensor, given: Baselines) -> Relative:
    centred = _centred(rewards, given.pair)
    return Relative(centred, _rms(centred), None)


def group_std(rewards: Tensor, given: Baselines) -> Relative:
    centred = _centred(rewards, given.pair)
    return Relative(centred, spread := _rms(centred), spread)


def mean_only(rewards: Tensor, given: Baselines) -> Relative:
    centred = _centred(rewards, given.pair)
    return Relative(centred, spread := _rms(centred), torch.ones_like(spread))


def batch(rewards: Tensor, given: Baselines) -> Relative:
    return group_std(rewards.reshape(1, -1), given)


def running(rewards: Tensor, given: Baselines) -> Relative:
    """Compare rewards with the statistics of their condition; whiten them as in `batch` until its buffer is full.

    With `given.pair` the statistics exclude this round's rewards; otherwise they include them, as in DDPO.
    """
    centred, spread = _running(rewards, given.running, given.keys, given.pair)
    return Relative(centred, spread, spread)


AdvantageFunction = Callable[[Tensor, Baselines], Relative]  # rewards [G, K] float64, and the baselines' inputs
ADVANTAGES: Mapping[str, AdvantageFunction] = {
    "global_std": global_std,
    "group_std": group_std,
    "mean_only": mean_only,
    "running": running,
    "batch": batch,
}


def find_advantage(kind: str) -> AdvantageFunction:
    """Return the function that `learner.advantage` names. Raises UserCodeError for code that cannot be imported."""
    return found_or_imported(kind, ADVANTAGES, "learner.advantage")


def advantages(
    rewards: Tensor,
    kind: str,
    clip: float,
    *,
    pair_baseline: bool = False,
    running: RunningStatistics | None = None,
    keys: Sequence[Condition] | None = None,
) -> Advantages:
    """Return the advantages of a round's rewards [G, K], computed in float64 by the formulas above.

    kind: key of `ADVANTAGES`, or a function of the user's. clip: bound of |advantage|.
    pair_baseline: True where siblings 2k and 2k + 1 are antithetic, so that the baseline leaves both out.
    running, keys: statistics, and the condition of each group; needed by the kind `running` only.
    Raises ValueError for rewards that are not finite, not of shape [G, K] or too few for a baseline; UserCodeError for
    a kind that is unknown or cannot be imported.
    """
    relative = find_advantage(kind)(_checked(rewards), Baselines(pair_baseline, running, keys))
    sets = rewards.detach().double().reshape(relative.centred.shape)
    dead = relative.spread <= DEAD * sets.abs().amax(1, keepdim=True)
    centred = torch.where(dead, 0.0, relative.centred)
    std = float(centred.square().mean().sqrt())
    scale = torch.full_like(relative.spread, std) if relative.scale is None else relative.scale
    values = (centred / torch.where(dead, 1.0, scale)).clamp(-clip, clip)
    return Advantages(values.reshape(rewards.shape).float(), float(dead.double().mean()), std)


def _checked(rewards: Tensor) -> Tensor:
    if rewards.ndim != 2 or not rewards.numel():
        raise ValueError(f"rewards have shape {list(rewards.shape)}; expected [groups, siblings]")
    for group, sibling in torch.nonzero(~torch.isfinite(rewards)).tolist():
        value, row = rewards[group, sibling].item(), group * rewards.shape[1] + sibling
        raise ValueError(f"reward of row {row} (group {group}, sibling {sibling}) is {value}; expected a finite number")
    return rewards.detach().to(torch.float64)


def _centred(r: Tensor, pair_baseline: bool) -> Tensor:
    """Return r [G, K] minus the mean of its row; with `pair_baseline` the mean excludes the own antithetic pair."""
    siblings = r.shape[1]
    least = 4 if pair_baseline else 2
    if siblings < least or (pair_baseline and siblings % 2):
        kind = "an even number, at least 4" if pair_baseline else "at least 2"
        raise ValueError(f"{siblings} rewards share a baseline; expected {kind}: raise rollout.siblings")
    if not pair_baseline:
        return r - r.mean(1, keepdim=True)
    pairs = r.unflatten(1, (-1, 2)).sum(2).repeat_interleave(2, 1)
    return r - (r.sum(1, keepdim=True) - pairs) / (siblings - 2)


def _rms(centred: Tensor) -> Tensor:
    return centred.square().mean(1, keepdim=True).sqrt()


def _running(
    r: Tensor, running: RunningStatistics | None, keys: Sequence[Condition] | None, pair_baseline: bool
) -> tuple[Tensor, Tensor]:
    """Return r minus its condition's mean, [G, K], and the condition's std, [G, 1]."""
    if running is None or keys is None or len(keys) != len(r):
        raise ValueError(f"advantage running: expected RunningStatistics and one key for each of {len(r)} groups")
    centred = _centred(r.reshape(1, -1), pair_baseline)
    scale = _rms(centred).expand(len(r), 1).clone()
    centred = centred.reshape(r.shape).clone()
    if not pair_baseline:
        running.extend(keys, r)
    for group, key in enumerate(keys):
        statistics = running.statistics(key)
        if statistics is not None:
            centred[group], scale[group] = r[group] - statistics[0], statistics[1]
    if pair_baseline:
        running.extend(keys, r)
    return centred, scale
