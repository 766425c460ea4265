"""An exponential average of the student's weights (Polyak averaging), which may be deployed in their place."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class ExponentialAverage:
    """An average that starts as a copy of `weights`; `decay` is in [0, 1).

    Update t = 0, 1, ... is average <- d_t average + (1 - d_t) weights, with d_t = min(decay, (1 + t) / (10 + t)). This
    warm-up of the decay forgets the initial weights. Without it, at decay 0.999, the average after 100 rounds would
    still be 90 % untrained student.
    """

    def __init__(self, weights: Mapping[str, Tensor], decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay={decay}: expected a value in [0, 1)")
        self.decay, self.updates = decay, 0
        self.average = {name: w.detach().clone() for name, w in weights.items()}

    @torch.no_grad()
    def update(self, weights: Mapping[str, Tensor]) -> None:
        """Average in the weights after an update. Raises ValueError where their names differ from the initial ones."""
        _same_names(weights, self.average)
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for name, average in self.average.items():
            average.lerp_(weights[name].detach().to(average), 1 - decay)
        self.updates += 1

    @torch.no_grad()
    def restart(self, weights: Mapping[str, Tensor]) -> None:
        """Begin anew with a copy of `weights`."""
        for name, average in self.average.items():
            average.copy_(weights[name].detach())
        self.updates = 0

    def weights(self) -> dict[str, Tensor]:
        """Return a copy of the average."""
        return {name: w.clone() for name, w in self.average.items()}

    def state_dict(self) -> dict[str, Tensor]:
        """Return tensors for a checkpoint: `updates`, and each weight under `average/`."""
        state = {f"average/{name}": w.clone() for name, w in self.average.items()}
        return state | {"updates": torch.tensor(self.updates, dtype=torch.int64)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        saved = {name.removeprefix("average/"): w for name, w in state.items() if name.startswith("average/")}
        _same_names(saved, self.average)
        for name, average in self.average.items():
            average.copy_(saved[name])
        self.updates = int(state["updates"])


def _same_names(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    if found.keys() != expected.keys():
        differ = sorted(found.keys() ^ expected.keys())
        raise ValueError(f"averaged weights differ from the first ones in {len(differ)} names, such as {differ[0]}")
