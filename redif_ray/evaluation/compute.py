"""What a run spent: seconds, network calls and FLOPs (2 x multiply-adds) of each component.

Network calls are of one image: a batch of 8 through a guided step is 16.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from redif_ray.models.protocol import DiffusionModel

COMPONENTS = ("student_rollout", "update", "teacher", "rewards", "anchor", "evaluation")
BACKWARD = {"full": 1.9, "lora": 0.9}  # measured, in forwards: a frozen weight needs no gradient of its own
RECOMPUTE = 1.0  # activation checkpointing runs the forward once more


def forward_flops(call: Callable[[], object], images: int) -> float:
    """FLOPs an image of one call that runs `images` images forward.

    Only matrix products, convolutions and attention are counted. Attention is made to run as matrix products, because
    torch counts CPU's fused attention as 0. Raises ValueError where nothing was counted.
    """
    if images < 1:
        raise ValueError(f"images={images}: expected how many images the call runs")
    eager = torch.compiler.set_stance("force_eager")  # what is compiled is not seen
    with torch.no_grad(), eager, sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        call()
    flops = counter.get_total_flops()
    if not flops:
        raise ValueError("no FLOPs were counted; expected a call that runs a network")
    return flops / images


def prediction_flops(model: DiffusionModel) -> float:
    """Count the FLOPs of a prediction of one image on a model without weights: it takes no device's time."""
    x = torch.empty(1, *model.latent_shape, device="meta")
    encoded = {name: value.to("meta") for name, value in model.blank(1).items()}
    return forward_flops(lambda: model.predict(x, model.process.noisiest(), encoded), 1)


def update_factor(*, lora: bool, checkpointing: bool) -> float:
    """FLOPs of a forward and backward pass, in forwards."""
    return 1 + BACKWARD["lora" if lora else "full"] + RECOMPUTE * checkpointing


class ComputeLedger:
    """Sums by component. Its state goes into the checkpoint, so that a resumed run counts on."""

    def __init__(self, state: Mapping[str, Mapping[str, float]] | None = None) -> None:
        self.entries = {name: {"seconds": 0.0, "nfe": 0.0, "flops": 0.0} for name in COMPONENTS}
        for name, entry in (state or {}).items():
            self.add(name, **entry)

    def add(self, component: str, *, seconds: float = 0.0, nfe: float = 0.0, flops: float = 0.0) -> None:
        """Add to one of `COMPONENTS`.

        Raises ValueError for another component and for amounts that are negative or not finite.
        """
        if component not in self.entries:
            raise ValueError(f"unknown component {component!r}; expected one of {', '.join(COMPONENTS)}")
        amounts = {"seconds": seconds, "nfe": nfe, "flops": flops}
        for key, amount in amounts.items():
            if not 0 <= amount < float("inf"):
                raise ValueError(f"{component}: {key}={amount}; expected a finite amount, 0 or more")
        for key, amount in amounts.items():
            self.entries[component][key] += amount

    def state(self) -> dict[str, dict[str, float]]:
        """{component: {"seconds", "nfe", "flops"}}: what the constructor and summary.json take."""
        return {name: dict(entry) for name, entry in self.entries.items()}
