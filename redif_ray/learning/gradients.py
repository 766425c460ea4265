"""The gradients of an optimiser step, summed over ranks while the last backward pass before the step goes on.

A backward pass completes the gradients of the last layers first. They are sent in buckets, as torch's
DistributedDataParallel sends them (Li et al., arXiv 2006.15704), while the gradients of earlier layers are computed.
All ranks send them in one order, that of the network's own list of weights from its end. Where a network lists what it
calls first at the end, as PixArt does, the first bucket is complete late and the others wait for it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Protocol

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn import Parameter

BUCKET_BYTES = 25 * 2**20  # of gradients that are sent together; a larger one is sent alone
ON_THEIR_WAY = 2  # buckets at a time, each of which is a copy in memory


class AllReduce(Protocol):
    """Sums tensors over all ranks, in place. Every rank calls it equally often, with tensors of the same sizes."""

    def __call__(self, tensors: list[Tensor]) -> None:
        """Sum the tensors."""
        ...

    def begin(self, tensors: list[Tensor]) -> Callable[[], list[Tensor]]:
        """Start the sums of copies of the tensors; return a function that waits for the sums and returns them."""
        ...


class Gradients:
    """The gradients of an optimiser's parameters for one step; all are cleared when this object is made.

    all_reduce: sums over ranks; None for one rank. loss_scale: factor of the losses, by which `sum` divides.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, all_reduce: AllReduce | None = None, loss_scale: float = 1.0
    ) -> None:
        optimizer.zero_grad(set_to_none=True)
        self.optimizer, self.all_reduce, self.loss_scale = optimizer, all_reduce, loss_scale
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.buckets = [] if all_reduce is None else buckets(self.parameters)
        self.begun = 0  # buckets whose sum has been started, always the first ones
        self.ends = deque[Callable[[], None]]()  # of the buckets on their way
        self.summed = False

    def add(self, loss: Tensor, *, last: bool) -> None:
        """Add the gradients of a scalar, a loss times `loss_scale`.

        last: True for the last loss before `sum`, whose backward pass sends gradients as they are completed. A rank may
        have no loss at all. From this call until `sum` has returned, a rank may not sum anything else.
        """
        with self._sent_when_complete() if last and self.buckets else nullcontext():
            loss.backward()

    def sum(self) -> None:
        """Finish the sums over ranks and divide by `loss_scale`, once. Every rank must call this."""
        if self.summed:
            return
        self.summed = True
        for parameter in self.parameters:
            if parameter.grad is None:  # a rank without rows in the minibatch takes part in the same sums
                parameter.grad = torch.zeros_like(parameter)
        while self.begun < len(self.buckets):
            self._begin()
        while self.ends:
            self.ends.popleft()()
        for parameter in self.parameters:
            parameter.grad.div_(self.loss_scale)

    @contextmanager
    def _sent_when_complete(self) -> Iterator[None]:
        """Begin the sum of each bucket, in their order on every rank, when the block has completed its gradients."""
        left = [len(bucket) for bucket in self.buckets]
        places = {id(p): place for place, bucket in enumerate(self.buckets) for p in bucket}

        def completed(parameter: Tensor) -> None:
            left[places[id(parameter)]] -= 1
            while self.begun < len(left) and left[self.begun] == 0:
                self._begin()

        hooks = [p.register_post_accumulate_grad_hook(completed) for bucket in self.buckets for p in bucket]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _begin(self) -> None:
        if len(self.ends) == ON_THEIR_WAY:
            self.ends.popleft()()
        assert self.all_reduce is not None
        bucket = self.buckets[self.begun]
        summed = self.all_reduce.begin([p.grad for p in bucket if p.grad is not None])

        def end() -> None:
            # Not in place: a gradient may share its memory with one that is still on its way through the pass.
            for parameter, gradient in zip(bucket, summed(), strict=True):
                parameter.grad = gradient

        self.ends.append(end)
        self.begun += 1


def buckets(parameters: list[Parameter]) -> list[list[Parameter]]:
    """Return the parameters that ranks do not share out among them, the last ones first, in buckets of `BUCKET_BYTES`.

    A backward pass sums the gradients of sharded parameters (DTensor) by itself.
    """
    made: list[list[Parameter]] = []
    size = 0
    for parameter in reversed(parameters):
        if isinstance(parameter, DTensor):
            continue
        own = parameter.numel() * parameter.element_size()
        if not made or size + own > BUCKET_BYTES:
            made, size = [*made, []], 0
        made[-1].append(parameter)
        size += own
    return made


def copies(parameters: list[Parameter]) -> int:
    """Return the bytes of the copies of gradients that are on their way at once, at most."""
    sizes = (sum(p.numel() * p.element_size() for p in bucket) for bucket in buckets(parameters))
    return sum(sorted(sizes)[-ON_THEIR_WAY:])
