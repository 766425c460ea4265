"""The seconds of a network's calls on this machine's cores, measured before a run starts."""

from __future__ import annotations

import copy
import ctypes
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import Module, Parameter

from redif_ray.config import Teacher
from redif_ray.models.protocol import DiffusionModel
from redif_ray.models.registry import load_teacher

LARGEST_LOADED = 5e9  # most FLOPs of a network call on one image for which the weights are loaded, 0.1 s of a core
LARGEST_TIMED = {torch.float32: 1.2e11}  # most FLOPs of a call that is timed without weights, some seconds of a core
LARGEST_OTHER = 3e9  # the same in 16 bits, which CPUs compute far more slowly
CROWDED = 1.25  # time of a small network's call beside a run's other processes, alone 1; 1.17 to 1.41 were measured


@dataclass(frozen=True, slots=True)
class Speed:
    """Measured seconds of a core.

    call: seconds of a network call on one image, by the number of busy cores. decode: seconds of decoding one image, in
    calls on one core. threaded: seconds of a core that a call takes on all threads of a learner; on one thread, 1.
    """

    call: dict[int, float]
    decode: float
    threaded: float = 1.0


def cpu_speed(
    teacher: Teacher,
    outline: DiffusionModel,
    flops: float,
    decode_flops: float,
    rows: Collection[int],
    together: Collection[int],
    threads: int,
) -> dict[int, Speed]:
    """Measure a network, with busy cores besides, because these share caches and memory; return speeds by `rows`.

    outline: the teacher on the device "meta", in the dtype in which it computes. flops, decode_flops: of a call on one
    image, and of decoding it. rows: the numbers of images of a call. together: the numbers of busy cores.
    threads: of a learner.

    A small network is loaded. A larger one is called once, on as many cores as are ever busy, with zeros for weights,
    which a layer has only while it computes. One whose calls are too long for that is assumed to reach the FLOP/s of a
    matrix product.
    """
    before, decode = torch.get_num_threads(), decode_flops / flops
    torch.set_num_threads(1)
    try:
        if flops <= LARGEST_LOADED:
            model, most = load_teacher(teacher, dtype=outline.dtype), max(1, min(16, int(LARGEST_LOADED / flops)))
            counts = {each: min(each, most) for each in rows}
            timed = {count: _loaded(model, count, together, threads) for count in set(counts.values())}
            return {each: Speed(timed[count][0], decode, timed[count][1]) for each, count in counts.items()}
        largest = LARGEST_TIMED.get(outline.dtype, LARGEST_OTHER)
        if flops > largest:
            call = {cores: flops / _product_rate(outline.dtype, cores) for cores in together}
            return dict.fromkeys(rows, Speed(call, decode))
        counts = {each: max(1, min(each, int(largest / flops))) for each in rows}
        taken = {count: _timed_hollow(outline, count, max(together)) / count for count in set(counts.values())}
        decoding = _decode_seconds(outline) if 0 < decode_flops <= LARGEST_TIMED[torch.float32] else None
        return {
            each: Speed(dict.fromkeys(together, taken[count]), decode if decoding is None else decoding / taken[count])
            for each, count in counts.items()
        }
    finally:
        torch.set_num_threads(before)
        _give_back()


