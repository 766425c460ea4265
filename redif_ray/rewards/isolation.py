"""A reward term sees images and returns values; it changes nothing that another part of the process reads.

Reward functions are users' code, and libraries that they import set global state of torch in passing. A default dtype
of float64 or a disabled grad mode would then change the results of other terms, silently.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from redif_ray.rewards.term import RewardError, RewardInputs


def _set_default_device(device: torch.device) -> None:
    torch.set_default_device(None if device.type == "cpu" else device)  # "cpu" itself would cost every call a mode


def _set_cudnn(name: str) -> Callable[[bool], None]:
    return lambda value: setattr(torch.backends.cudnn, name, value)


SETTINGS: dict[str, tuple[Callable[[], Any], Callable[[Any], None]]] = {  # name: (read, write)
    "default dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "default device": (torch.get_default_device, _set_default_device),
    "grad mode": (torch.is_grad_enabled, torch.set_grad_enabled),
    "number of threads": (torch.get_num_threads, torch.set_num_threads),
    "float32 matmul precision": (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    "use of deterministic algorithms": (torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms),
    "cudnn.benchmark": (lambda: torch.backends.cudnn.benchmark, _set_cudnn("benchmark")),
    "cudnn.deterministic": (lambda: torch.backends.cudnn.deterministic, _set_cudnn("deterministic")),
}


@contextmanager
def settings_kept() -> Iterator[None]:
    """Put back what the body changes of torch's global settings, and raise `RewardError` that names each of them."""
    before = {name: read() for name, (read, _) in SETTINGS.items()}
    changed = []
    try:
        yield
    finally:
        for name, (read, write) in SETTINGS.items():
            if (found := read()) != before[name]:
                write(before[name])
                changed.append(f"{name} from {before[name]} to {found}")
    if changed:
        raise RewardError(
            f"it changed torch's {' and '.join(changed)} for the whole process; a reward must leave global settings "
            "as they are: pass dtype= and device= to the calls that need them, use `with torch.no_grad():`, and put "
            "back what a library changes while it is imported"
        )


def copied(inputs: RewardInputs) -> RewardInputs:
    """Return the same images and conditions in memory of their own, so that the caller's stay as they are."""
    return RewardInputs(inputs.student.clone(), inputs.teacher.clone(), tuple(inputs.conditions), inputs.kept)


def check_unaltered(given: RewardInputs, original: RewardInputs) -> None:
    """Raise `RewardError` unless the images `given` to a term are still those of `original`."""
    for role, image, before in (
        ("student", given.student, original.student),
        ("teacher", given.teacher, original.teacher),
    ):
        if not torch.equal(image.detach(), before.detach()):
            raise RewardError(
                f"it altered the {role} images that it was given, which other terms see too; work on a copy, such as "
                f"{role} = {role}.clone()"
            )
