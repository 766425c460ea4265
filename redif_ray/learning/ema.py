"""An exponential average of the student's weights (Polyak averaging), which may be deployed in its place."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class ExponentialAverage:
    """average <- d_t average + (1 - d_t) weights, with d_t = min(decay, (1 + t) / (10 + t)) at update t = 0, 1, ...

    The warm-up forgets the start: without it, at decay 0.999, a run of 100 rounds would deploy 90 % untrained student.
    """

    def __init__(self, weights: Mapping[str, Tensor], decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay={decay}: expected a value in [0, 1)")
        self.decay, self.updates = decay, 0
        self.average = {name: w.detach().clone() for name, w in weights.items()}

    @torch.no_grad()
    def update(self, weights: Mapping[str, Tensor]) -> None:
        """Take in the weights after an update; the names must be the first ones'."""
        _same_names(weights, self.average)
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for name, average in self.average.items():
            average.lerp_(weights[name].detach().to(average), 1 - decay)
        self.updates += 1

    def weights(self) -> dict[str, Tensor]:
        """A copy of the average."""
        return {name: w.clone() for name, w in self.average.items()}

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors for a checkpoint: `updates`, and each weight under `average/`."""
        state = {f"average/{name}": w.clone() for name, w in self.average.items()}
        return state | {"updates": torch.tensor(self.updates, dtype=torch.int64)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        found = {name.removeprefix("average/"): w for name, w in state.items() if name.startswith("average/")}
        _same_names(found, self.average)
        for name, average in self.average.items():
            average.copy_(found[name])
        self.updates = int(state["updates"])


def _same_names(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    if found.keys() != expected.keys():
        differ = sorted(found.keys() ^ expected.keys())
        raise ValueError(f"averaged weights differ from the first ones in {len(differ)} names, such as {differ[0]}")