def _give_back() -> None:
    """Give freed memory back to the system where the C library can; glibc would keep hundreds of MB for itself."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _call(model: DiffusionModel, rows: int) -> Callable[[], object]:
    """Return a network call on `rows` images, whose conditions are encoded before it."""
    encoded = {name: torch.zeros_like(value, device="cpu") for name, value in model.blank(rows).items()}
    x, level = torch.zeros(rows, *model.latent_shape), model.process.noisiest()
    return lambda: model.predict(x, level, encoded)


def _loaded(
    model: DiffusionModel, rows: int, together: Collection[int], threads: int
) -> tuple[dict[int, float], float]:
    """Return the seconds of a call for each of its images in a run, by the number of busy cores; and on `threads`."""
    call = _call(model, rows)
    return {cores: CROWDED * _timed(call, cores) / rows for cores in together}, _threaded(call, threads)


def _threaded(call: Callable[[], object], threads: int) -> float:
    """Return the seconds of a core that a call takes on several threads, in those that it takes on one.

    Threads may help or not, so this lies between 1 and their number, also on a machine that is busy with other work.
    """
    one = _timed(call, 1, time.perf_counter)
    torch.set_num_threads(threads)
    try:
        return min(float(threads), max(1.0, threads * _timed(call, 1, time.perf_counter) / one))
    finally:
        torch.set_num_threads(1)


def _product_rate(dtype: torch.dtype, together: int, size: int = 512) -> float:
    """Return the measured FLOP/s of matrix products on a core while `together` cores are busy."""
    a = torch.ones(size, size, dtype=dtype)
    return 2 * size**3 / _timed(lambda: a @ a, together)


def _timed(
    call: Callable[[], object], together: int, clock: Callable[[], float] = time.thread_time, repeats: int = 5
) -> float:
    """Return the measured seconds of a call, on the slowest of `together` threads that make it at the same time.

    clock: by default, seconds in which a core computed, so that other work on the machine does not count. A call that
        waits for other threads of torch needs another clock.
    """

    @torch.no_grad()
    def one(_: int) -> float:
        call()
        started = clock()
        for _ in range(repeats):
            call()
        return (clock() - started) / repeats

    with ThreadPoolExecutor(together) as pool:
        return max(pool.map(one, range(together)))


def _timed_hollow(outline: DiffusionModel, rows: int, together: int) -> float:
    """Return the measured seconds of a call on `rows` images, on the slowest of `together` threads, without weights.

    Seconds are those in which a core computed, so that other work on the machine does not count.
    """
    models = [replace(outline, network=copy.deepcopy(outline.network)) for _ in range(together)]

    @torch.no_grad()
    def one(model: DiffusionModel) -> float:
        call = _call(model, rows)
        with hollow(model.network) as aside:
            started = time.thread_time()
            call()
            return time.thread_time() - started - aside.seconds

    with ThreadPoolExecutor(together) as pool:
        return max(pool.map(one, models))


@torch.no_grad()
def _decode_seconds(outline: DiffusionModel) -> float:
    """Return the measured seconds of decoding one image, without weights."""
    outline.decode(torch.zeros(1, *outline.latent_shape, device="meta"))  # makes the networks that decode
    with hollow(*outline.parts.values()) as aside:
        started = time.thread_time()
        outline.decode(torch.zeros(1, *outline.latent_shape))
        return time.thread_time() - started - aside.seconds


@dataclass
class Aside:
    """Seconds that a measurement leaves out."""

    seconds: float = 0.0


@contextmanager
def hollow(*networks: Module) -> Iterator[Aside]:
    """Let networks on the device "meta" compute on the CPU in this block, with zeros for weights.

    A layer has its zeros only while it computes, so the block needs little memory. Yields the seconds of making them.
    """
    aside = Aside()

    def moved(module: Module, device: str) -> None:
        started = time.thread_time()
        for name, value in [*module.named_parameters(recurse=False)]:
            setattr(module, name, Parameter(torch.empty_like(value, device=device).zero_(), requires_grad=False))
        plain = [(name, value) for name, value in vars(module).items() if isinstance(value, Tensor)]  # no buffers
        for name, value in [*module.named_buffers(recurse=False), *plain]:
            setattr(module, name, torch.empty_like(value, device=device).zero_())
        aside.seconds += time.thread_time() - started

    with ExitStack() as hooks:
        for module in (module for network in networks for module in network.modules()):
            before = module.register_forward_pre_hook(lambda module, _: moved(module, "cpu"))
            after = module.register_forward_hook(lambda module, *_: moved(module, "meta"))
            hooks.callback(before.remove)
            hooks.callback(after.remove)
        yield aside
