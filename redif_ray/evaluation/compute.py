"""The cost of a run: seconds, network calls and FLOPs (2 x multiply-adds) of each component.

Network calls (NFE) are counted per image: a batch of 8 images through one guided step is 16 calls.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from redif_ray.models.layouts import RememberedLayouts
from redif_ray.models.protocol import DiffusionModel

COMPONENTS = ("student_rollout", "update", "teacher", "rewards", "anchor", "evaluation")
BACKWARD = {"full": 1.9, "lora": 0.9}  # measured, in forward passes: a frozen weight needs no gradient
RECOMPUTE = 1.0  # activation checkpointing runs the forward pass once more


def forward_flops(call: Callable[[], object], images: int) -> float:
    """Return the FLOPs per image of `call`, which runs a forward pass of `images` images.

    Only matrix products, convolutions and attention are counted. Attention is made to run as matrix products, because
    torch counts the CPU's fused attention as 0. Raises ValueError if no FLOPs were counted or `images` is below 1.
    """
    if images < 1:
        raise ValueError(f"images={images}; expected the number of images that the call runs, 1 or more")
    flops = _counted(call)
    if not flops:
        raise ValueError("no FLOPs were counted; expected a call that runs a network")
    return flops / images


def _counted(call: Callable[[], object]) -> float:
    eager = torch.compiler.set_stance("force_eager")  # the counter does not see compiled operations
    with torch.no_grad(), eager, sdpa_kernel(SDPBackend.MATH), RememberedLayouts(), FlopCounterMode(display=False) as c:
        call()
    return c.get_total_flops()


def prediction_flops(model: DiffusionModel) -> float:
    """Return the FLOPs of one prediction for one image by a model on the meta device, where nothing is computed."""
    x = torch.empty(1, *model.latent_shape, device="meta")
    encoded = {name: value.to("meta") for name, value in model.blank(1).items()}
    return forward_flops(lambda: model.predict(x, model.process.noisiest(), encoded), 1)


def decode_flops(model: DiffusionModel) -> float:
    """Return the FLOPs of decoding the latent of one image by a model on the meta device; 0 for a model of pixels."""
    return _counted(lambda: model.decode(torch.empty(1, *model.latent_shape, device="meta")))


def update_factor(*, lora: bool, checkpointing: bool) -> float:
    """Return the FLOPs of a forward and backward pass, in units of one forward pass.

    lora: whether only LoRA adapters are trained. checkpointing: whether activation checkpointing is on.
    """
    return 1 + BACKWARD["lora" if lora else "full"] + RECOMPUTE * checkpointing


class ComputeLedger:
    """The sums of each component. The ledger's state is checkpointed, so that a resumed run continues the counts.

    state: return value of `state`, to continue from; None: all sums start at 0.
    """

    def __init__(self, state: Mapping[str, Mapping[str, float]] | None = None) -> None:
        self.entries = {name: {"seconds": 0.0, "nfe": 0.0, "flops": 0.0} for name in COMPONENTS}
        for name, entry in (state or {}).items():
            self.add(name, **entry)

    def add(self, component: str, *, seconds: float = 0.0, nfe: float = 0.0, flops: float = 0.0) -> None:
        """Add amounts to the sums of one of `COMPONENTS`.

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
        """Return {component: {"seconds", "nfe", "flops"}}, the format of the constructor and of summary.json."""
        return {name: dict(entry) for name, entry in self.entries.items()}
